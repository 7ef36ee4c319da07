"""The commits of one turn: its snapshot, steps, memory writes and pushes, in one transaction each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from a2a.types import Message

from retinue_memory.errors import RetinueError

from .events import Event, Snapshot, payload_of
from .store.turns import Turns
from .timer import CoalescingTimer
from .turn import Continues, DueWrite, MemoryWrite, Progress, Turn

RECORD_WITHIN_S = 0.05
"""How long a step or a push waits for others before it is committed; a shorter turn has one commit, at its end."""


@dataclass(frozen=True, slots=True)
class Commits:
    """How the turns of an engine commit: where to, after which delay, and who learns what each commit has to deliver."""

    turns: Turns
    timer: CoalescingTimer
    committed: Callable[[Progress | None, Sequence[DueWrite]], None]


class Recorder:
    """Commits what one turn does. Steps, and events if there are push configs, are committed soon; all else only with them,
    with a question, or with the end of the turn."""

    def __init__(
        self, turn: Turn, snapshot: Snapshot, commits: Commits, *, pushes: bool, failed: Callable[[BaseException], None]
    ) -> None:
        """`failed` is called if a commit fails that nobody awaits."""
        self._turn = turn
        self._snapshot = snapshot
        self._commits = commits
        self._pushes = pushes
        self._keeps_writes = True
        self._asked = False
        self._changed = False
        self._events: list[Event] = []
        self._steps: list[tuple[str, str | None]] = []
        self._writes: list[MemoryWrite] = []
        self._commit: asyncio.Task[None] | None = None
        self._failed: Callable[[BaseException], None] | None = failed

    @property
    def pushes(self) -> bool:
        """Whether events are pushed."""
        return self._pushes

    def start_pushing(self) -> None:
        """Push the events from now on: the task has push configs."""
        self._pushes = True

    def drop_writes(self) -> None:
        """Record no memory writes any more: their owner is being erased."""
        self._keeps_writes = False

    def set_asked(self, asked: bool) -> None:
        """Note whether the turn has interrupted its task."""
        self._asked = asked

    def add_event(self, event: Event) -> None:
        """Note an event that changed the task."""
        self._changed = True
        if self._pushes:
            self._events.append(event)
            self._record_soon()

    def add_step(self, key: str, result: str | None, writes: Sequence[MemoryWrite] = ()) -> None:
        """Add the result of a step with the memory writes it caused. None means that it started and must not be repeated."""
        self._steps.append((key, result))
        self._writes += writes
        self._record_soon()

    async def flush(self) -> None:
        """Commit what has happened so far."""
        await self._idle()
        if self._changed or self._steps:
            self._commit = asyncio.create_task(self._record(self._take()))
            await asyncio.shield(self._commit)

    async def flush_if(self, allowed: Callable[[], bool]) -> None:
        """Commit what has happened so far, if `allowed` still holds when no other commit is under way."""
        while self._commit is not None and not self._commit.done():
            await asyncio.wait((self._commit,))
        if self._changed and allowed():
            self._commit = asyncio.create_task(self._record(self._take()))
            self._commit.add_done_callback(self._check)
            await asyncio.wait((self._commit,))

    async def commit_steps(self) -> None:
        """Commit the steps that are not committed yet. Raises what the latest commit raised, even if it was not awaited."""
        await self._idle()
        if self._steps:
            await self.flush()
        elif self._commit is not None:
            self._commit.result()

    async def finish(self, answer: Message | None, writes: Sequence[MemoryWrite]) -> None:
        """Commit the end of the turn, with the memory writes that come due by it.

        If it raises RetinueError or Continues, nothing is lost: call it again.
        """
        await self._idle()
        pending = self._events, self._steps, self._writes
        try:
            await self._record(self._take(done=True, answer=answer, writes=writes))
        except (Continues, RetinueError):
            self._events, self._steps, self._writes = pending
            raise

    def close(self) -> None:
        """Start no commit any more."""
        self._commits.timer.forget(self._record_now)
        self._failed = None  # a run and its recorder refer to each other: this leaves nothing to the garbage collector

    async def _idle(self) -> None:
        """Wait for the commit that is under way; its failure is reported to whoever started it."""
        self._commits.timer.forget(self._record_now)
        while self._commit is not None and not self._commit.done():
            await asyncio.wait((self._commit,))

    def _record_soon(self) -> None:
        self._commits.timer.ask(self._record_now)

    def _record_now(self) -> None:
        if self._commit is not None and not self._commit.done():
            self._record_soon()
        elif self._events or self._steps:
            self._commit = asyncio.create_task(self._record(self._take()))
            self._commit.add_done_callback(self._check)

    def _check(self, commit: asyncio.Task[None]) -> None:
        error = None if commit.cancelled() else commit.exception()
        if error is not None and self._failed is not None:
            self._failed(error)

    async def _record(self, progress: Progress) -> None:
        pending = await self._commits.turns.record(progress)
        if progress.pushes or pending:
            self._commits.committed(progress, pending)

    def _take(
        self, *, done: bool = False, answer: Message | None = None, writes: Sequence[MemoryWrite] = ()
    ) -> Progress:
        """Return what happened since the last commit, and forget it: a commit that fails ends the turn."""
        task = self._snapshot.task
        progress = Progress(
            self._turn,
            state=task.status.state,
            status_at=task.status.timestamp.ToMicroseconds(),
            snapshot=task.SerializeToString(),
            generation=self._snapshot.generation,
            pushes=[payload_of(event) for event in self._events],
            steps=self._steps,
            writes=[*self._writes, *writes] if self._keeps_writes else (),
            done=done,
            asked=self._asked,
            answer=answer,
        )
        self._events, self._steps, self._writes = [], [], []
        self._changed = False
        return progress
