"""What one run of `Agent.stream` carries along."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinue_memory import (
    InvocationContext,
    Message,
    ToolCall,
    Usage,
)

from .journal import Journal, JSONObject
from .tools import Tool


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(slots=True)
class Turn:
    """One turn, from the user's message to its answer."""

    ctx: InvocationContext
    journal: Journal
    schema: Mapping[str, Any] | None
    top_k: int | None = None
    """How many memories it may recall at once; None: as many as the agent does."""
    prompt: list[Message] = field(default_factory=list[Message])
    tools: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    earlier: Sequence[Message] = ()
    asked: Message | None = None
    """The user's message, where it is to be remembered as it is."""
    known: set[str] = field(default_factory=set[str])
    """The memories that the model has seen, as `same_text` has them."""
    usage: Usage = field(default_factory=Usage)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.ctx.turn_id or new_id()

    def take(self, result: JSONObject) -> tuple[ToolCall, ...]:
        """Count what an LLM step used; put the tool calls it ended with, if any, into the prompt and return them."""
        read, written = result["usage"]
        self.usage = Usage(self.usage.input_tokens + read, self.usage.output_tokens + written)
        calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in result["tool_calls"])
        if calls:
            self.prompt.append(Message("assistant", result["text"], tool_calls=calls))
        return calls

    def answer(self, result: JSONObject) -> Message:
        """The same id whenever the turn is run again, so that memory knows the answer when it sees it twice."""
        id_ = f"{self.ctx.turn_id}/answer" if self.ctx.turn_id is not None else new_id()
        return Message("assistant", result["text"], id=id_)
