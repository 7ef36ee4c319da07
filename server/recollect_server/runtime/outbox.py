"""Memory writes on their way: owed from the commit that ends a turn, delivered in the background, found meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from recollect_memory import InvocationContext, Memory, Message, Scope, ToolCall
from recollect_memory.errors import RecollectError

from .run import CURRENT
from .sqlite import now
from .store import Store
from .turn import DueWrite, MemoryWrite

logger = logging.getLogger(__name__)

_TRIES = 12
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 300.0
"""Seconds between tries: doubled each time, each a random part of it less."""
_AT_ONCE = 8
_MOST_IN_HAND = 1000
"""Writes of a memory that are handed over without being read again; beyond it, they are read from their rows."""
_WAIT = 0.3
"""Seconds that a recall waits for what its scope is owed to arrive; what has not is laid over its answer."""
_CONTEXT = tuple(field.name for field in fields(InvocationContext))
_MESSAGE = tuple(field.name for field in fields(Message))
_WORD = re.compile(r"\w+")


class Outbox:
    """Delivers the memory writes that turns owe, each scope's in order, and knows which are still on their way.

    The rows are the truth. What was just committed is handed over in memory; rows are read at the start, and after a failure
    until nothing is left in them.
    """

    def __init__(self, store: Store, memories: Mapping[str, Memory], *, tries: int = _TRIES) -> None:
        self._store = store
        self._memories = memories
        self._tries = tries
        self._owed: dict[tuple[str, str], list[MemoryWrite]] = {}
        self._in_hand: dict[str, list[DueWrite] | None] = {}
        """By memory, what was committed and is all that it is owed; None: its rows may say more."""
        self._delivering: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._awaited: dict[tuple[str, str], asyncio.Event] = {}
        """Set when nothing is owed to a scope any more, where somebody waits for it."""
        self._wake: dict[str, asyncio.Event] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what earlier processes left, and begin to deliver to each memory that there is by now."""
        self._wake = {name: asyncio.Event() for name in self._memories}
        for write in await self._store.unconfirmed_writes():
            self._note(write)
        self._workers = [asyncio.create_task(self._deliver_forever(name)) for name in self._memories]

    async def stop(self) -> None:
        """What is not delivered stays owed."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

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
        self._owed.setdefault(_key(write), []).append(write)

    def owed(self, memory: str, scope: str) -> list[MemoryWrite]:
        return self._owed.get((memory, scope), [])

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
        while True:
            wake.clear()
            at: int | None = None
            try:
                due, self._in_hand[name] = self._in_hand.get(name), []
                if due is None:
                    due, at = await self._read(name)
                if due:
                    await self._deliver_all(due)
                    continue
            except RecollectError:
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
        due = await self._store.due_writes(name, 64)
        at = None if due else await self._store.next_write(name)
        if due or at is not None:
            self._in_hand[name] = None
        return due, at

    async def _deliver_all(self, due: list[DueWrite]) -> None:
        scopes: dict[tuple[str, str], list[DueWrite]] = {}
        for one in due:
            scopes.setdefault(_key(one.write), []).append(one)
        if len(scopes) == 1:
            ((key, writes),) = scopes.items()
            return await self._deliver_in_order(key, writes)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def deliver(key: tuple[str, str], writes: list[DueWrite]) -> None:
            async with gate:
                await self._deliver_in_order(key, writes)

        await asyncio.gather(*(deliver(key, writes) for key, writes in scopes.items()))

    async def _deliver_in_order(self, key: tuple[str, str], writes: list[DueWrite]) -> None:
        for due in writes:
            if not await self._deliver(key, due):
                self._in_hand[due.write.memory] = None
                return  # the next of this scope waits for this one

    async def _deliver(self, key: tuple[str, str], due: DueWrite) -> bool:
        write = due.write
        if not any(_same(write, owed) for owed in self._owed.get(key, ())):
            return True  # dropped since
        memory = self._memories[write.memory]
        messages = [message_of(value) for value in write.messages]
        done = self._store.done_alongside(due, memory)
        ending = self._delivering[key] = asyncio.get_running_loop().create_future()
        try:
            if done is None:
                await memory.update(messages, ctx=context_of(write.context))
            else:
                await memory.update(messages, ctx=context_of(write.context), alongside=done)
        except Exception as error:  # noqa: BLE001 - kept, retried and shown
            await self._retry(key, due, f"{type(error).__name__}: {error}")
            return False
        finally:
            del self._delivering[key]
            ending.set_result(None)
        if done is None or not done.committed:
            await self._store.write_done(due)
        self._gone(key, write)
        return True

    async def _retry(self, key: tuple[str, str], due: DueWrite, problem: str) -> None:
        if due.tries + 1 >= self._tries:
            logger.error("memory %s: a write of task %s is given up: %s", due.write.memory, due.task_id, problem)
            await self._store.write_failed(due, problem, None)
            self._gone(key, due.write)
            return
        logger.warning("memory %s: a write of task %s will be tried again: %s", due.write.memory, due.task_id, problem)
        await self._store.write_failed(due, problem, now() + int(1e6 * backoff(due.tries)))

    def _gone(self, key: tuple[str, str], write: MemoryWrite) -> None:
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
    """A memory as turns see it: a write is owed from the turn's last commit on, and a recall sees what is still owed."""

    def __init__(self, name: str, memory: Memory, outbox: Outbox) -> None:
        self.name = name
        self._memory = memory
        self._outbox = outbox

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        scope = Scope.of(kwargs.get("ctx")).key
        await self._outbox.settle(self.name, scope)
        owed = overlay(query, self._outbox.owed(self.name, scope))
        found = await self._memory.retrieve(query, top_k=top_k, **kwargs)
        known = {message.content for message in found}
        return [*(message for message in owed if message.content not in known), *found][:top_k]

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        run = CURRENT.get()
        if run is None:
            await self._memory.update(messages, **kwargs)
            return
        context: InvocationContext = kwargs["ctx"]
        run.writes.append(
            MemoryWrite(self.name, context_json(context), [message_json(message) for message in messages])
        )


def overlay(query: str, owed: Iterable[MemoryWrite]) -> list[Message]:
    """What is owed and shares words with the query, as a memory would return it: most shared words first."""
    words = {word.lower() for word in _WORD.findall(query) if len(word) > 2}
    scored: list[tuple[float, Message]] = []
    for write in owed:
        for value in write.messages:
            if value["role"] != "user":
                continue
            shared = words & {word.lower() for word in _WORD.findall(value["content"])}
            if shared:
                score = len(shared) / len(words)
                scored.append((score, _recalled(write.memory, value, score)))
    return [message for _, message in sorted(scored, key=lambda pair: -pair[0])]


def _recalled(memory: str, value: Mapping[str, Any], score: float) -> Message:
    provenance = {
        "id": value["id"],
        "kind": "RecentMessage",
        "score": score,
        "sources": [value["id"]],
        "created_at": value["created_at"],
        "backend": memory,
    }
    created_at = datetime.fromisoformat(value["created_at"])
    return Message("system", value["content"], created_at=created_at, metadata={"memory": provenance})


def backoff(tries: int, first: float = _FIRST_DELAY) -> float:
    """Seconds until the next try after `tries` failed ones before this; `first` after none."""
    delay: float = min(_LONGEST_DELAY, first * 2.0**tries)
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _is_of(write: MemoryWrite, tenant: str, user: str) -> bool:
    context = context_of(write.context)
    return (context.tenant, context.user_id) == (tenant, user)


def _key(write: MemoryWrite) -> tuple[str, str]:
    return write.memory, Scope.of(context_of(write.context)).key


def _same(one: MemoryWrite, other: MemoryWrite) -> bool:
    """Whether it is one write, in hand or read from its row: the same messages of the same turn."""
    ids = [[message["id"] for message in write.messages] for write in (one, other)]
    return one is other or (one.context.get("turn_id") == other.context.get("turn_id") and ids[0] == ids[1])


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
