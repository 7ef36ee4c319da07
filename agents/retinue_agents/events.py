"""What an agent takes, says while it works, and needs of whoever runs it: State, events, Journal, ToolContext."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retinue_memory import (
    Message,
    ToolCall,
    Usage,
)

# -- events: what `Agent.stream` yields, in the order in which things happen ---------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryRetrieved:
    """The memories that the model will see, best first: before its first step, or because it searched for them."""

    messages: tuple[Message, ...]
    kind: Literal["memory_retrieved"] = "memory_retrieved"


@dataclass(frozen=True, slots=True)
class MemoryFailed:
    """A memory could not be read or changed. The answer goes on."""

    operation: Literal["retrieve", "update", "forget"]
    memory: str
    problem: str
    kind: Literal["memory_failed"] = "memory_failed"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the model's text."""

    text: str
    kind: Literal["text_delta"] = "text_delta"


@dataclass(frozen=True, slots=True)
class ToolCalled:
    call: ToolCall
    kind: Literal["tool_called"] = "tool_called"


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """`failed`: the content is what went wrong; the model is told and may try otherwise."""

    call: ToolCall
    content: str
    failed: bool = False
    kind: Literal["tool_returned"] = "tool_returned"


@dataclass(frozen=True, slots=True)
class InputRequired:
    """A tool needs to hear from the user; the turn ends here and goes on with their next message."""

    content: str
    kind: Literal["input_required"] = "input_required"


@dataclass(frozen=True, slots=True)
class StepLimitReached:
    """The model still asked for tools after `steps` LLM steps; there is no final answer."""

    steps: int
    kind: Literal["step_limit_reached"] = "step_limit_reached"


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The answer. By now its memory write is under way and needs nothing more of the consumer."""

    content: str
    usage: Usage = field(default_factory=Usage)
    kind: Literal["final_answer"] = "final_answer"


@dataclass(frozen=True, slots=True)
class MemoryUpdated:
    """The turn, or what the model wanted to be remembered, was accepted by every memory."""

    kind: Literal["memory_updated"] = "memory_updated"


Event = (
    MemoryRetrieved
    | MemoryFailed
    | TextDelta
    | ToolCalled
    | ToolReturned
    | InputRequired
    | StepLimitReached
    | FinalAnswer
    | MemoryUpdated
)
