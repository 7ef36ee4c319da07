"""Memory writes on their way: owed from the commit that ends a turn, delivered in the background, found meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from retinue_memory import (
    InvocationContext,
    ManagedMemory,
    Memory,
    Message,
    Scope,
)
from retinue_memory.database.base import Alongside, Database
from retinue_memory.errors import MemoryBackendError, RetinueError
from retinue_memory.pending import overlay
from retinue_memory.recall import sound
from retinue_server.http.metrics import Metrics
from retinue_server.runtime.store.memory_outbox import MemoryOutboxRows, write_done
from retinue_server.runtime.store.rows import now
from retinue_server.runtime.turn import WRITES, DueWrite, MemoryWrite

logger = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 300.0
"""Seconds between tries: doubled each time, each a random part of it less."""
_AT_ONCE, _AT_ONCE_HERE = 8, 64
"""Scopes that one memory is written for at the same time; the second where it shares the server's database: what is written
at once shares a commit."""
_MOST_IN_HAND = 1000
"""Writes of a memory that are handed over without being read again; beyond it, they are read from their rows."""
_CANCEL_WITHIN = 1.0
"""Seconds that a write gets to stop when it is given up."""
_STOP_WITHIN = 3.0
"""Seconds that a stop waits for writes under way: one that is cut off may have arrived all the same."""
_WAIT = 0.3
"""Seconds that a recall waits for what its scope is owed to arrive; what has not is laid over its answer."""
_RECENT = 2
"""Messages that are owed and share no word with the question: it may well be about them ("I am from Italy", "my capital?")."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How many seconds a memory has for a write, and after how many tries it is given up: in about two hours."""

    seconds: float = 30.0
    tries: int = 40


class Outbox:
    """Delivers the memory writes that turns owe, each scope's in order, and knows which are still on their way.

    The rows are the truth. What was just committed is handed over in memory; rows are read at the start, and after a failure
    until nothing is left in them.
    """

    def __init__(
        self,
        rows: MemoryOutboxRows,
        memories: Mapping[str, Memory],
        metrics: Metrics | None = None,
        patience: Mapping[str, RetryPolicy] | None = None,
    ) -> None:
        self._rows = rows
        self._memories = memories
        self.metrics = metrics or Metrics(memories)
        self._patience = defaultdict(RetryPolicy, patience or {})
        self._owed: dict[tuple[str, str], list[MemoryWrite]] = {}
        self._in_hand: dict[str, list[DueWrite] | None] = {}
        """By memory, what was committed and is all that it is owed; None: its rows may say more."""
        self._delivering: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._inherited: set[tuple[str, object]] = set()
        """Writes that an earlier process left, and may have made without living to note it."""
        self._made: set[int] = set()
        """Writes that are made, but could not be noted yet."""
        self._deaf: dict[int, asyncio.Task[None]] = {}
        """Tries that were given up and do not stop: none is begun beside them."""
        self._stopping = False
        self._awaited: dict[tuple[str, str], asyncio.Event] = {}
        """Set when nothing is owed to a scope any more, where somebody waits for it."""
        self._wake: dict[str, asyncio.Event] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what earlier processes left, and begin to deliver to each memory that there is by now."""
        self._wake = {name: asyncio.Event() for name in self._memories}
        left = await self._rows.unconfirmed_writes()
        self._inherited = {_turn(write) for write in left}
        for write in left:
            self._note(write)
        for name in self._memories:
            self.metrics.count_pending(name, partial(self.pending, name))
        self._workers = [asyncio.create_task(self._deliver_forever(name)) for name in self._memories]

    async def stop(self) -> None:
        """Begin nothing more, and let what is under way end; what is not delivered stays owed."""
        self._stopping = True
        for wake in self._wake.values():
            wake.set()
        if self._workers:
            await asyncio.wait(self._workers, timeout=_STOP_WITHIN)
        for task in (*self._workers, *self._deaf.values()):
            task.cancel()
        if self._workers:
            await asyncio.wait(self._workers, timeout=_CANCEL_WITHIN)

    def pending(self, memory: str) -> int:
        """How many writes a memory is owed."""
        return sum(len(writes) for (name, _), writes in self._owed.items() if name == memory)

    def owe(self, due: Iterable[DueWrite]) -> None:
        """Take committed writes, and have them delivered."""
        for one in due:
            self._note(one.write)
            name = one.write.memory
            in_hand = self._in_hand.get(name)
            if in_hand is not None and len(in_hand) < _MOST_IN_HAND:
                in_hand.append(one)
            else:
                self._in_hand[name] = None
            if name in self._wake:
                self._wake[name].set()

    def _note(self, write: MemoryWrite) -> None:
        self._owed.setdefault(write.key, []).append(write)

    def owed(self, memory: str, scope: str) -> list[MemoryWrite]:
        return self._owed.get((memory, scope), [])

    async def retry(self) -> int:
        """Deliver what was given up, of every memory that there is; how many writes."""
        count = 0
        for name in self._memories:
            for write in await self._rows.retry_failed_writes(name):
                self._note(write)
                count += 1
            self._in_hand[name] = None
            self._wake[name].set()
        return count

    async def settle(self, memory: str, scope: str) -> None:
        """Wait a moment for what a scope is owed."""
        key = (memory, scope)
        if key in self._owed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT):
                    await self._awaited.setdefault(key, asyncio.Event()).wait()

    async def drop(self, tenant: str, user: str) -> None:
        """A user is being erased: forget what is owed on their behalf, and wait for what is just being delivered."""
        theirs = {key for key, writes in self._owed.items() if _is_of(writes[0], tenant, user)}
        for key in theirs:
            del self._owed[key]
            self._arrived(key)
        if ending := [self._delivering[key] for key in theirs if key in self._delivering]:
            await asyncio.wait(ending)

    async def _deliver_forever(self, name: str) -> None:
        wake = self._wake[name]
        while not self._stopping:
            wake.clear()
            at: int | None = None
            try:
                due, self._in_hand[name] = self._in_hand.get(name), []
                if due is None:
                    due, at = await self._read(name)
                if due:
                    await self._deliver_all(due)
                    continue
            except RetinueError:
                logger.exception("memory %s: what is owed to it could not be read", name)
                self._in_hand[name] = None
                at = now() + 1_000_000
            if self._in_hand[name]:
                continue
            # not `wait_for`: before Python 3.12 it may lose a cancellation that comes just as it is woken
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(0.01, (at - now()) / 1e6)):
                    await wake.wait()

    async def _read(self, name: str) -> tuple[list[DueWrite], int | None]:
        """What is due by the rows, or else when the next is. Where there is none, what is in hand from here on is all: it was
        committed after the rows were read.
        """
        due = await self._rows.due_writes(name, 64)
        at = None if due else await self._rows.next_write(name)
        if due or at is not None:
            self._in_hand[name] = None
        return due, at

    async def _deliver_all(self, due: list[DueWrite]) -> None:
        scopes: dict[tuple[str, str], list[DueWrite]] = {}
        for one in due:
            scopes.setdefault(one.write.key, []).append(one)
        if len(scopes) == 1:
            ((key, writes),) = scopes.items()
            return await self._deliver_in_order(key, writes)
        here = done_alongside(due[0], self._memories[due[0].write.memory], self._rows.database) is not None
        left = iter(scopes.items())

        async def deliver() -> None:
            for key, writes in left:
                await self._deliver_in_order(key, writes)

        several = (deliver() for _ in range(min(_AT_ONCE_HERE if here else _AT_ONCE, len(scopes))))
        outcomes = await asyncio.gather(*several, return_exceptions=True)
        for outcome in outcomes:  # none is left running when one fails, for all that is due is read again
            if outcome is not None:
                raise outcome

    async def _deliver_in_order(self, key: tuple[str, str], writes: list[DueWrite]) -> None:
        for due in writes:
            if self._stopping or not await self._deliver(key, due):
                self._in_hand[due.write.memory] = None
                return  # the next of this scope waits for this one

    async def _deliver(self, key: tuple[str, str], due: DueWrite) -> bool:
        write = due.write
        if not any(_same(write, owed) for owed in self._owed.get(key, ())):
            return True  # dropped since
        noted = False
        ending = self._delivering[key] = asyncio.get_running_loop().create_future()
        try:
            if due.id not in self._made:
                noted = await self._write(due)
        except Exception as error:  # noqa: BLE001 - kept, retried and shown
            await self._retry(key, due, error)
            return False
        finally:
            del self._delivering[key]
            ending.set_result(None)
        if not noted:
            self._made.add(due.id)
            await self._rows.write_done(due)
            self._made.discard(due.id)
        self.metrics.tried(write.memory, "stored")
        self._gone(key, write)
        return True

    async def _write(self, due: DueWrite) -> bool:
        """Hand a write to its memory; whether its row is gone already. Raises what that does, and TimeoutError."""
        memory, seconds = self._memories[due.write.memory], self._patience[due.write.memory].seconds
        done = done_alongside(due, memory, self._rows.database)
        if done is None:
            await self._write_elsewhere(due, memory, seconds)
            return False
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._hand_over(due, memory, alongside=done)
        except TimeoutError as error:
            raise _late(seconds) if limit.expired() else error from None
        except asyncio.CancelledError:
            if _is_canceled():
                raise
            raise _stopped() from None
        return done.committed

    async def _write_elsewhere(self, due: DueWrite, memory: Memory, seconds: float) -> None:
        """Hand a write to a memory that may not stop when it is told to: in a task, which can be left behind."""
        work = self._deaf.pop(due.id, None) or asyncio.create_task(self._hand_over(due, memory))
        try:
            await asyncio.wait((work,), timeout=seconds)
        finally:
            work.cancel()
        if not work.done():
            await asyncio.wait((work,), timeout=_CANCEL_WITHIN)
            if not work.done():
                self._deaf[due.id] = work
                work.add_done_callback(_seen)
            raise _late(seconds)
        if work.cancelled():
            raise _stopped()
        work.result()

    async def _hand_over(self, due: DueWrite, memory: Memory, **kwargs: Any) -> None:
        write = due.write
        messages = list(write.messages)
        doubtful = due.tries > 0 or _turn(write) in self._inherited
        try:
            if doubtful and await memory.already_written(messages, ctx=write.context):
                return
        except MemoryBackendError as error:
            raise MemoryBackendError(f"it cannot tell whether it has the write: {error}") from error
        await memory.update(messages, ctx=write.context, **kwargs)

    async def _retry(self, key: tuple[str, str], due: DueWrite, error: Exception) -> None:
        problem, name = f"{type(error).__name__}: {error}", due.write.memory
        last = due.tries + 1 >= self._patience[name].tries
        owed = await self._rows.write_failed(due, problem, None if last else now() + int(1e6 * backoff(due.tries)))
        if not owed:  # its commit came after all, or it was dropped
            logger.info("memory %s: a write of task %s is not owed any longer: %s", name, due.task_id, problem)
        elif last:
            logger.error("memory %s: a write of task %s is given up: %s", name, due.task_id, problem)
            self.metrics.tried(name, "failed", error)
        else:
            logger.warning("memory %s: a write of task %s will be tried again: %s", name, due.task_id, problem)
            self.metrics.tried(name, "retried", error)
            return
        self._gone(key, due.write)

    def _gone(self, key: tuple[str, str], write: MemoryWrite) -> None:
        self._inherited.discard(_turn(write))
        left = [other for other in self._owed.get(key, ()) if not _same(write, other)]
        if left:
            self._owed[key] = left
        else:
            self._owed.pop(key, None)
            self._arrived(key)

    def _arrived(self, key: tuple[str, str]) -> None:
        if (awaited := self._awaited.pop(key, None)) is not None:
            awaited.set()


class OutboxMemory(Memory):
    """A memory as turns see it: a write is owed from the commit of its step on, or else from the turn's last; a recall sees
    what is still owed."""

    def __init__(self, name: str, memory: Memory, outbox: Outbox) -> None:
        self.name = name
        self._memory = memory
        self._outbox = outbox

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        scope = Scope.of(kwargs.get("ctx")).key
        await self._outbox.settle(self.name, scope)
        owed = self._owed(query, scope)

        def with_owed(answer: Sequence[Message]) -> list[Message]:
            found = sound(answer, top_k)
            known = {message.content for message in found}
            return [*(message for message in owed if message.content not in known), *found][:top_k]

        with self._outbox.metrics.retrieving(self.name):
            try:
                found = await self._memory.retrieve(query, top_k=top_k, **kwargs)
                return with_owed(found) if owed else found
            except MemoryBackendError as error:
                error.found = with_owed(error.found)
                raise

    def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
        return self._owed(query, Scope.of(ctx).key)[:top_k]

    def _owed(self, query: str, scope: str) -> list[Message]:
        owed = self._outbox.owed(self.name, scope)
        if not owed:
            return []
        said = [message for write in owed for message in write.messages]
        return overlay(query, said, backend=self.name, recent=_RECENT)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        if not self.take(messages, ctx=kwargs["ctx"]):
            await self._memory.update(messages, **kwargs)

    def take(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        writes = WRITES.get()
        if writes is None:
            return False
        writes.append(MemoryWrite(self.name, ctx, list(messages)))
        return True

    @property
    def managed(self) -> ManagedMemory | None:
        return self._memory.managed


def done_alongside(due: DueWrite, memory: Memory, database: Database) -> Alongside | None:
    """The operation that notes a write as done, for a memory that takes it into a commit of `database`; None for others."""
    return Alongside(partial(write_done, due)) if memory.database is database else None


def backoff(tries: int, first: float = _FIRST_DELAY) -> float:
    """Seconds until the next try after `tries` failed ones before this; `first` after none."""
    delay: float = min(_LONGEST_DELAY, first * 2.0**tries)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _is_of(write: MemoryWrite, tenant: str, user: str) -> bool:
    return (write.context.tenant, write.context.user_id) == (tenant, user)


def _same(one: MemoryWrite, other: MemoryWrite) -> bool:
    """Whether it is one write, in hand or read from its row: the same messages of the same turn."""
    if one is other:
        return True
    ids = [[message.id for message in write.messages] for write in (one, other)]
    return _turn(one) == _turn(other) and ids[0] == ids[1]


def _late(seconds: float) -> TimeoutError:
    return TimeoutError(f"not written within {seconds:g} s")


def _stopped() -> MemoryBackendError:
    return MemoryBackendError("the memory stopped in the middle of it")


def _is_canceled() -> bool:
    """Whether it is the task at hand that is to stop, not something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # who tries next hears of it, if anybody does


def _turn(write: MemoryWrite) -> tuple[str, object]:
    return write.memory, write.context.turn_id
