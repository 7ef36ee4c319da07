"""The events that `Agent.stream` yields, in the order in which they happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retinue_memory import Message, ToolCall, Usage

MemoryOperation = Literal["retrieve", "update", "forget"]


@dataclass(frozen=True, slots=True)
class MemoryRetrieved:
    """Memories that the model will see, best first: recalled before its first step, or found by a search it asked for."""

    messages: tuple[Message, ...]
    kind: Literal["memory_retrieved"] = "memory_retrieved"


@dataclass(frozen=True, slots=True)
class MemoryFailed:
    """A memory could not be read or changed. The turn continues."""

    operation: MemoryOperation
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
    """The model called a tool."""

    call: ToolCall
    kind: Literal["tool_called"] = "tool_called"


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """A tool call ended. If `failed`, the content says what went wrong; the model sees it and may try something else."""

    call: ToolCall
    content: str
    failed: bool = False
    kind: Literal["tool_returned"] = "tool_returned"


@dataclass(frozen=True, slots=True)
class InputRequired:
    """A tool asked the user a question. The turn ends here; their next message continues it."""

    content: str
    kind: Literal["input_required"] = "input_required"


@dataclass(frozen=True, slots=True)
class StepLimitReached:
    """The model called tools in its last allowed LLM step, so there is no final answer."""

    steps: int
    kind: Literal["step_limit_reached"] = "step_limit_reached"


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The answer. Its memory write has started and completes whether or not the stream is read further."""

    content: str
    usage: Usage = field(default_factory=Usage)
    kind: Literal["final_answer"] = "final_answer"


@dataclass(frozen=True, slots=True)
class MemoryUpdated:
    """Every memory accepted the turn, or a note that the model saved."""

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
