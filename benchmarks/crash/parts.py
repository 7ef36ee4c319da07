"""What the server's configuration names: the model and the tools. Both do their work at the endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import Any

import httpx

from retinue_agents import ToolContext, tool
from retinue_agents.tools import NeedInput
from retinue_memory import (
    ChatModel,
    Message,
    ModelDelta,
    ToolCall,
    ToolSpec,
)

from .script import Order


@cache
def _http() -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=os.environ["CRASH_ENDPOINT"], timeout=30)


def _generation() -> int:
    return int(os.environ["CRASH_GENERATION"])


class Model(ChatModel):
    """Asks the endpoint; which step it is follows from what was said since the user's last message."""

    name = "endpoint"

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        order = Order.of(messages[last].content)
        step = 1 + sum(message.role == "assistant" for message in messages[last:])
        body = {"generation": _generation(), "message": order.id, "kind": order.kind, "step": step}
        async with _http().stream("POST", "/ask", json=body) as answer:
            async for line in answer.aiter_lines():
                piece = json.loads(line)
                if "text" in piece:
                    yield ModelDelta(piece["text"])
                else:
                    calls = (ToolCall(f"{order.id}-{step}-{name}", name, {}) for name in piece["tools"])
                    yield ModelDelta(tool_calls=tuple(calls), finish="stop")


async def _act(context: ToolContext) -> str:
    """`context.key` is the turn's id (task and message) and the step's key in the journal."""
    _, message, key = context.key.split("/", 2)
    answer = await _http().post("/act", json={"generation": _generation(), "message": message, "key": key})
    return answer.text


@tool
async def look(*, context: ToolContext) -> str:
    """Look at something; looking again does no harm."""
    return await _act(context)


@tool(retry="never")
async def charge(*, context: ToolContext) -> str:
    """Take money; doing it twice would be bad."""
    return await _act(context)


@tool
async def question(*, context: ToolContext) -> str:
    """Ask the user."""
    await _act(context)
    raise NeedInput("which one?")
