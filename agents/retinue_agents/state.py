"""The conversation that an agent continues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retinue_memory import Message


@dataclass(slots=True)
class State:
    """A conversation, oldest message first; the agent answers its last user message."""

    messages: list[Message] = field(default_factory=list[Message])
    artefacts: list[Any] = field(default_factory=list[Any])

    def add_message(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def last_message(self) -> Message | None:
        return self.messages[-1] if self.messages else None
