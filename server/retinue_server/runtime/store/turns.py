"""Turns from their acceptance to their last commit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from a2a.types import SendMessageRequest, Task, TaskStatus

from retinue_memory.database.base import Database
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import Accepted, Caller, DueWrite, MemoryWrite, Progress, Turn, TurnState

from . import acceptance, recording, recovery


class Turns:
    """What an engine does to turns. Everything raises StoreError if the database fails."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def accept(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Accepted:
        """Store a message and its turn, and a new task if the message names none, in one commit. The turn is running,
        unless an earlier turn of its serial queue is open; then it waits.

        The same message again, of the same owner, is a replay: nothing is stored. Raises TaskNotFoundError;
        UnsupportedOperationError if the task has ended; InvalidParamsError for a contextId or user that is not the task's,
        and for a messageId that was used with another content.
        """
        return await self._db.write(partial(acceptance.accept, caller, request, user, extensions), checked=True)

    async def record(self, progress: Progress) -> list[DueWrite]:
        """Write what a turn did. Returns its memory writes, now pending.

        Writes nothing and raises StaleAttempt if another attempt owns the turn or the task has ended; Continues if the task
        would complete although another message waits for it.
        """
        return await self._db.write(partial(recording.record, progress), checked=True)

    async def mark(self, turn: Turn, state: TurnState) -> None:
        """Note that a turn is running, waits, or is done without a result since its task has ended."""
        await self._db.write(partial(recording.mark, turn, state))

    async def end(
        self, caller: Caller, task: Task, found: TaskStatus, event: bytes, writes: Sequence[MemoryWrite] = ()
    ) -> list[DueWrite] | None:
        """Write the end of a task that has no running turn. Returns its memory writes, now pending.

        Returns None and writes nothing if the task's status is not `found` any more. `event`, a serialised StreamResponse,
        is pushed to the task's configs.
        """
        return await self._db.write(partial(recording.end, caller, task, found, event, writes))

    async def recover(self) -> list[Accepted]:
        """The turns that were open when the last process ended, oldest first, each with its attempt raised.

        They wait: if the process stops again, only a turn that was marked as running or recorded something has crashed.
        """
        return await self._db.write(recovery.recover)

    async def reload(self, turn: Turn) -> Numbered[Task] | None:
        """The task of a turn that waited. Returns None if it was deleted."""
        return await self._db.read(partial(recovery.reload, turn))

    async def steps(self, turn: Turn) -> dict[str, str | None]:
        """The journal of a turn: results as JSON by key; None for a step that was started and must not be repeated."""
        return await self._db.read(partial(recovery.steps, turn))
