"""The contract of an engine: it runs accepted turns, those of a serial queue one at a time, and resumes them after a restart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from dataclasses import dataclass

from a2a.types import Message, SendMessageRequest, Task

from .events import Numbered
from .subscribers import Subscriber
from .turn import Accepted, Caller


class TurnHandle(ABC):
    """A turn that waits or runs, as its caller sees it."""

    @abstractmethod
    def result(self) -> Awaitable[Numbered[Task] | Message]:
        """Wait for the task, once it has ended or was interrupted, or for the agent's direct message.

        Raises A2AError or RetinueError if the turn was stopped. The task is shared: copy it before changing it.
        """

    @abstractmethod
    def result_now(self) -> Numbered[Task] | Message | None:
        """Return the result, or None if it is not known yet. Raises like `result`."""

    @abstractmethod
    def subscribe(self, *, after: int = 0) -> Subscriber:
        """Subscribe to the task as the turn finds it and to the events of the turn, without generations up to `after`.

        The only event of a turn that ends with a direct message is that message. Close the subscriber in the end.
        """

    @abstractmethod
    def acknowledge(self) -> bool:
        """Note that a caller was given the task's id. From then on a direct message becomes the end of the task.

        Returns False if it is too late: a direct message is being committed, and nobody will find the task.
        """


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted message and its turn. `turn` is None for a replay of a turn that is done."""

    accepted: Accepted
    turn: TurnHandle | None


class Engine(ABC):
    @abstractmethod
    async def start(self) -> None:
        """Resume every turn that was not done when the last process ended."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Accept no more, and let turns finish for `grace` seconds; the others go on at the next start.

        Whoever waits for one of those gets an error. Further calls wait for the first one.
        """

    @abstractmethod
    def hurry(self) -> None:
        """End the grace of a stop now."""

    @abstractmethod
    async def submit(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Submission:
        """Accept the message, as `Turns.accept` describes, and run its turn once its serial queue is free.

        Raises LimitError, and stores nothing, if there are too many turns already.
        """

    @abstractmethod
    def live(self, caller: Caller, task_id: str) -> Numbered[Task] | None:
        """Return a copy of a task that a turn is working on. Returns None if the stored one is current."""

    @abstractmethod
    async def commit_states(self, caller: Caller) -> None:
        """Commit the states of the caller's tasks that turns have changed, so that the store can find tasks by their state."""

    @abstractmethod
    def active_tasks(self) -> frozenset[str]:
        """Return the ids of the tasks that turns work on or wait for."""

    @abstractmethod
    def start_pushing(self, caller: Caller, task_id: str) -> None:
        """Push the events of the task's turns from now on: a push config was added to it."""

    @abstractmethod
    async def disown(self, tenant: str, owner: str, *, cancel: bool) -> None:
        """Drop the memory writes of the owner's turns, because the owner is being erased; `cancel` also cancels their tasks."""

    @abstractmethod
    async def cancel(self, caller: Caller, task_id: str) -> Numbered[Task]:
        """Cancel the task now. Raises TaskNotFoundError, or TaskNotCancelableError if it has ended."""

    @abstractmethod
    async def subscribe(self, caller: Caller, task_id: str) -> tuple[Numbered[Task], Subscriber]:
        """Return the current task and a subscriber to what follows, over all its turns, until it ends or is interrupted.

        Raises TaskNotFoundError, or UnsupportedOperationError if it has ended. Hand the subscriber to `unsubscribe`.
        """

    @abstractmethod
    def unsubscribe(self, task_id: str, subscriber: Subscriber) -> None: ...
