"""A message as a JSON value, for rows and journals, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from .contract import Message, ToolCall

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
