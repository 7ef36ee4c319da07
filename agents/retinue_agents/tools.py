"""The contract of a tool: its description for a model, the context of a call, and its result.

A Python function (`FunctionTool`) is one kind of tool and the memory tools are another; a further kind needs a class with
these three members, and a line in `tool_registry.open_tool` if a config can name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from retinue_memory import InvocationContext, ToolCall, ToolSpec

from .turn_memory import MemoryEffects, TurnMemory, no_memory

Retry = Literal["always", "never"]


class NeedInput(Exception):
    """Raise it in a tool to ask the user: the turn ends with `question`, and continues with their next message."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


@dataclass(frozen=True, slots=True)
class ToolContext:
    """One call of a tool. A function gets it in a parameter annotated with this type, which the model does not see."""

    ctx: InvocationContext
    call: ToolCall
    key: str
    """Idempotency key: the same in every attempt of this call, unique among all calls."""
    memory: TurnMemory = field(default_factory=no_memory)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of a call. `content` is for the model; if `failed`, it says what went wrong."""

    content: str
    failed: bool = False
    effects: MemoryEffects = field(default_factory=MemoryEffects)
    """What the call did to the user's memory, as JSON. The journal keeps it, so a replayed call has the same effects."""


@runtime_checkable
class Tool(Protocol):
    """Something a model can call."""

    @property
    def spec(self) -> ToolSpec:
        """The name, description and parameters (a JSON Schema of type object) that the model sees."""
        ...

    @property
    def retry(self) -> Retry:
        """ "never": a call whose outcome a crash left unknown is not repeated; the turn ends with OutcomeUnknown."""
        ...

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run the call. `arguments` are as the model sent them, not validated.

        Failures are results with `failed` set. Raises NeedInput, and lets cancellation through, but raises nothing else.
        """
        ...
