"""The contract of an executor as the runtime runs it: an a2a-sdk `AgentExecutor` that also knows its requests and its memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from a2a.server.agent_execution import AgentExecutor
from a2a.types import SendMessageRequest, Task

from .turn import MemoryWrite


class TurnExecutor(AgentExecutor):
    """Runs turns. `execute` need not enqueue the task of a new turn first: the runtime publishes it before the first event."""

    events_need_checks: bool = True
    """Whether an event may hold what cannot be stored, such as a number that is not finite."""

    @abstractmethod
    def check(self, request: SendMessageRequest) -> None:
        """Raise InvalidParamsError for a request that `execute` could not run; called before anything is stored."""

    @abstractmethod
    def pending_writes(self, task: Task, tenant: str, written: Sequence[MemoryWrite]) -> list[MemoryWrite]:
        """Return the memory writes that the end of `task` leaves, apart from the messages that are in `written` already."""
