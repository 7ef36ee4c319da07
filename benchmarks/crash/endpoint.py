"""The model's endpoint and what the tools act on, in a process of their own: it outlives the server and counts."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .script import Order, pieces

_PIECE_SECONDS = 0.006
_TOOL_SECONDS = 0.02

calls: list[list[str | int]] = []
"""(generation of the server, message id, step of its journal) of each call, in the order in which they began."""


async def ask(request: Request) -> Response:
    """An LLM step, a JSON line a piece; the last one names the tools to call."""
    body = await request.json()
    order, step = Order(body["message"], body["kind"]), body["step"]
    calls.append([body["generation"], order.id, f"llm/{step}"])

    async def answer() -> AsyncGenerator[str]:
        for piece in pieces(order, step):
            await asyncio.sleep(_PIECE_SECONDS)
            yield json.dumps({"text": piece}) + "\n"
        await asyncio.sleep(_PIECE_SECONDS)
        yield json.dumps({"tools": order.steps[step - 1]}) + "\n"

    return StreamingResponse(answer())


async def act(request: Request) -> Response:
    """A tool's effect on the world."""
    body = await request.json()
    calls.append([body["generation"], body["message"], body["key"]])
    await asyncio.sleep(_TOOL_SECONDS)
    return JSONResponse({"done": body["key"]})


async def log(request: Request) -> Response:
    return JSONResponse(calls)


async def cut_off(request: Request, error: Exception) -> Response:
    """The server died before it had said what it wants: no call."""
    return Response(status_code=400)


def main() -> None:
    app = Starlette(
        routes=[
            Route("/ask", ask, methods=["POST"]),
            Route("/act", act, methods=["POST"]),
            Route("/log", log),
        ],
        exception_handlers={ClientDisconnect: cut_off},
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
