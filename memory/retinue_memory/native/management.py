"""The owner's side of the native memory: everything of `ManagedMemory` but the search itself."""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from retinue_memory.database.base import Database
from retinue_memory.memory import (
    ALL,
    ManagedMemory,
    MemoryFilter,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Profile,
    Receipt,
    Scope,
)

from . import (
    lifecycle,
    management_rows,
    rows,
    transfer,
    words,
)
from .embedding_service import Vectors
from .index import Index
from .index_cache import Indexes
from .redaction import Redaction
from .rows import (
    Change,
    Erased,
    NewMemory,
    microseconds,
    storable,
)

P = ParamSpec("P")
R = TypeVar("R")

LARGEST_PAGE = 1000
PROFILE = 20
"""Memories of each sort in a profile."""
_FOCUS = 5
_ELSEWHERE = "copies of the file, snapshots and backups; the disk's own spare blocks"


class Begun:
    """A write that has begun. `void`: an erasure of its scope has begun since, and wins."""

    __slots__ = ("void",)

    def __init__(self) -> None:
        self.void = False


class InFlight:
    """The writes of this process that have begun and not ended, by scope. (Of other processes' the `life` tells.)"""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: dict[Scope, set[Begun]] = {}

    @contextmanager
    def begun(self, scope: Scope) -> Generator[Begun]:
        write = Begun()
        with self._lock:
            self._writes.setdefault(scope, set()).add(write)
        try:
            yield write
        finally:
            with self._lock:
                others = self._writes[scope]
                others.discard(write)
                if not others:
                    del self._writes[scope]

    def void(self, scope: Scope) -> None:
        """Those of the scope are not to be written any more."""
        with self._lock:
            for write in self._writes.get(scope, ()):
                write.void = True


class Owned(ManagedMemory):
    """What the owner does with it. The rest of the memory is `NativeMemory`, which says how to read, write and embed.

    What is not there, or was erased meanwhile, is not found: None, or a receipt of nothing. ValueError: a limit below 1, a
    cursor that no page gave, an empty text, a value that no export gave.
    """

    indexes: Indexes
    _database: Database
    _under_way: InFlight
    _vectors: Vectors
    _redact: Redaction

    @abstractmethod
    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` on a thread of the memory's, once it is open."""

    @abstractmethod
    async def _begun(self, scope: Scope, begun: Begun) -> tuple[Index, int]:
        """The scope's index and its life; one that has none begins it, unless an erasure has won already (0)."""

    @abstractmethod
    async def _given(self, memories: Sequence[NewMemory]) -> Sequence[NewMemory]:
        """With their vectors, where there is an embedder."""

    @abstractmethod
    async def _write(
        self, scope: Scope, life: int, work: Callable[[Change], R], begun: Begun | None = None
    ) -> R | None:
        """Change the scope, if it is in this life and no erasure has begun since; None: it is not."""

    # -- reading ------------------------------------------------------------------------------------------------------

    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        if not 1 <= limit <= LARGEST_PAGE:
            raise ValueError(f"a page holds 1 to {LARGEST_PAGE} memories, not {limit}")
        records, more = await self._read_rows(lambda db: management_rows.page(db, scope, where, limit, cursor))
        return MemoryPage(tuple(records), more)

    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        found = await self._read_rows(lambda db: rows.by_id(db, scope, [storable(id)]))
        return found.get(storable(id))

    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        return await self._read_rows(lambda db: management_rows.history(db, scope, storable(id)))

    async def remains(self, scope: Scope) -> Mapping[str, int]:
        rows = await self._read_rows(lambda db: management_rows.remains(db, scope))
        index = self.indexes.get(scope)
        return rows | {"index": index.size} if index is not None and index.size else rows

    async def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        yield transfer.HEADER
        after = 0
        while True:  # no statement stays open between two pages: it would pin the log
            page, last = await self._read_rows(functools.partial(_page, scope, after))
            for value in page:
                yield value
            if last == after:
                return
            after = last

    async def profile(self, scope: Scope) -> Profile:
        async def latest(*kinds: MemoryKind, most: int = PROFILE) -> tuple[MemoryRecord, ...]:
            page = await self.browse(scope, MemoryFilter(kinds=frozenset(kinds)), limit=most)
            return tuple(sorted(page.records, key=lambda record: not record.pinned))

        said = await self.browse(scope, MemoryFilter(kinds=frozenset({MemoryKind.RECENT_MESSAGE})), limit=4 * _FOCUS)
        return Profile(
            facts=await latest(MemoryKind.ENTITY),
            preferences=await latest(MemoryKind.PREFERENCE),
            focus=tuple(record for record in said.records if record.role == "user")[:_FOCUS],
            summaries=await latest(MemoryKind.SUMMARY, most=_FOCUS),
        )

    # -- correcting ---------------------------------------------------------------------------------------------------

    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        new = NewMemory("user", "", self._redact(text_of(content)), "", 0)
        (new,) = await self._given([new])
        at = microseconds(datetime.now(UTC))
        found = await self._change(scope, lambda change: management_rows.edit(change, storable(id), new, at))
        self._let_go(scope)
        return found

    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None:
        return await self._change(scope, lambda change: management_rows.pin(change, storable(id), pinned))

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def forget(
        self,
        scope: Scope,
        *,
        ids: Sequence[str] = (),
        query: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Receipt:
        """As the contract says; of several conditions all must hold. Half-open: from `since` to before `until`.

        What was drafted from a message that goes, goes with it.
        """
        if not ids and query is None and since is None and until is None:
            raise ValueError("say what to forget: ids, a query, or a time; erase() forgets everything")
        if query is not None and not query.strip():
            raise ValueError("an empty query would forget everything: erase() does that")

        def forget(change: Change) -> dict[str, int]:
            chosen: list[set[int]] = []
            if ids:
                chosen.append(management_rows.seqs_of(change.db, scope, map(storable, ids)))
            if query is not None:
                chosen.append(management_rows.holding(change.db, scope, query))
            if since is not None or until is not None:
                chosen.append(management_rows.said_between(change.db, scope, since, until))
            return management_rows.forget(change, chosen[0].intersection(*chosen))

        return await self._delete(scope, await self._change(scope, forget) or {})

    async def erase(self, scope: Scope) -> Receipt:
        """As the contract says. What began before it is not written after it; the database's other users wait for the file to
        be written anew (`Database.scrub`)."""
        self._under_way.void(scope)
        deleted = await self._run(self._database.write_now, lambda db: management_rows.erase(db, scope))
        return await self._delete(scope, deleted)

    async def _delete(self, scope: Scope, deleted: Mapping[str, int]) -> Receipt:
        at = datetime.now(UTC)
        self._let_go(scope)
        needed = any(deleted.values()) or not self._database.scrubbed
        left = await self._database.scrub() if needed else None
        return Receipt(scope.key, at, deleted, (_ELSEWHERE,) if left is None else (left, _ELSEWHERE))

    def _let_go(self, scope: Scope) -> None:
        """Keep nothing in memory of what was deleted, and of what is being computed from it."""
        self._deletions += 1
        self.indexes.drop(scope)
        self._vectors.forget()
        words.forget()
        lifecycle.forget()

    _deletions = 0
    """How often something was deleted: who computed meanwhile lets go of what they put into the caches."""

    # -- moving -------------------------------------------------------------------------------------------------------

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """As the contract says. Raises ValueError, naming the value, for what no export gave; what came before it is kept.

        The items of mem0's `get_all` are taken too (see `mem0_items`), if they are of this user or session, and only if all are.
        """
        taken = 0
        with self._under_way.begun(scope) as begun:
            _, life = await self._begun(scope, begun)
            async for page in transfer.pages(scope, values, self._redact):
                taken += await self._write(scope, life, functools.partial(transfer.write_page, page), begun) or 0
        return taken

    # -- on threads ---------------------------------------------------------------------------------------------------

    async def _read_rows(self, operation: Callable[[Any], R]) -> R:
        return await self._run(self._database.read_now, operation)

    async def _change(self, scope: Scope, work: Callable[[Change], R]) -> R | None:
        """Change what is there; None: there is nothing, or it was erased meanwhile."""
        life = (await self._read_rows(lambda db: rows.state(db, scope))).life
        if not life:
            return None
        try:
            return await self._database.write(lambda db: work(Change(db, scope, life)))
        except Erased:
            return None


def _page(scope: Scope, after: int, db: Any) -> tuple[list[dict[str, Any]], int]:
    return transfer.read_page(db, scope, after)


def text_of(content: str) -> str:
    """The text as it is stored. Raises ValueError where there is none."""
    if not content.strip():
        raise ValueError("a memory needs a text; forget() deletes one")
    return storable(content)
