"""Memory writes on their way: owed from the commit that ends a turn, delivered in the background, found meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any

from recollect_memory import InvocationContext, ManagedMemory, Memory, Message, Scope, ToolCall
from recollect_memory.errors import MemoryBackendError, RecollectError
from recollect_memory.overlay import overlay
from recollect_memory.recall import sound
from recollect_server.metrics import Metrics

from .run import CURRENT, STEP
from .sqlite import now
from .store import Store
from .turn import DueWrite, MemoryWrite

logger = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 300.0
"""Seconds between tries: doubled each time, each a random part of it less."""
_AT_ONCE = 8
_CANCEL_WITHIN = 1.0
"""Seconds that a write gets to stop when it is given up."""
_STOP_WITHIN = 3.0
"""Seconds that a stop waits for writes under way: one that is cut off may have arrived all the same."""
_WAIT = 0.3
"""Seconds that a recall waits for what its scope is owed to arrive; what has not is laid over its answer."""
_RECENT = 2
"""Messages that are owed and share no word with the question: it may well be about them ("I am from Italy", "my capital?")."""
_CONTEXT = tuple(field.name for field in fields(InvocationContext))
_MESSAGE = tuple(field.name for field in fields(Message))


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a memory has for a write, and after how many tries it is given up: in about two hours."""

    seconds: float = 30.0
    tries: int = 40


class Outbox:
    """Delivers the memory writes that turns owe, each scope's in order, and knows which are still on their way."""

    def __init__(
        self,
        store: Store,
        memories: Mapping[str, Memory],
        metrics: Metrics | None = None,
        patience: Mapping[str, Patience] | None = None,
    ) -> None:
        self._store = store
        self._memories = memories
        self.metrics = metrics or Metrics(memories)
        self._patience = defaultdict(Patience, patience or {})
        self._owed: dict[tuple[str, str], list[MemoryWrite]] = {}
        self._delivering: set[tuple[str, str]] = set()
        self._inherited: set[tuple[str, object]] = set()
        """Writes that an earlier process left, and may have made without living to note it."""
        self._made: set[int] = set()
        """Writes that are made, but could not be noted yet."""
        self._deaf: dict[int, asyncio.Task[None]] = {}
        """Tries that were given up and do not stop: none is begun beside them."""
        self._stopping = False
        self._arrived = asyncio.Condition()
        self._wake: dict[str, asyncio.Event] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what earlier processes left, and begin to deliver to each memory that there is by now."""
        self._wake = {name: asyncio.Event() for name in self._memories}
        left = await self._store.unconfirmed_writes()
        self._inherited = {_turn(write) for write in left}
        self.owe(left)
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

    def owe(self, writes: Iterable[MemoryWrite]) -> None:
        """Note committed writes, and have them delivered."""
        for write in writes:
            self._owed.setdefault(_key(write), []).append(write)
            if write.memory in self._wake:
                self._wake[write.memory].set()

    def owed(self, memory: str, scope: str) -> list[MemoryWrite]:
        return self._owed.get((memory, scope), [])

    async def retry(self) -> int:
        """Deliver what was given up, of every memory that there is; how many writes."""
        retried = [await self._store.retry_failed_writes(name) for name in self._memories]
        for writes in retried:
            self.owe(writes)
        return sum(map(len, retried))

    async def settle(self, memory: str, scope: str) -> None:
        """Wait a moment for what a scope is owed."""
        key = (memory, scope)
        if key in self._owed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT), self._arrived:
                    await self._arrived.wait_for(lambda: key not in self._owed)

    async def drop(self, tenant: str, user: str) -> None:
        """A user is being erased: forget what is owed on their behalf, and wait for what is just being delivered."""
        theirs = {key for key, writes in self._owed.items() if _is_of(writes[0], tenant, user)}
        for key in theirs:
            del self._owed[key]
        async with self._arrived:
            await self._arrived.wait_for(lambda: not theirs & self._delivering)

    async def _deliver_forever(self, name: str) -> None:
        wake = self._wake[name]
        while not self._stopping:
            wake.clear()
            try:
                due = await self._store.due_writes(name, 64)
                if due:
                    await self._deliver_all(due)
                    continue
                at = await self._store.next_write(name)
            except RecollectError:
                logger.exception("memory %s: what is owed to it could not be read", name)
                at = now() + 1_000_000
            # not `wait_for`: before Python 3.12 it may lose a cancellation that comes just as it is woken
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(0.01, (at - now()) / 1e6)):
                    await wake.wait()

    async def _deliver_all(self, due: list[DueWrite]) -> None:
        scopes: dict[tuple[str, str], list[DueWrite]] = {}
        for one in due:
            scopes.setdefault(_key(one.write), []).append(one)
        gate = asyncio.Semaphore(_AT_ONCE)
        outcomes = await asyncio.gather(
            *(self._deliver_in_order(writes, gate) for writes in scopes.values()), return_exceptions=True
        )
        for outcome in outcomes:  # none is left running when one fails, for all that is due is read again
            if outcome is not None:
                raise outcome

    async def _deliver_in_order(self, writes: list[DueWrite], gate: asyncio.Semaphore) -> None:
        async with gate:
            for due in writes:
                if self._stopping or not await self._deliver(due):
                    return  # the next of this scope waits for this one

    async def _deliver(self, due: DueWrite) -> bool:
        write = due.write
        key = _key(write)
        if key not in self._owed:
            return True  # dropped since it was read
        self._delivering.add(key)
        try:
            if due.id not in self._made:
                await self._write(due)
        except Exception as error:  # noqa: BLE001 - kept, retried and shown
            await self._retry(due, error)
            return False
        finally:
            self._delivering.discard(key)
            async with self._arrived:
                self._arrived.notify_all()
        self._made.add(due.id)
        await self._store.write_done(due)
        self._made.discard(due.id)
        self.metrics.tried(write.memory, "stored")
        await self._gone(write)
        return True

    async def _write(self, due: DueWrite) -> None:
        """Hand a write to its memory. Raises what that does, and TimeoutError."""
        work = self._deaf.pop(due.id, None) or asyncio.create_task(self._hand_over(due))
        seconds = self._patience[due.write.memory].seconds
        try:
            await asyncio.wait((work,), timeout=seconds)
        finally:
            work.cancel()
        if not work.done():
            await asyncio.wait((work,), timeout=_CANCEL_WITHIN)
            if not work.done():
                self._deaf[due.id] = work
                work.add_done_callback(_seen)
            raise TimeoutError(f"not written within {seconds:g} s")
        if work.cancelled():
            raise MemoryBackendError("the memory stopped in the middle of it")
        work.result()

    async def _hand_over(self, due: DueWrite) -> None:
        write = due.write
        memory, context = self._memories[write.memory], context_of(write.context)
        messages = [message_of(value) for value in write.messages]
        doubtful = due.tries > 0 or _turn(write) in self._inherited
        if not (doubtful and await memory.already_written(messages, ctx=context)):
            await memory.update(messages, ctx=context)

    async def _retry(self, due: DueWrite, error: Exception) -> None:
        problem, name = f"{type(error).__name__}: {error}", due.write.memory
        if due.tries + 1 >= self._patience[name].tries:
            logger.error("memory %s: a write of task %s is given up: %s", name, due.task_id, problem)
            await self._store.write_failed(due, problem, None)
            self.metrics.tried(name, "failed", error)
            await self._gone(due.write)
            return
        logger.warning("memory %s: a write of task %s will be tried again: %s", name, due.task_id, problem)
        await self._store.write_failed(due, problem, now() + int(1e6 * backoff(due.tries)))
        self.metrics.tried(name, "retried", error)

    async def _gone(self, write: MemoryWrite) -> None:
        key, turn = _key(write), _turn(write)
        left = [other for other in self._owed.get(key, []) if _turn(other) != turn]
        self._inherited.discard(turn)
        async with self._arrived:
            if left:
                self._owed[key] = left
            else:
                self._owed.pop(key, None)
            self._arrived.notify_all()


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
        with self._outbox.metrics.retrieving(self.name):
            found = sound(await self._memory.retrieve(query, top_k=top_k, **kwargs), top_k)
        known = {message.content for message in found}
        return [*(message for message in owed if message.content not in known), *found][:top_k]

    def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
        return self._owed(query, Scope.of(ctx).key)[:top_k]

    def _owed(self, query: str, scope: str) -> list[Message]:
        said = [message_of(value) for write in self._outbox.owed(self.name, scope) for value in write.messages]
        return overlay(query, said, backend=self.name, recent=_RECENT)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        run = CURRENT.get()
        if run is None:
            await self._memory.update(messages, **kwargs)
            return
        context: InvocationContext = kwargs["ctx"]
        step = STEP.get()
        (run.writes if step is None else step).append(
            MemoryWrite(self.name, context_json(context), [message_json(message) for message in messages])
        )

    @property
    def managed(self) -> ManagedMemory | None:
        return self._memory.managed


def backoff(tries: int, first: float = _FIRST_DELAY) -> float:
    """Seconds until the next try after `tries` failed ones before this; `first` after none."""
    delay: float = min(_LONGEST_DELAY, first * 2.0**tries)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _is_of(write: MemoryWrite, tenant: str, user: str) -> bool:
    context = context_of(write.context)
    return (context.tenant, context.user_id) == (tenant, user)


def _key(write: MemoryWrite) -> tuple[str, str]:
    return write.memory, Scope.of(context_of(write.context)).key


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # who tries next hears of it, if anybody does


def _turn(write: MemoryWrite) -> tuple[str, object]:
    return write.memory, write.context.get("turn_id")


def context_json(context: InvocationContext) -> dict[str, Any]:
    return {field: getattr(context, field) for field in _CONTEXT}


def context_of(value: Mapping[str, Any]) -> InvocationContext:
    return InvocationContext(**value)


def message_json(message: Message) -> dict[str, Any]:
    value = {field: getattr(message, field) for field in _MESSAGE}
    value["created_at"] = message.created_at.isoformat()
    value["tool_calls"] = [asdict(call) for call in message.tool_calls]
    return value


def message_of(value: Mapping[str, Any]) -> Message:
    fields: dict[str, Any] = dict(value)
    fields["tool_calls"] = tuple(ToolCall(**call) for call in value["tool_calls"])
    fields["created_at"] = datetime.fromisoformat(value["created_at"])
    return Message(**fields)
