"""The outcome of a turn: a task, a direct message or an error, and whoever waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from a2a.types import Message, Task

from .events import Numbered


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exactly one of the three is set."""

    task: Numbered[Task] | None = None
    """The task once it has ended or was interrupted."""
    message: Message | None = None
    """The agent's direct message, which takes the place of a task."""
    error: Exception | None = None
    """Why the turn has no answer."""

    def result(self) -> Numbered[Task] | Message:
        """Return the task or the message, or raise the error."""
        if self.error is not None:
            raise self.error
        answer = self.task or self.message
        assert answer is not None  # noqa: S101 - for the type checkers
        return answer


class PendingOutcome:
    """The outcome of a turn that may still be running. The first one counts.

    Like an `asyncio.Future` under `asyncio.shield`, with one iteration of the event loop less: a caller who is cancelled does
    not cancel the others.
    """

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._followers: list[PendingOutcome] = []

    def resolve(self, outcome: Outcome) -> None:
        """Set the outcome, unless there is one."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for follower in self._followers:
            follower.resolve(outcome)

    def follow(self, other: PendingOutcome) -> None:
        """Resolve with the outcome of another turn, which continues this one's task."""
        if other.outcome is not None:
            self.resolve(other.outcome)
        else:
            other._followers.append(self)

    async def wait(self) -> Numbered[Task] | Message:
        """Return the task or the message once it is known; raises the error if there is one instead."""
        while self.outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return self.outcome.result()
