"""The owner's operations on the built-in memory: everything of `ManagedMemory` but the search."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from retinue_memory.clock import now, now_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.errors import MemoryBackendError
from retinue_memory.management import MAX_FOCUS_RECORDS, MAX_PROFILE_RECORDS, check_forget, check_limit, checked_text
from retinue_memory.memory import (
    MemoryFilter,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Profile,
    Receipt,
    Scope,
)
from retinue_memory.text import storable

from . import ingest, management_rows, rows, transfer
from .caches import MemoryCaches
from .embedding_service import EmbeddingService
from .placement import Placement
from .redaction import Redaction
from .rows import Change, NewMemory
from .writes import Writes

R = TypeVar("R")

_OUT_OF_REACH = "copies of the file, snapshots and backups; the disk's own spare blocks"


class Management:
    """Operates on the rows of any scope. The docstrings of `ManagedMemory` apply."""

    def __init__(
        self,
        name: str,
        database: Database,
        placement: Placement,
        caches: MemoryCaches,
        embedding: EmbeddingService,
        writes: Writes,
        redact: Redaction,
    ) -> None:
        self._name = name
        self._database = database
        self._placement = placement
        self._caches = caches
        self._embedding = embedding
        self._writes = writes
        self._redact = redact

    # -- reading ------------------------------------------------------------------------------------------------------

    async def browse(self, scope: Scope, where: MemoryFilter, limit: int, cursor: str | None) -> MemoryPage:
        check_limit(limit)
        records, following = await self._read(lambda db: management_rows.page(db, scope, where, limit, cursor))
        return MemoryPage(tuple(records), following)

    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        found = await self._read(lambda db: rows.by_id(db, scope, [storable(id)]))
        return found.get(storable(id))

    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        return await self._read(lambda db: management_rows.history(db, scope, storable(id)))

    async def remains(self, scope: Scope) -> Mapping[str, int]:
        counts = await self._read(lambda db: management_rows.remains(db, scope))
        index = self._caches.indexes.get(scope)
        return counts | {"index": index.size} if index is not None and index.size else counts

    async def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        yield transfer.HEADER
        after = 0
        while True:  # no statement stays open between two pages: it would keep the database's log from being truncated
            page, last = await self._read(functools.partial(transfer.read_page, scope=scope, after=after))
            for value in page:
                yield value
            if last == after:
                return
            after = last

    async def profile(self, scope: Scope) -> Profile:
        async def latest(*kinds: MemoryKind, limit: int = MAX_PROFILE_RECORDS) -> tuple[MemoryRecord, ...]:
            page = await self.browse(scope, MemoryFilter(kinds=frozenset(kinds)), limit, None)
            return tuple(sorted(page.records, key=lambda record: not record.pinned))

        messages = MemoryFilter(kinds=frozenset({MemoryKind.RECENT_MESSAGE}))
        said = await self.browse(scope, messages, 4 * MAX_FOCUS_RECORDS, None)
        return Profile(
            facts=await latest(MemoryKind.ENTITY),
            preferences=await latest(MemoryKind.PREFERENCE),
            focus=tuple(record for record in said.records if record.role == "user")[:MAX_FOCUS_RECORDS],
            summaries=await latest(MemoryKind.SUMMARY, limit=MAX_FOCUS_RECORDS),
        )

    # -- correcting ---------------------------------------------------------------------------------------------------

    async def add(self, scope: Scope, content: str, kind: MemoryKind) -> MemoryRecord:
        new = NewMemory("user", "", self._redact(checked_text(content)), "", now_us(), kind=kind)
        with self._writes.start(scope) as write:
            index, generation = await self._writes.enter(write)
            (memory,), prepared = await self._writes.prepare(scope, index, [new])

            def store(change: Change) -> MemoryRecord:
                stored = ingest.Writer(change, prepared).write(memory)
                (record,) = rows.by_id(change.db, scope, [stored.id]).values()
                return record

            record = await self._writes.apply(write, generation, store)
        if record is None:
            raise MemoryBackendError(f"{self._name}: not added, the scope was erased meanwhile")
        return record

    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        text = self._redact(checked_text(content))
        await self._placement.set_up()
        (new,) = await self._embedding.embed([NewMemory("user", "", text, "", 0)])
        at = now_us()
        edited = await self._writes.apply_to_existing(
            scope, lambda change: management_rows.edit(change, storable(id), new, at)
        )
        self._caches.evict(scope)
        return edited

    async def pin(self, scope: Scope, id: str, pinned: bool) -> MemoryRecord | None:
        return await self._writes.apply_to_existing(
            scope, lambda change: management_rows.pin(change, storable(id), pinned)
        )

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def forget(
        self, scope: Scope, ids: Sequence[str], query: str | None, since: datetime | None, until: datetime | None
    ) -> Receipt:
        """What was derived from a deleted message is deleted too."""
        check_forget(ids, query, since, until)

        def forget(change: Change) -> dict[str, int]:
            chosen: list[set[int]] = []
            if ids:
                chosen.append(management_rows.seqs_of(change.db, scope, map(storable, ids)))
            if query is not None:
                chosen.append(management_rows.containing(change.db, scope, query))
            if since is not None or until is not None:
                chosen.append(management_rows.said_between(change.db, scope, since, until))
            return management_rows.forget(change, chosen[0].intersection(*chosen))

        return await self._deleted(scope, await self._writes.apply_to_existing(scope, forget) or {})

    async def erase(self, scope: Scope) -> Receipt:
        """Other writes to the database wait while its file is rewritten, see `Database.scrub`."""
        self._writes.void(scope)
        deleted = await self._placement.run(self._database.write_now, lambda db: management_rows.erase(db, scope))
        return await self._deleted(scope, deleted)

    async def _deleted(self, scope: Scope, deleted: Mapping[str, int]) -> Receipt:
        at = now()
        self._caches.evict(scope)
        needed = any(deleted.values()) or not self._database.scrubbed
        left = await self._database.scrub() if needed else None
        return Receipt(scope.key, at, deleted, (_OUT_OF_REACH,) if left is None else (left, _OUT_OF_REACH))

    # -- moving -------------------------------------------------------------------------------------------------------

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """Also takes the items of mem0's `get_all` (see `mem0_items`): all or none, and only those of this user or session."""
        imported = 0
        with self._writes.start(scope) as write:
            _, generation = await self._writes.enter(write)
            async for page in transfer.pages(scope, values, self._redact):
                store = functools.partial(transfer.write_page, page)
                imported += await self._writes.apply(write, generation, store) or 0
        return imported

    async def _read(self, operation: Callable[[Connection], R]) -> R:
        return await self._placement.run(self._database.read_now, operation)
