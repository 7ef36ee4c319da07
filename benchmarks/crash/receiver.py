"""Where push notifications go: a small web server in the process of the clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from zlib import crc32

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .ledger import JSONObject


class Receiver:
    """Keeps what arrives, by the id of its config. Every twelfth config's first delivery is refused: it is to come again."""

    def __init__(self) -> None:
        self.url = ""
        self.arrived: dict[str, list[JSONObject]] = {}
        self.unauthentic = 0
        self._refused: set[str] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        app = Starlette(
            routes=[Route("/{config}", self._arrive, methods=["POST"])], exception_handlers={ClientDisconnect: _cut_off}
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            work = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield
            finally:
                server.should_exit = True
                await work

    async def _arrive(self, request: Request) -> Response:
        config = request.path_params["config"]
        self.unauthentic += request.headers.get("X-A2A-Notification-Token") != config
        event = json.loads(await request.body())
        if crc32(config.encode()) % 12 == 0 and config not in self._refused:
            self._refused.add(config)
            return Response(status_code=503)
        self.arrived.setdefault(config, []).append(event)
        return Response()


async def _cut_off(request: Request, error: Exception) -> Response:
    """The server died while it delivered."""
    return Response(status_code=400)
