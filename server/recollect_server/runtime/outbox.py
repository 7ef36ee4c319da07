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

from .rows import now
from .run import CURRENT
from .store import Store
from .turn import DueWrite, MemoryWrite

logger = logging.getLogger(__name__)

_TRIES = 12
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 300.0
"""Seconds between tries: doubled each time, each a random part of it less."""
_AT_ONCE = 8
_WAIT = 0.3
"""Seconds that a recall waits for what its scope is owed to arrive; what has not is laid over its answer."""
_CONTEXT = tuple(field.name for field in fields(InvocationContext))
_MESSAGE = tuple(field.name for field in fields(Message))
_WORD = re.compile(r"\w+")


class Outbox:
    """Delivers the memory writes that turns owe, each scope's in order, and knows which are still on their way."""

    def __init__(self, store: Store, memories: Mapping[str, Memory], *, tries: int = _TRIES) -> None:
        self._store = store
        self._memories = memories
        self._tries = tries
        self._owed: dict[tuple[str, str], list[MemoryWrite]] = {}
        self._delivering: set[tuple[str, str]] = set()
        self._arrived = asyncio.Condition()
        self._wake: dict[str, asyncio.Event] = {}
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take up what earlier processes left, and begin to deliver to each memory that there is by now."""
        self._wake = {name: asyncio.Event() for name in self._memories}
        self.owe(await self._store.unconfirmed_writes())
        self._workers = [asyncio.create_task(self._deliver_forever(name)) for name in self._memories]

    async def stop(self) -> None:
        """What is not delivered stays owed."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def owe(self, writes: Iterable[MemoryWrite]) -> None:
        """Note committed writes, and have them delivered."""
        for write in writes:
            self._owed.setdefault(_key(write), []).append(write)
            if write.memory in self._wake:
                self._wake[write.memory].set()

    def owed(self, memory: str, scope: str) -> list[MemoryWrite]:
        return self._owed.get((memory, scope), [])

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
        while True:
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
        await asyncio.gather(*(self._deliver_in_order(writes, gate) for writes in scopes.values()))

    async def _deliver_in_order(self, writes: list[DueWrite], gate: asyncio.Semaphore) -> None:
        async with gate:
            for due in writes:
                if not await self._deliver(due):
                    return  # the next of this scope waits for this one

    async def _deliver(self, due: DueWrite) -> bool:
        write = due.write
        messages = [message_of(value) for value in write.messages]
        key = _key(write)
        if key not in self._owed:
            return True  # dropped since it was read
        self._delivering.add(key)
        try:
            await self._memories[write.memory].update(messages, ctx=context_of(write.context))
        except Exception as error:  # noqa: BLE001 - kept, retried and shown
            await self._retry(due, f"{type(error).__name__}: {error}")
            return False
        finally:
            self._delivering.discard(key)
            async with self._arrived:
                self._arrived.notify_all()
        await self._store.write_done(due)
        await self._gone(write)
        return True

    async def _retry(self, due: DueWrite, problem: str) -> None:
        if due.tries + 1 >= self._tries:
            logger.error("memory %s: a write of task %s is given up: %s", due.write.memory, due.task_id, problem)
            await self._store.write_failed(due, problem, None)
            await self._gone(due.write)
            return
        logger.warning("memory %s: a write of task %s will be tried again: %s", due.write.memory, due.task_id, problem)
        await self._store.write_failed(due, problem, now() + int(1e6 * backoff(due.tries)))

    async def _gone(self, write: MemoryWrite) -> None:
        key = _key(write)
        left = [
            other for other in self._owed.get(key, []) if other.context.get("turn_id") != write.context.get("turn_id")
        ]
        async with self._arrived:
            if left:
                self._owed[key] = left
            else:
                self._owed.pop(key, None)
            self._arrived.notify_all()


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
