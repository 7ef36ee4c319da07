"""Memories as callbacks: `MemoryBackend`, `MemoryModule`, and adapters from and to `Memory`."""

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

MAX_RUNNING_CALLS = 32
"""Synchronous calls of one backend that run at the same time; further ones wait until one ends."""
_HANGS_AFTER_S = 1.0
"""If all of them run and none started or ended for so long, the backend hangs, and a further call is refused at once."""
_MAX_KNOWN_TURNS = 10_000
_SEARCH_TOP_K = 20
"""Entries among which a turn that may have been recorded is searched."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS = frozenset(MemoryKind)


class MemoryBackend(ABC):
    """A memory in three methods, each a plain `def` (which then runs off the event loop) or an `async def`.

    `session_id` is the key of the memory's scope: one string per user, or per session if no user is known. Users of different
    tenants, and sessions that share a name, never get the same one.
    """

    name: str = "memory"

    @abstractmethod
    def record(self, session_id: str, user_msg: str, assistant_msg: str) -> Awaitable[None] | None:
        """Remember one turn. `assistant_msg` is empty if there was no answer.

        After a crash, or a call whose outcome is unknown, a turn may be recorded again: take a further parameter,
        `turn_id: str = ""`, and ignore an id that was recorded. Without it, the turn is searched with `recall` before.
        """

    @abstractmethod
    def recall(self, session_id: str, query: str, max_entries: int) -> Awaitable[list[MemoryEntry]] | list[MemoryEntry]:
        """Find what matters for `query`: best first, at most `max_entries`."""

    @abstractmethod
    def flush(self, session_id: str) -> Awaitable[None] | None:
        """Make what was recorded durable and findable. Called last, after every turn."""

    def consolidate(self, session_id: str) -> Awaitable[None] | None:
        """Compact or summarise. Called after every turn, between `record` and `flush`. Does nothing by default."""
        return None

    def as_memory_module(self) -> MemoryModule:
        """Convert to what an `Agent` takes in `memories=[...]`."""
        own = type(self).consolidate is not MemoryBackend.consolidate
        return MemoryModule(self.name, self.record, self.recall, self.flush, self.consolidate if own else None)


@dataclass(frozen=True, slots=True)
class MemoryModule:
    """A named memory as callbacks; each may be synchronous or return an awaitable. Shapes as in `MemoryBackend`."""

    name: str
    record: Callable[..., Awaitable[None] | None]
    """(session_id, user_msg, assistant_msg), and `turn_id` by name if it has such a parameter."""
    recall: Callable[[str, str, int], Awaitable[list[MemoryEntry]] | list[MemoryEntry]]
    flush: Callable[[str], Awaitable[None] | None] | None = None
    consolidate: Callable[[str], Awaitable[None] | None] | None = None


def as_memory(value: Memory | MemoryBackend | MemoryModule, *, space: str = "default") -> Memory:
    """Convert any of the three shapes to a `Memory`; `space` goes into the scopes of the latter two."""
    if isinstance(value, Memory):
        return value
    module = value.as_memory_module() if isinstance(value, MemoryBackend) else value
    return ModuleMemory(module, space=space)


def as_module(
    memory: Memory, *, owner: Literal["session", "user"] = "session", tenant: str = "", blocking: bool = False
) -> MemoryModule:
    """Convert any `Memory` to callbacks, for agents that take a `MemoryModule`.

    The callbacks' `session_id` is the id of the session whose memory it is, or with `owner="user"` the id of the user. They
    are coroutine functions for any event loop, or plain ones with `blocking`, for code without one. What was recorded is
    durable and findable when `record` returns, so there is no `flush` and no `consolidate`. `record` also takes a `turn_id`:
    recording the same turn again changes nothing. They raise what the memory raises; the caller closes the memory.
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
    """Convert a retrieved message. Its relevance follows from its rank if it has no score."""
    memory: Mapping[str, Any] = message.metadata.get("memory") or {}
    kind = memory.get("kind")
    return MemoryEntry(
        key=str(memory.get("id", message.id)),
        content=message.content,
        kind=MemoryKind(kind) if kind in _KINDS else MemoryKind.RECENT_MESSAGE,
        relevance=float(memory.get("score", 1 / (1 + rank))),
        timestamp_ns=(message.created_at - _EPOCH) // timedelta(microseconds=1) * 1000,
    )


@dataclass(slots=True)
class _Written:
    """The progress of writing a turn: the number of calls that are done, and the one that runs in its thread."""

    calls: int = 0
    running: Future[Any] | None = None

    @property
    def started(self) -> bool:
        return self.calls > 0 or self.running is not None


class ModuleMemory(Memory):
    """Adapts a `MemoryModule` to `Memory`. Whatever it raises becomes a MemoryBackendError that names it.

    Calls that were made for a turn are not repeated in this process, for the last 10,000 turn ids; a synchronous call that
    still runs is waited for instead. `already_written` finds out what an earlier process did.
    """

    def __init__(self, module: MemoryModule, *, space: str = "default") -> None:
        self.name = module.name
        self._module = module
        self._space = space
        self._turns: OrderedDict[tuple[str, str], _Written] = OrderedDict()
        self._takes_turn_id = "turn_id" in _parameters(module.record)
        self._slots = _Slots(MAX_RUNNING_CALLS)

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
        """Whether `recall` returns all that the turn said word for word, recorded since it was said."""
        key = Scope.of(ctx, self._space).key
        exchanges = list(_exchanges(messages))
        if self._takes_turn_id or not exchanges or self._written(key, ctx.turn_id).started:
            return False
        since = min(message.created_at for message in messages)
        for asked, answered in exchanges:
            said = (asked or answered).strip()
            found = await self._recalled(key, said, _SEARCH_TOP_K)
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
        if len(self._turns) > _MAX_KNOWN_TURNS:
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
        """Call in a daemon thread, so that a call that never returns delays neither others nor the exit of the process.

        A cancelled caller leaves the call running; the next who writes the same turn waits for it.
        """
        written = written or _Written()
        if written.running is None:
            await self._slots.wait()
        running = written.running = written.running or self._start(what, callback, *args)
        try:
            return await asyncio.wrap_future(running)
        finally:
            if running.done():
                written.running = None

    def _start(self, what: str, callback: Callable[..., Any], *args: object) -> Future[Any]:
        if not self._slots.acquire():
            raise MemoryBackendError(f"{self.name}: {what} refused: {MAX_RUNNING_CALLS} earlier calls still run")

        def work() -> Any:
            try:
                return callback(*args)
            except BaseException as error:
                raise self._explain(what, error) from error
            finally:
                self._slots.release()

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
    """Limits the running calls. Unlike a semaphore's, its waiters give up if no call starts or ends for a while."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._moved_at = monotonic()
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def wait(self) -> None:
        """Wait for a free slot, as long as calls still end."""
        while True:
            with self._lock:
                left_s = self._moved_at + _HANGS_AFTER_S - monotonic()
                if self._free or left_s <= 0:
                    return
                woken: Future[None] = Future()
                self._waiting.append(woken)
            try:
                await asyncio.wait([asyncio.wrap_future(woken)], timeout=left_s)
            finally:
                woken.cancel()  # if it timed out: `release` then wakes another

    def acquire(self) -> bool:
        """Take a slot. Returns False if none is free."""
        with self._lock:
            if not self._free:
                return False
            self._free -= 1
            self._moved_at = monotonic()
            return True

    def release(self) -> None:
        with self._lock:
            self._free += 1
            self._moved_at = monotonic()
            while self._waiting:
                if (waiting := self._waiting.popleft()).set_running_or_notify_cancel():
                    waiting.set_result(None)
                    return


def _parameters(callback: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(callback).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return ()


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Pair each user message with the answer that follows it; an answer without a question gets an empty one."""
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
