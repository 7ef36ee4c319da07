"""The delivery of pending writes to one memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from retinue_memory import Memory
from retinue_memory.clock import now_us
from retinue_memory.database.base import Alongside, Database
from retinue_memory.delivery import Deliveries, DeliveryWorker, Group, group
from retinue_memory.errors import MemoryBackendError
from retinue_memory.retry import RetryPolicy
from retinue_server.http.metrics import Metrics
from retinue_server.runtime.store.memory_outbox import MemoryOutboxRows, write_done
from retinue_server.runtime.turn import DueWrite

from .pending_writes import Key, PendingWrites

log = logging.getLogger(__name__)

DEFAULT_POLICY = RetryPolicy(timeout_s=30.0, tries=40)
"""Gives a write up after about two hours."""
_SCOPES_AT_ONCE, _SCOPES_AT_ONCE_SHARED = 8, 64
"""The second for a memory that shares the server's database: what is written at the same time shares a commit."""
_MAX_COMMITTED = 1000
_ROWS_AT_ONCE = 64
_CANCEL_TIMEOUT_S = 1.0


class MemoryDelivery(Deliveries[Key, DueWrite]):
    """Delivers the writes of one memory, each scope's in their order.

    The rows of the outbox are the truth. While they hold nothing that is not in `_committed`, what a turn commits is
    delivered from there and its row is not read; after a failure, and for more than 1,000 writes, the rows are read until
    none is left. A write to a memory that shares the server's database takes no task, and its row goes with its commit.
    """

    def __init__(
        self,
        name: str,
        memories: Mapping[str, Memory],
        rows: MemoryOutboxRows,
        pending: PendingWrites,
        metrics: Metrics,
        policy: RetryPolicy = DEFAULT_POLICY,
        inherited: Iterable[str | None] = (),
    ) -> None:
        self._memory_name = name
        self.name = f"memory {name}"
        self.policy = policy
        self._memories = memories
        self._rows = rows
        self._pending = pending
        self._metrics = metrics
        self._committed: dict[Key, list[DueWrite]] | None = None
        """What the rows hold, by scope; None if they may hold more."""
        self._committed_count = 0
        self._inherited = set(inherited)
        """Turns whose writes an earlier process left: it may have made them without living to note it."""
        self._written: set[int] = set()
        """Writes that the memory has, but whose rows could not be deleted yet."""
        self._abandoned: dict[int, asyncio.Task[None]] = {}
        """Tries that timed out and did not stop when cancelled: the next try waits for them instead of starting beside."""
        self._shares_database = False
        self.worker = DeliveryWorker(self)

    def add(self, due: DueWrite) -> None:
        """Deliver a write that was just committed."""
        if self._committed is not None and self._committed_count < _MAX_COMMITTED:
            self._committed.setdefault(due.write.key, []).append(due)
            self._committed_count += 1
        else:
            self._committed = None
        self.worker.wake()

    def read_rows(self) -> None:
        """Deliver what the rows hold, whatever is known of them."""
        self._committed = None
        self.worker.wake()

    async def stop(self, timeout_s: float) -> None:
        """Start nothing more, wait for what is running for `timeout_s`, then cancel it."""
        await self.worker.stop(timeout_s)
        for task in self._abandoned.values():
            task.cancel()

    # -- for the worker -----------------------------------------------------------------------------------------------

    @property
    def at_once(self) -> int:
        return _SCOPES_AT_ONCE_SHARED if self._shares_database else _SCOPES_AT_ONCE

    @property
    def in_batches(self) -> bool:
        # benchmarks.server, 32 clients with memory: 5.6 instead of 6.4 ms CPU a task
        return True

    async def due(self, busy: Collection[Key], limit: int) -> tuple[Sequence[Group[Key, DueWrite]], float | None]:
        if self._committed is not None:
            committed = self._committed
            if not committed:
                return (), None
            keys = list(islice((key for key in committed if key not in busy), limit))
            groups = [(key, committed.pop(key)) for key in keys]
            self._committed_count -= sum(len(writes) for _, writes in groups)
            return groups, None
        # if the rows turn out to be empty, what is committed from here on is all there is
        self._committed, self._committed_count = {}, 0
        rows_left = True
        try:
            due = await self._rows.due_writes(self._memory_name, _ROWS_AT_ONCE)
            at = now_us() if due else await self._rows.next_write(self._memory_name)
            rows_left = at is not None
        finally:
            if rows_left:
                self._committed = None
        return group(due, _key, busy, limit), None if at is None else (at - now_us()) / 1e6

    async def deliver(self, item: DueWrite) -> None:
        write = item.write
        if write not in self._pending:
            return  # its user was erased meanwhile
        deleted = item.id not in self._written and await self._write(item)
        if not deleted:
            self._written.add(item.id)
            await self._rows.write_done(item)
            self._written.discard(item.id)
        self._metrics.tried(write.memory, "stored")
        self._remove(item)

    async def failed(self, item: DueWrite, error: Exception, retry_in_s: float | None) -> None:
        self._committed = None
        if item.id in self._written:
            raise error  # the memory has it: only the row is left to delete
        problem, name = f"{type(error).__name__}: {error}", item.write.memory
        retry_at = None if retry_in_s is None else now_us() + int(1e6 * retry_in_s)
        if not await self._rows.write_failed(item, problem, retry_at):  # its commit came after all, or it was dropped
            log.info(
                "memory %s: a write of task %s failed, but is not pending any more: %s", name, item.task_id, problem
            )
        elif retry_at is None:
            log.error("memory %s: a write of task %s failed for the last time: %s", name, item.task_id, problem)
            self._metrics.tried(name, "failed", error)
        else:
            log.warning("memory %s: a write of task %s failed and will be tried again: %s", name, item.task_id, problem)
            self._metrics.tried(name, "retried", error)
            return
        self._remove(item)

    def _remove(self, item: DueWrite) -> None:
        self._inherited.discard(item.write.context.turn_id)
        self._pending.remove(item.write)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, due: DueWrite) -> bool:
        """Hand a write to its memory. Returns whether its row was deleted with it; raises what the memory does."""
        memory, timeout_s = self._memories[due.write.memory], self.policy.timeout_s
        done = done_alongside(due, memory, self._rows.database)
        self._shares_database = done is not None
        if done is None:
            await self._write_in_task(due, memory)
            return False
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await self._update(due, memory, alongside=done)
        except TimeoutError as error:
            raise self._timed_out() if limit.expired() else error from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise _stopped() from None
        return done.committed

    async def _write_in_task(self, due: DueWrite, memory: Memory) -> None:
        """Write to a memory that may ignore being cancelled, in a task that can be left behind."""
        task = self._abandoned.pop(due.id, None) or asyncio.create_task(self._update(due, memory))
        try:
            await asyncio.wait((task,), timeout=self.policy.timeout_s)
        finally:
            task.cancel()
        if not task.done():
            await asyncio.wait((task,), timeout=_CANCEL_TIMEOUT_S)
            if not task.done():
                self._abandoned[due.id] = task
                task.add_done_callback(_retrieve_exception)
            raise self._timed_out()
        if task.cancelled():
            raise _stopped()
        task.result()

    async def _update(self, due: DueWrite, memory: Memory, **kwargs: Any) -> None:
        write = due.write
        messages = list(write.messages)
        maybe_written = not memory.queues_writes and (due.tries > 0 or write.context.turn_id in self._inherited)
        try:
            if maybe_written and await memory.already_written(messages, ctx=write.context):
                return
        except MemoryBackendError as error:
            raise MemoryBackendError(f"cannot find out whether the write was made before: {error}") from error
        if memory.queues_writes:
            kwargs["wait"] = False
        await memory.update(messages, ctx=write.context, **kwargs)

    def _timed_out(self) -> TimeoutError:
        return TimeoutError(f"not written within {self.policy.timeout_s:g} s")


def done_alongside(due: DueWrite, memory: Memory, database: Database) -> Alongside | None:
    """The operation that deletes the row of a write, for a memory that takes it into a commit of `database`; None for others."""
    return Alongside(partial(write_done, due)) if memory.database is database else None


def _key(due: DueWrite) -> Key:
    return due.write.key


def _stopped() -> MemoryBackendError:
    return MemoryBackendError("the memory cancelled the write itself")


def _is_cancelled() -> bool:
    """Whether the current task was cancelled, not something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # the next try raises it, if there is one
