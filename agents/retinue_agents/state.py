"""What an agent takes, says while it works, and needs of whoever runs it: State, events, Journal, ToolContext."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retinue_memory import (
    Message,
)


@dataclass(slots=True)
class State:
    """The conversation so far, oldest first; the last message is the one to answer."""

    messages: list[Message] = field(default_factory=list[Message])
    artefacts: list[Any] = field(default_factory=list[Any])

    def add_message(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def last_message(self) -> Message | None:
        return self.messages[-1] if self.messages else None
