"""Models that need no network, for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retinue_memory import (
    ChatModel,
    Message,
    ModelDelta,
    ToolCall,
    ToolSpec,
    Usage,
)
from retinue_memory.errors import ModelError


class EchoModel(ChatModel):
    """Answers with the last user message, in `chunks` pieces, waiting `delay` seconds before each."""

    name = "echo"

    def __init__(self, *, delay: float = 0.0, chunks: int = 1) -> None:
        if chunks < 1:
            raise ValueError(f"chunks: expected at least 1, got {chunks}")
        self.delay = delay
        self.chunks = chunks

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        text = next((message.content for message in reversed(messages) if message.role == "user"), "")
        size = -(-len(text) // self.chunks) or 1
        for start in range(0, len(text), size):
            if self.delay:
                await asyncio.sleep(self.delay)
            yield ModelDelta(text[start : start + size])
        words = len(text.split())
        yield ModelDelta(usage=Usage(sum(len(message.content.split()) for message in messages), words), finish="stop")


@dataclass(frozen=True, slots=True)
class Request:
    """A request that a model received."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    schema: Mapping[str, Any] | None
    settings: Mapping[str, Any]


Piece = str | ToolCall | ModelError
Answer = Piece | Sequence[Piece]
Line = Answer | Callable[[Sequence[Message]], Answer]


class ScriptedModel(ChatModel):
    """Answers each request with the next line of its script, and keeps the requests in `requests`.

    A line is a text, a `ToolCall`, a `ModelError` to raise, a sequence of these to stream one after another, or a function
    from the messages to one of these. Raises ModelError after the last line.
    """

    name = "scripted"

    def __init__(self, script: Iterable[Line] = ()) -> None:
        self.script = list(script)
        self.requests: list[Request] = []

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        self.requests.append(Request(tuple(messages), tuple(tools), schema, settings))
        if len(self.requests) > len(self.script):
            raise ModelError(f"the script has {len(self.script)} lines, but this is request {len(self.requests)}")
        line = self.script[len(self.requests) - 1]
        answer = line(messages) if callable(line) else line
        finish = "stop"
        for piece in [answer] if isinstance(answer, str | ToolCall | ModelError) else answer:
            if isinstance(piece, ModelError):
                raise piece
            if isinstance(piece, ToolCall):
                finish = "tool_calls"
                yield ModelDelta(tool_calls=(piece,))
            else:
                yield ModelDelta(piece)
        yield ModelDelta(finish=finish)
