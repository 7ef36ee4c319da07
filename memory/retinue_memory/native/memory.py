"""NativeMemory: the built-in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from retinue_memory.chat import EmbedderSource
from retinue_memory.database.base import Alongside, Database
from retinue_memory.database.url import open_database
from retinue_memory.importer import import_chat_model
from retinue_memory.memory import (
    ALL,
    InvocationContext,
    ManagedMemory,
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Profile,
    Receipt,
    Scope,
)
from retinue_memory.messages import Message, Provenance
from retinue_memory.text import storable

from . import extraction, ingest, redaction, rows
from .caches import MemoryCaches
from .consolidation import Consolidation, Worker
from .cues import needs_memory
from .embedder import find_embedder
from .embedding_service import EmbeddingService
from .index_cache import IndexCache, IndexLoader
from .management import Management
from .placement import Placement, are_short, is_short_search
from .ranking import for_embedder
from .search import Search, find
from .writes import Writes

DEFAULT_DATABASE = "sqlite:///var/retinue.db"


class NativeMemory(ManagedMemory):
    """Messages kept word for word in a database, found by words and by meaning. Usable from any event loop.

    `database` is shared and closed by the caller, or the address of one that the memory opens itself at the first use.
    `embedder` is an embedder or a function that returns one, which is called once, off the event loop, at the first use; None:
    words alone count. `cache_mb` (megabytes) bounds the indexes in memory. `max_memories` bounds what one scope holds: beyond it,
    the least valuable are deleted, but never pinned ones. `fade_days`: a memory that was last said that long ago has lost half
    of what fading can take from its score; None: nothing fades. `redact` names what is removed from every text, see
    `Redaction`. With `consolidation`, a model extracts facts from messages in the background; None: messages are the memory.
    """

    def __init__(
        self,
        database: Database | str = DEFAULT_DATABASE,
        *,
        embedder: EmbedderSource = None,
        space: str = "default",
        name: str = "native",
        cache_mb: float = 256,
        max_memories: int = 100_000,
        fade_days: float | None = None,
        redact: Sequence[str] = redaction.DEFAULT,
        consolidation: Consolidation | None = None,
    ) -> None:
        self.name = name
        self.space = space
        self._owns_database = isinstance(database, str)
        self._database = open_database(database) if isinstance(database, str) else database
        self.database = self._database
        self._fade_days = fade_days
        self._redact = redaction.Redaction(redact)
        self._caches = caches = MemoryCaches(int(cache_mb * 1_000_000))
        self._embedding = embedding = EmbeddingService(name, embedder, self._database, caches)
        self._placement = placement = Placement(
            name, caches.texts, open_database=self._open_database, load_embedder=embedding.load
        )
        self._index_loader = IndexLoader(caches.indexes, self._database, placement, embedding.new_index)
        self._writes = writes = Writes(
            name, self._database, placement, caches, self._index_loader, embedding, max_memories=max_memories
        )
        self._management = Management(name, self._database, placement, caches, embedding, writes, self._redact)
        self._worker: Worker | None = None
        if consolidation is not None:
            work = extraction.Extraction(
                name, consolidation, self._database, placement, self._index_loader, writes, self._redact
            )
            self._worker = Worker(name, consolidation, work.run)

    @classmethod
    def from_config(
        cls,
        entry: Mapping[str, Any],
        *,
        name: str,
        database: Database | None,
        embedder: EmbedderSource,
    ) -> Self:
        """Create the memory of a config entry with the keys of `NativeSettings`. Raises ConfigError."""
        from retinue_memory.settings import check

        from .settings import NativeSettings

        settings = check(NativeSettings, entry)
        consolidation = None
        if settings.mode == "llm":
            consolidation = Consolidation(import_chat_model(settings.model), settings.instructions, settings.categories)
        return cls(
            settings.database or database or DEFAULT_DATABASE,
            embedder=(embedder or find_embedder) if settings.uses_embedder else None,
            space=name,
            name=name,
            cache_mb=settings.cache_mb,
            max_memories=settings.max_memories,
            fade_days=settings.fade_days,
            redact=settings.redact,
            consolidation=consolidation,
        )

    @property
    def indexes(self) -> IndexCache:
        """The indexes in memory."""
        return self._caches.indexes

    def open(self) -> None:
        """Open the database now; the embedder is loaded at the first use all the same. Blocks. Raises StoreError."""
        self._placement.open()

    def _open_database(self) -> None:
        rows.migrate(self._database)
        if self._worker is not None:  # before anything new is written, which is announced to the worker by itself
            pending = self._database.read_now(lambda db: extraction.pending_sessions(db, self.space))
            self._worker.start(pending)

    # -- a turn -------------------------------------------------------------------------------------------------------

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """See `Memory.retrieve`. `kinds`, `since`, `until` and `as_of` select as in `MemoryFilter`; `budget` bounds the tokens of
        all messages together."""
        scope = Scope.of(kwargs.get("ctx"), self.space)
        where = MemoryFilter(
            kinds=frozenset(map(MemoryKind, kwargs.get("kinds") or ())),
            since=kwargs.get("since"),
            until=kwargs.get("until"),
            as_of=kwargs.get("as_of"),
        )
        if not needs_memory(query):
            return []
        search = Search(query, where, top_k, kwargs.get("budget"), with_instructions=where == ALL and top_k > 1)
        return list(map(_message, await self._find(scope, search)))

    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        return await self._find(scope, Search(query, where, top_k, budget, with_instructions=False))

    async def _find(self, scope: Scope, search: Search) -> list[MemoryHit]:
        if search.top_k < 1 or not search.query.strip():
            return []
        evictions = self._caches.evictions
        index = await self._index_loader.load(scope)
        readings = await self._embedding.read([for_embedder(search.query, index)]) if index.size else None
        reading = readings[0] if readings else None
        hits, all_embedded = await self._placement.run_here_if(
            is_short_search(index), find, self._database, scope, index, search, reading, self._fade_days
        )
        if not all_embedded:
            self._embedding.embed_missing_later(scope)
        if evictions != self._caches.evictions:  # the caches may hold the query of a user who was erased meanwhile
            self._caches.evict(scope)
        return hits

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """See `Memory.update`. `alongside` is run in the same commit, if there is something to write; see `Alongside`."""
        ctx: InvocationContext | None = kwargs.get("ctx")
        alongside: Alongside | None = kwargs.get("alongside")
        scope = Scope.of(ctx, self.space)
        assert ctx is not None  # noqa: S101 - Scope.of refuses None
        with self._writes.start(scope) as write:
            short = are_short(message.content for message in messages)
            new = await self._placement.run_here_if(short, ingest.new_memories, messages, ctx, self._redact)
            if not new:
                return
            index, generation = await self._writes.enter(write)
            memories, prepared = await self._writes.prepare(scope, index, new)

            def store(change: rows.Change) -> bool:
                ingest.store(change, memories, prepared, pending=self._worker is not None)
                if alongside is not None:
                    alongside.operation(change.db)
                return True

            stored = await self._writes.apply(write, generation, store, flush=alongside is None)
        if alongside is not None:
            alongside.committed = stored is True
        if self._worker is not None and (count := sum(map(ingest.makes_claims, new))):
            self._worker.put(scope, storable(ctx.session_id), count)

    async def settle(self) -> None:
        """Wait until everything that was written is extracted from and embedded."""
        if self._worker is not None:
            await self._placement.set_up()
            await self._worker.settle()
        await self._embedding.settle()

    async def aclose(self) -> None:
        """Finish what is in flight; close the database if it is the memory's own. Closing twice is fine."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop."""
        self._placement.refuse_work()
        if self._worker is not None:
            self._worker.stop()
        self._embedding.close()
        self._placement.close()
        self._caches.indexes.clear()
        if self._owns_database:
            self._database.close()

    # -- the owner's operations ---------------------------------------------------------------------------------------

    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        return await self._management.browse(scope, where, limit, cursor)

    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        return await self._management.get(scope, id)

    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        return await self._management.history(scope, id)

    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        return await self._management.add(scope, content, kind)

    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        return await self._management.edit(scope, id, content)

    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None:
        return await self._management.pin(scope, id, pinned)

    async def forget(
        self,
        scope: Scope,
        *,
        ids: Sequence[str] = (),
        query: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Receipt:
        return await self._management.forget(scope, ids, query, since, until)

    async def erase(self, scope: Scope) -> Receipt:
        return await self._management.erase(scope)

    async def remains(self, scope: Scope) -> Mapping[str, int]:
        return await self._management.remains(scope)

    def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        return self._management.export(scope)

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        return await self._management.import_(scope, values)

    async def profile(self, scope: Scope) -> Profile:
        return await self._management.profile(scope)


def _message(hit: MemoryHit) -> Message:
    memory = hit.record
    provenance = Provenance(
        id=memory.id,
        kind=memory.kind,
        score=round(hit.score, 6),
        sources=list(memory.sources),
        created_at=memory.created_at.isoformat(),
        backend="native",
    )
    metadata = {"memory": provenance, "role": memory.role}
    name = memory.speaker or memory.role
    return Message("system", memory.content, id=memory.id, name=name, created_at=memory.created_at, metadata=metadata)
