"""The contract of an engine: it runs accepted turns, each lane's one after the other, and survives what stops it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from a2a.types import SendMessageRequest, Task

from .run import Run
from .subscribers import Subscriber
from .turn import Accepted, Caller


@dataclass(frozen=True, slots=True)
class Submission:
    """A stored message: what was accepted, and the run of its turn. No run: a replay of a turn that is done."""

    accepted: Accepted
    run: Run | None


class Engine(ABC):
    @abstractmethod
    async def start(self) -> None:
        """Go on with every turn that was not done when the last process ended."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Accept no more, and let turns finish for `grace` seconds; what is not done by then goes on at the next start.

        Whoever waits for one of those is told so. Further calls wait for the first one's end.
        """

    @abstractmethod
    def hurry(self) -> None:
        """The grace of a stop is over now."""

    @abstractmethod
    async def submit(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Submission:
        """Accept the message, as `Turns.accept` describes, and run its turn when its lane is free.

        Raises LimitError where one more turn would be too many, and nothing is stored.
        """

    @abstractmethod
    def live(self, caller: Caller, task_id: str) -> Task | None:
        """A copy of a task that a turn is changing now; None: the store knows it best."""

    @abstractmethod
    def at_work(self) -> frozenset[str]:
        """The ids of the tasks that turns are changing now, or are about to."""

    @abstractmethod
    def pushes(self, caller: Caller, task_id: str) -> None:
        """A push config was added to the task: push what its turn says from now on."""

    @abstractmethod
    async def disown(self, tenant: str, owner: str, *, cancel: bool) -> None:
        """The owner is being erased: no turn of theirs that runs or waits writes a memory; `cancel` ends their tasks too."""

    @abstractmethod
    async def cancel(self, caller: Caller, task_id: str) -> Task:
        """End the task as CANCELED, now. Raises TaskNotFoundError, or TaskNotCancelableError where it has ended."""

    @abstractmethod
    async def subscribe(self, caller: Caller, task_id: str) -> tuple[Task, Subscriber]:
        """The task as it is, and what happens to it from then on, over all its turns, until it ends or is interrupted.

        Raises TaskNotFoundError, or UnsupportedOperationError where it has ended. Hand the subscriber to `unsubscribe`.
        """

    @abstractmethod
    def unsubscribe(self, task_id: str, subscriber: Subscriber) -> None: ...
