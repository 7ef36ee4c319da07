"""Memories written as four callbacks: `MemoryBackend`, the `MemoryModule` it registers as, both used as a `Memory`, and a
`Memory` used as them."""

from __future__ import annotations

import asyncio
import inspect
import threading
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from time import monotonic
from typing import Any, Literal

from .background import blocking as plain
from .background import call_in_thread
from .errors import MemoryBackendError
from .memory import (
    InvocationContext,
    Memory,
    MemoryEntry,
    MemoryKind,
    Scope,
)
from .messages import Message, Provenance

MOST_CALLS_AT_ONCE = 32
"""Synchronous calls of one backend under way at once: more wait their turn, while others end."""
HANGS_AFTER = 1.0
"""Seconds without a beginning or an end among so many: the backend hangs, and one more is an error at once."""
_REMEMBERED_TURNS = 10_000
_LOOKED_THROUGH = 20
"""How many entries are looked through for a turn that may have been recorded."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS = frozenset(MemoryKind)


class MemoryBackend(ABC):
    """A memory of your own in three methods, each a plain `def` (it then runs off the event loop) or an `async def`.

    `session_id` is the key of the memory's scope: one string a user, or a session where no user is known; users of
    different tenants, and sessions that happen to share a name, never get the same one.
    """

    name: str = "memory"

    @abstractmethod
    def record(self, session_id: str, user_msg: str, assistant_msg: str) -> Awaitable[None] | None:
        """Remember one turn. `assistant_msg` is empty where there was no answer.

        After a crash, or a call whose outcome is not known, a turn may come again: take one parameter more, `turn_id: str = ""`,
        and pass over an id that was recorded. Without it, the turn is looked for with `recall` before it comes again.
        """

    @abstractmethod
    def recall(self, session_id: str, query: str, max_entries: int) -> Awaitable[list[MemoryEntry]] | list[MemoryEntry]:
        """What matters for `query`, best first, at most `max_entries`."""

    @abstractmethod
    def flush(self, session_id: str) -> Awaitable[None] | None:
        """Make what was recorded durable and findable; called after every turn, last."""

    def consolidate(self, session_id: str) -> Awaitable[None] | None:
        """Compact or summarise; called after every turn, between `record` and `flush`. By default nothing is done."""
        return None

    def as_memory_module(self) -> MemoryModule:
        """What an `Agent` takes in `memories=[...]`."""
        own = type(self).consolidate is not MemoryBackend.consolidate
        return MemoryModule(self.name, self.record, self.recall, self.flush, self.consolidate if own else None)


@dataclass(frozen=True, slots=True)
class MemoryModule:
    """A named memory as callbacks; each may be synchronous or return an awaitable. Shapes as in `MemoryBackend`."""

    name: str
    record: Callable[..., Awaitable[None] | None]
    """(session_id, user_msg, assistant_msg), and `turn_id` by name where it has such a parameter."""
    recall: Callable[[str, str, int], Awaitable[list[MemoryEntry]] | list[MemoryEntry]]
    flush: Callable[[str], Awaitable[None] | None] | None = None
    consolidate: Callable[[str], Awaitable[None] | None] | None = None


def as_memory(value: Memory | MemoryBackend | MemoryModule, *, space: str = "default") -> Memory:
    """Any of the three shapes as a `Memory`; `space` goes into the scopes of the latter two."""
    if isinstance(value, Memory):
        return value
    module = value.as_memory_module() if isinstance(value, MemoryBackend) else value
    return ModuleMemory(module, space=space)


def as_module(
    memory: Memory, *, owner: Literal["session", "user"] = "session", tenant: str = "", blocking: bool = False
) -> MemoryModule:
    """Any `Memory` as callbacks, for agents that take a `MemoryModule`.

    The `session_id` they are called with is that of the session whose memory it is; with `owner="user"`, it is the id of
    the user. They are coroutine functions, for any event loop, or with `blocking` plain ones, for code without one. What
    was recorded is durable and findable when `record` returns, so there is no `flush` and no `consolidate` to call; it also
    takes a `turn_id`, by which a turn that is recorded again changes nothing. They raise what the memory raises; closing it
    stays with the caller.
    """

    def context(id_: str) -> InvocationContext:
        return InvocationContext(id_, id_ if owner == "user" else None, tenant=tenant)

    async def record(session_id: str, user_msg: str, assistant_msg: str, turn_id: str | None = None) -> None:
        said = [Message("user", user_msg), Message("assistant", assistant_msg)]
        ctx = replace(context(session_id), turn_id=turn_id)
        await memory.update([message for message in said if message.content], ctx=ctx)

    async def recall(session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
        found = await memory.retrieve(query, top_k=max_entries, ctx=context(session_id))
        return [_entry(message, rank) for rank, message in enumerate(found)]

    if blocking:
        return MemoryModule(memory.name, plain(record), plain(recall))
    return MemoryModule(memory.name, record, recall)


def _entry(message: Message, rank: int) -> MemoryEntry:
    """A retrieved message as an entry; a memory that does not say how much it matters is taken at its order."""
    told: Mapping[str, Any] = message.metadata.get("memory") or {}
    kind = told.get("kind")
    return MemoryEntry(
        key=str(told.get("id", message.id)),
        content=message.content,
        kind=MemoryKind(kind) if kind in _KINDS else MemoryKind.RECENT_MESSAGE,
        relevance=float(told.get("score", 1 / (1 + rank))),
        timestamp_ns=(message.created_at - _EPOCH) // timedelta(microseconds=1) * 1000,
    )


@dataclass(slots=True)
class _Written:
    """How far the writing of a turn has come: calls that are done, and the one that runs in its thread."""

    calls: int = 0
    running: Future[Any] | None = None

    @property
    def begun(self) -> bool:
        return self.calls > 0 or self.running is not None


class ModuleMemory(Memory):
    """A `MemoryModule` as a `Memory`: whatever it raises becomes a MemoryBackendError that names it.

    What of a turn was done is not done again by this process (the last 10,000 turn ids are known), and a synchronous call
    that still runs is waited for, not made a second time. What an earlier process did, `already_written` tells.
    """

    def __init__(self, module: MemoryModule, *, space: str = "default") -> None:
        self.name = module.name
        self._module = module
        self._space = space
        self._turns: OrderedDict[tuple[str, str], _Written] = OrderedDict()
        self._takes_turn_id = "turn_id" in _parameters(module.record)
        self._slots = _Slots(MOST_CALLS_AT_ONCE)

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return await self._recalled(Scope.of(kwargs.get("ctx"), self._space).key, query, top_k)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        ctx: InvocationContext | None = kwargs.get("ctx")
        key = Scope.of(ctx, self._space).key
        turn_id = ctx.turn_id if ctx is not None else None
        written = self._written(key, turn_id)
        calls: list[tuple[str, Callable[..., Any]]] = []
        for place, exchange in enumerate(_exchanges(messages)):
            record = self._module.record
            if self._takes_turn_id:
                id_ = turn_id if turn_id is not None else uuid.uuid4().hex
                record = partial(record, turn_id=f"{id_}#{place}" if place else id_)
            calls.append(("record", partial(record, key, *exchange)))
        if self._module.consolidate is not None:
            calls.append(("consolidate", partial(self._module.consolidate, key)))
        if self._module.flush is not None:
            calls.append(("flush", partial(self._module.flush, key)))
        for what, call in calls[written.calls :]:
            await self._call(what, call, written=written)
            written.calls += 1

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        """Whether `recall` gives back, word for word, all that the turn said, as recorded since it was said."""
        key = Scope.of(ctx, self._space).key
        exchanges = list(_exchanges(messages))
        if self._takes_turn_id or not exchanges or self._written(key, ctx.turn_id).begun:
            return False
        since = min(message.created_at for message in messages)
        for asked, answered in exchanges:
            said = (asked or answered).strip()
            found = await self._recalled(key, said, _LOOKED_THROUGH)
            if not any(said in message.content and message.created_at >= since for message in found):
                return False
        return True

    async def _recalled(self, key: str, query: str, top_k: int) -> list[Message]:
        entries = await self._call("recall", self._module.recall, key, query, top_k)
        try:
            return [self._message(entry) for entry in islice(entries or (), top_k)]
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise MemoryBackendError(f"{self.name}: recall did not return MemoryEntry objects: {error}") from error

    def _written(self, key: str, turn_id: str | None) -> _Written:
        if turn_id is None:
            return _Written()
        written = self._turns.setdefault((key, turn_id), _Written())
        if len(self._turns) > _REMEMBERED_TURNS:
            self._turns.popitem(last=False)
        return written

    async def _call(
        self, what: str, callback: Callable[..., Any], *args: object, written: _Written | None = None
    ) -> Any:
        try:
            if inspect.iscoroutinefunction(callback):
                return await callback(*args)
            result = await self._off_the_loop(what, callback, *args, written=written)
            return await result if inspect.isawaitable(result) else result
        except MemoryBackendError:
            raise
        except Exception as error:
            raise self._explain(what, error) from error

    def _explain(self, what: str, error: BaseException) -> MemoryBackendError:
        explained = MemoryBackendError(f"{self.name}: {what} failed: {type(error).__name__}: {error}")
        explained.__cause__ = error
        return explained

    async def _off_the_loop(
        self, what: str, callback: Callable[..., Any], *args: object, written: _Written | None = None
    ) -> Any:
        """On a daemon thread of its own: one that never returns keeps neither the pool nor the exit of the process.

        Whoever is cancelled leaves the call running; that of a turn is then waited for by the next who writes the turn.
        """
        written = written or _Written()
        if written.running is None:
            await self._slots.room()
        running = written.running = written.running or self._begin(what, callback, *args)
        try:
            return await asyncio.wrap_future(running)
        finally:
            if running.done():
                written.running = None

    def _begin(self, what: str, callback: Callable[..., Any], *args: object) -> Future[Any]:
        if not self._slots.take():
            raise MemoryBackendError(f"{self.name}: {what} refused: {MOST_CALLS_AT_ONCE} earlier calls still run")

        def work() -> Any:
            try:
                return callback(*args)
            except BaseException as error:
                raise self._explain(what, error) from error
            finally:
                self._slots.give_back()

        return call_in_thread(work, name=f"memory-{self.name}-{what}")

    def _message(self, entry: MemoryEntry) -> Message:
        created = _EPOCH + timedelta(microseconds=entry.timestamp_ns // 1000)
        relevance = float(entry.relevance)
        provenance = Provenance(
            id=str(entry.key),
            kind=str(entry.kind),
            score=min(1.0, max(0.0, relevance)) if relevance == relevance else 0.0,
            sources=[],
            created_at=created.isoformat(),
            backend=self.name,
        )
        return Message(
            "system", str(entry.content), id=str(entry.key), created_at=created, metadata={"memory": provenance}
        )


class _Slots:
    """So many calls at once, and who waits for one of them to end."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._moved = monotonic()
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def room(self) -> None:
        """Wait while every slot is taken and the calls in them still end."""
        while True:
            with self._lock:
                left = self._moved + HANGS_AFTER - monotonic()
                if self._free or left <= 0:
                    return
                woken: Future[None] = Future()
                self._waiting.append(woken)
            try:
                await asyncio.wait([asyncio.wrap_future(woken)], timeout=left)
            finally:
                woken.cancel()  # if it was not: whoever gives a slot back wakes another

    def take(self) -> bool:
        """Take a slot; False: there is none."""
        with self._lock:
            if not self._free:
                return False
            self._free -= 1
            self._moved = monotonic()
            return True

    def give_back(self) -> None:
        with self._lock:
            self._free += 1
            self._moved = monotonic()
            while self._waiting:
                if (waiting := self._waiting.popleft()).set_running_or_notify_cancel():
                    waiting.set_result(None)
                    return


def _parameters(callback: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(callback).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell
        return ()


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Each user message with the answer that follows it; an answer alone stands with an empty question."""
    asked: str | None = None
    for message in messages:
        if message.role == "user":
            if asked is not None:
                yield asked, ""
            asked = message.content
        elif message.role == "assistant" and message.content:
            yield asked or "", message.content
            asked = None
    if asked is not None:
        yield asked, ""
