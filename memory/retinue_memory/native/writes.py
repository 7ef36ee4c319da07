"""Writes to scopes: prepared off the writer's thread, applied in one transaction, dropped if the scope was erased meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from retinue_memory.database.base import Connection, Database
from retinue_memory.errors import RetinueError
from retinue_memory.memory import Scope

from . import ingest, management_rows, rows
from .caches import MemoryCaches
from .embedding_service import EmbeddingService
from .index import Index
from .index_cache import IndexLoader
from .placement import Placement, are_short, is_short_search
from .rows import Change, NewMemory

R = TypeVar("R")

log = logging.getLogger(__name__)

_BULK_ROWS = 200  # an index catches up at once with a write of so many rows; with a turn's few, its next reader does it


class PendingWrite:
    """A write that has started and not ended. `is_void`: its scope was erased since, and it must not be applied."""

    __slots__ = ("is_void", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.is_void = False


class Writes:
    """The writes of one memory.

    An erasure wins over every write that started before it: it voids those of this process, and ends the generation in which
    those of others started.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        placement: Placement,
        caches: MemoryCaches,
        indexes: IndexLoader,
        embedding: EmbeddingService,
        *,
        max_memories: int,
    ) -> None:
        self._name = name
        self._database = database
        self._placement = placement
        self._caches = caches
        self._indexes = indexes
        self._embedding = embedding
        self._max_memories = max_memories
        self._lock = threading.Lock()
        self._in_flight: dict[Scope, set[PendingWrite]] = {}

    @contextmanager
    def start(self, scope: Scope) -> Generator[PendingWrite]:
        """A write that `void` can reach until the block ends."""
        write = PendingWrite(scope)
        with self._lock:
            self._in_flight.setdefault(scope, set()).add(write)
        try:
            yield write
        finally:
            with self._lock:
                others = self._in_flight[scope]
                others.discard(write)
                if not others:
                    del self._in_flight[scope]

    def void(self, scope: Scope) -> None:
        """Keep the writes of this scope that are in flight from being applied."""
        with self._lock:
            for write in self._in_flight.get(scope, ()):
                write.is_void = True

    async def enter(self, write: PendingWrite) -> tuple[Index, int]:
        """The index and the generation of the write's scope; starts a generation if there is none. 0 if the write is void."""
        scope = write.scope
        index = await self._indexes.load(scope)
        if index.generation:
            return index, index.generation
        return index, await self._database.write(lambda db: 0 if write.is_void else rows.start_generation(db, scope))

    async def prepare(
        self, scope: Scope, index: Index, new: Sequence[NewMemory]
    ) -> tuple[Sequence[NewMemory], ingest.Prepared]:
        """Embed new memories, and look up what they may merge with or supersede."""
        await self._placement.set_up()
        memories = await self._embedding.embed(new)
        short = is_short_search(index) and are_short(row.content for row in memories)
        prepared = await self._placement.run_here_if(short, ingest.prepare, self._database, scope, index, memories)
        return memories, prepared

    async def apply(
        self, write: PendingWrite, generation: int, work: Callable[[Change], R], *, flush: bool = True
    ) -> R | None:
        """Change the scope, and delete the least valuable memories if it has too many. `flush`: see `Database.write`.

        Returns None if the scope was erased since the write started, and nothing was written.
        """
        scope, caches = write.scope, self._caches

        def change_scope(db: Connection) -> tuple[R, bool]:
            if write.is_void:
                raise rows.Erased
            change = Change(db, scope, generation)
            done = caches.texts.run(work, change)
            management_rows.trim(change, self._max_memories)
            lacks_vectors = change.lacks_vectors and self._embedding.has_embedder
            return done, lacks_vectors or change.rows_changed > _BULK_ROWS

        try:
            done, catch_up = await self._database.write(change_scope, flush=flush)
        except rows.Erased:
            log.info("memory %s: dropped a write, its scope was erased meanwhile", self._name)
            caches.evict(scope)
            return None
        if catch_up and caches.indexes.get(scope) is not None:
            await self._catch_up(scope)
        return done

    async def apply_to_existing(self, scope: Scope, work: Callable[[Change], R]) -> R | None:
        """Change what is stored. Returns None if nothing is, or if it was erased meanwhile."""
        state = await self._placement.run(self._database.read_now, lambda db: rows.state(db, scope))
        if not state.generation:
            return None
        texts = self._caches.texts
        try:
            return await self._database.write(lambda db: texts.run(work, Change(db, scope, state.generation)))
        except rows.Erased:
            return None

    async def _catch_up(self, scope: Scope) -> None:
        try:
            index = await self._indexes.load(scope)
            if not bool(index.column("embedded").all()):
                self._embedding.embed_missing_later(scope)
        except RetinueError as error:  # the write is committed all the same
            log.warning("memory %s: the index cannot catch up, its next reader tries again: %s", self._name, error)
