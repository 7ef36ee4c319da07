"""Messages of a conversation, and their JSON values for rows and journals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant", "tool"]
NOTE = "note"
"""The `metadata["origin"]` of a message that a model wrote down about the user: their meaning, not their words."""


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asked for. `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


class Provenance(TypedDict):
    """What `metadata["memory"]` of a retrieved message says: why it is there, and where it came from."""

    id: str
    kind: str
    """A `MemoryKind` value."""
    score: float
    """0..1 within one answer, higher is better; comparable between the hits of one query only."""
    sources: list[str]
    """Ids of the messages that this memory was made from."""
    created_at: str
    """ISO 8601 with time zone."""
    backend: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. `name` is the speaker; `tool_call_id` the call that a tool message answers."""

    role: Role
    content: str
    id: str = field(default_factory=_new_id)
    name: str | None = None
    created_at: datetime = field(default_factory=_now)
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


_FIELDS = tuple(field.name for field in fields(Message))


def message_json(message: Message) -> dict[str, Any]:
    """Every field by its name; the time as ISO 8601. What `metadata` holds must be JSON already."""
    value = {field: getattr(message, field) for field in _FIELDS}
    value["created_at"] = message.created_at.isoformat()
    value["tool_calls"] = [asdict(call) for call in message.tool_calls]
    return value


def message_of(value: Mapping[str, Any]) -> Message:
    """The message that `message_json` made the value of."""
    known: dict[str, Any] = dict(value)
    known["tool_calls"] = tuple(ToolCall(**call) for call in value["tool_calls"])
    known["created_at"] = datetime.fromisoformat(value["created_at"])
    return Message(**known)
