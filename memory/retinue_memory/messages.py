"""Messages of a conversation, and their JSON form for rows and journals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, TypedDict

from .clock import now
from .ids import new_hex_id

Role = Literal["system", "user", "assistant", "tool"]
NOTE = "note"
"""The `metadata["origin"]` of a message in which a model noted something about the user: their meaning, not their words."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that a model asked for. `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


class Provenance(TypedDict):
    """The `metadata["memory"]` of a retrieved message: what it is, and where it comes from."""

    id: str
    """The memory's id."""
    kind: str
    """A `MemoryKind` value."""
    score: float
    """0..1, higher is better; comparable only between the memories of one query."""
    sources: list[str]
    """Ids of the messages that the memory was derived from."""
    created_at: str
    """ISO 8601 with a time zone."""
    backend: str
    """The name of the memory that returned it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    id: str = field(default_factory=new_hex_id)
    name: str | None = None
    """The speaker; None if the role says enough."""
    created_at: datetime = field(default_factory=now)
    """When it was said."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that an assistant message asks for."""
    tool_call_id: str | None = None
    """The call that a tool message answers; None for every other role."""


_FIELDS = tuple(field.name for field in fields(Message))


def message_json(message: Message) -> dict[str, Any]:
    """Every field by its name, the time in ISO 8601. The values of `metadata` must be JSON already."""
    value = {field: getattr(message, field) for field in _FIELDS}
    value["created_at"] = message.created_at.isoformat()
    value["tool_calls"] = [asdict(call) for call in message.tool_calls]
    return value


def message_of(value: Mapping[str, Any]) -> Message:
    """The inverse of `message_json`."""
    known: dict[str, Any] = dict(value)
    known["tool_calls"] = tuple(ToolCall(**call) for call in value["tool_calls"])
    known["created_at"] = datetime.fromisoformat(value["created_at"])
    return Message(**known)
