"""NativeMemory: the built-in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from retinue_memory.chat import EmbedderSource
from retinue_memory.database.base import Alongside, Connection, Database
from retinue_memory.database.url import open_database
from retinue_memory.errors import MemoryBackendError, RetinueError
from retinue_memory.importer import import_chat_model
from retinue_memory.memory import (
    ALL,
    InvocationContext,
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryRecord,
    Scope,
)
from retinue_memory.messages import Message, Provenance

from . import (
    ingest,
    management_rows,
    redaction,
    rows,
)
from .consolidation import Consolidation, Worker, draw
from .cues import needs_memory
from .embedder import find_embedder
from .embedding_service import Vectors
from .filters import (
    allowed,
    instructions,
    retention,
    substance,
    with_instructions,
    within,
)
from .index import Index
from .index_cache import Indexes
from .management import (
    Begun,
    InFlight,
    Owned,
    text_of,
)
from .ranking import (
    best,
    for_embedder,
    rank,
    read,
)

if TYPE_CHECKING:
    from .embedder import Reading

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

DEFAULT_DATABASE = "sqlite:///var/retinue.db"
_THREADS = 4
"""For what takes long: one scope's loading must not hold up all others."""
_SMALL = 2_000
"""Memories up to which a scope's index is worked on where the call is made: a thread that fights for the GIL with the event
loop's takes both as long again as the millisecond that it takes."""
_SHORT = 4_000
"""Characters of texts up to which they are read where the call is made."""
_FEW = 50
"""Rows with which an index is brought up to date there, if they are short together."""
_MUCH = 200
"""Rows of a write from which an index is brought up to date with it at once; a turn's few are left to who reads next."""
_KNOWN = 30
"""Memories around its messages that a model is told, so that it does not draw them again."""


class NativeMemory(Owned):
    """What was said, kept word for word in a database and found by words and by meaning.

    `database` is one that the caller shares and closes, or an address that the memory opens itself at its first use.
    `embedder` is an embedder or a function that finds one, called once, off the event loop, at the first use; None:
    retrieval is by words alone. `cache_mb` bounds the indexes kept in memory, `max_memories` what one scope may hold: beyond
    it, the least valuable that are not pinned go. `fade_days`: what was last said so long ago has lost half of what it can
    lose of its score; None: nothing fades. `redact` says what is taken out of every text first (see `Redaction`).
    `consolidation`: a model draws facts from what was said, in the background; None: what was said is the memory. May be
    used from any event loop.
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
        self._opening, self._getting_ready = threading.Lock(), threading.Lock()
        self._opened = self._ready = False
        self._closed = False
        self.indexes = Indexes(int(cache_mb * 1_000_000))
        """What is kept in memory; letting go of any of it loses nothing."""
        self._max_memories = max_memories
        self._fade_days = fade_days
        self._redact = redaction.Redaction(redact)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memory")
        self._vectors = Vectors(name, embedder, self._database, self._let_go)
        self._under_way = InFlight()
        self._consolidation = consolidation
        self._worker: Worker | None = None
        if consolidation is not None:
            self._worker = Worker(name, consolidation, self._consolidate)

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

    def open(self) -> None:
        """Open the database now rather than at the first use; the embedder still waits for that. Raises StoreError; blocks."""
        with self._opening:
            self._refuse_if_closed()
            if not self._opened:
                rows.migrate(self._database)
                if self._worker is not None:  # before anything new is written: that is announced as it comes
                    self._worker.start(self._database.read_now(lambda db: ingest.pending_sessions(db, self.space)))
                self._opened = True

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """As the contract says. `kinds`, `since`, `until` and `as_of` choose as `MemoryFilter` does; `budget` bounds the tokens
        of all that comes back."""
        scope = Scope.of(kwargs.get("ctx"), self.space)
        where = MemoryFilter(
            kinds=frozenset(map(MemoryKind, kwargs.get("kinds") or ())),
            since=kwargs.get("since"),
            until=kwargs.get("until"),
            as_of=kwargs.get("as_of"),
        )
        if not needs_memory(query):
            return []
        standing = where == ALL and top_k > 1
        return list(map(_message, await self._found(scope, query, where, top_k, kwargs.get("budget"), standing)))

    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        return await self._found(scope, query, where, top_k, budget, standing=False)

    async def _found(
        self, scope: Scope, query: str, where: MemoryFilter, top_k: int, budget: int | None, standing: bool
    ) -> list[MemoryHit]:
        if top_k < 1 or not query.strip():
            return []
        deletions = self._deletions
        index = await self._up_to_date(scope)
        readings = await self._vectors.read([for_embedder(query, index)]) if index.size else None
        reading = readings[0] if readings else None
        quick = _is_at_hand(index)
        found = await self._do(quick, self._search, scope, index, query, reading, where, top_k, budget, standing)
        if deletions != self._deletions:  # an erased user's query may have come into the caches since
            self._let_go(scope)
        return found

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """As the contract says. `alongside` is taken into the commit, if there is something to write; see `Alongside`."""
        ctx: InvocationContext | None = kwargs.get("ctx")
        alongside: Alongside | None = kwargs.get("alongside")
        scope = Scope.of(ctx, self.space)
        assert ctx is not None  # noqa: S101 - Scope.of refuses None
        with self._under_way.begun(scope) as begun:
            new = await self._drafted(messages, ctx)
            if not new:
                return
            index, life = await self._begun(scope, begun)
            memories, prepared = await self._made_ready(scope, index, new)
            pending = self._worker is not None

            def take(change: rows.Change) -> bool:
                ingest.take(change, memories, prepared, pending=pending)
                if alongside is not None:
                    alongside.operation(change.db)
                return True

            written = await self._write(scope, life, take, begun, flush=alongside is None)
        if alongside is not None:
            alongside.committed = written is True
        if self._worker is not None and (count := sum(map(ingest.is_claiming, new))):
            self._worker.put(scope, rows.storable(ctx.session_id), count)

    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        text, now = self._redact(text_of(content)), rows.microseconds(datetime.now(UTC))
        new = rows.NewMemory("user", "", text, "", now, kind=kind)
        with self._under_way.begun(scope) as begun:
            index, life = await self._begun(scope, begun)
            (row,), prepared = await self._made_ready(scope, index, [new])

            def write(change: rows.Change) -> MemoryRecord:
                (record,) = rows.by_id(change.db, scope, [ingest.Writer(change, prepared).write(row).id]).values()
                return record

            record = await self._write(scope, life, write, begun)
        if record is None:
            raise MemoryBackendError(f"{self.name}: not added: everything of this scope was erased meanwhile")
        return record

    async def settle(self) -> None:
        """Wait for what is computed in the background: what a model draws from what was said, and vectors that are missing."""
        if self._worker is not None:
            await self._run(lambda: None)
            await self._worker.settle()
        while giving := list(self._vectors.under_way.values()):
            await asyncio.gather(*map(asyncio.wrap_future, giving), return_exceptions=True)

    async def _write(
        self,
        scope: Scope,
        life: int,
        work: Callable[[rows.Change], R],
        begun: Begun | None = None,
        *,
        flush: bool = True,
    ) -> R | None:
        """Write into the life in which the caller began; None: it has ended, an erasure wins. `flush`: see `Database.write`."""

        def write(db: Connection) -> tuple[R, bool]:
            if begun is not None and begun.void:
                raise rows.Erased
            change = rows.Change(db, scope, life)
            done = work(change)
            management_rows.trim(change, self._max_memories)
            return done, (change.bare and self._vectors.known) or change.touched > _MUCH

        try:
            done, at_once = await self._database.write(write, flush=flush)
        except rows.Erased:
            log.info("memory %s: a write was dropped: its scope was erased meanwhile", self.name)
            self._let_go(scope)
            return None
        if at_once and self.indexes.get(scope) is not None:
            try:
                index = await self._up_to_date(scope)
                if not bool(index.column("embedded").all()):  # what is left of a message, for one
                    self._vectors.give_later(scope)
            except RetinueError as error:  # what was written is accepted all the same
                log.warning("memory %s: its index could not be brought up to date: %s", self.name, error)
        return done

    async def aclose(self) -> None:
        """Wait for what is under way; close the database if it is the memory's own. Closing twice is fine."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop."""
        with self._opening:
            self._closed = True
        if self._worker is not None:
            self._worker.stop()
        self._vectors.close()
        self._pool.shutdown(wait=True)
        self.indexes.clear()
        if self._owns_database:
            self._database.close()

    # -- a model at work ----------------------------------------------------------------------------------------------

    async def _consolidate(self, scope: Scope, session_id: str) -> bool:
        """Let the model work on the oldest messages of a session that wait; whether there may be more."""
        settings = self._consolidation
        assert settings is not None  # noqa: S101 - the worker is there because of it
        with self._under_way.begun(scope) as begun:
            waiting = await self._run(self._waiting, scope, session_id, settings.batch)
            records = list(waiting.records.values())
            if not records:
                return False
            summary = waiting.summary.content if waiting.summary is not None else ""
            found = await draw(records, waiting.known, summary, settings)
            if found is None:
                log.warning("memory %s: %d messages stay as they were said", self.name, len(records))
                await self._write(scope, waiting.life, lambda change: ingest.give_up(change, waiting), begun)
                return len(records) == settings.batch
            new = ingest.drawn_from(records, found[0], self._redact)
            memories, prepared = await self._made_ready(scope, await self._up_to_date(scope), new)
            told = self._redact(rows.storable(found[1]))
            settled = await self._write(
                scope, waiting.life, lambda change: ingest.settle(change, waiting, memories, prepared, told), begun
            )
            return settled is False or len(records) == settings.batch

    def _waiting(self, scope: Scope, session_id: str, most: int) -> ingest.Waiting:
        waiting = self._database.read_now(lambda db: ingest.waiting(db, scope, session_id, most))
        index = self._caught_up(scope)
        with index.lock:
            near = {seq for record in waiting.records.values() for seq in ingest.neighbours(index, record.content)}
        around = self._database.read_now(lambda db: rows.by_seq(db, scope, sorted(near))).values()
        known = tuple(record.content for record in around if record.role == "system" and record.quarantined is None)
        return dataclasses.replace(waiting, known=known[-_KNOWN:])

    # -- where work is done -------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """On a thread of the pool, once the memory is open."""
        self._refuse_if_closed()

        def ready() -> R:
            if not self._ready:
                self._get_ready()
            return work(*args, **kwargs)

        try:
            under_way = self._pool.submit(ready)
        except RuntimeError:  # closed since
            raise MemoryBackendError(f"{self.name}: the memory is closed") from None
        return await asyncio.wrap_future(under_way)

    async def _do(self, quick: bool, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`quick`, it takes less than the way to another thread and back: on this one, if the memory is open."""
        if not quick or not self._ready:
            return await self._run(work, *args, **kwargs)
        self._refuse_if_closed()
        return work(*args, **kwargs)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise MemoryBackendError(f"{self.name}: the memory is closed")

    def _get_ready(self) -> None:
        with self._getting_ready:
            self.open()
            if not self._ready:
                self._vectors.find()
                self._ready = True

    # -- what a turn computes -----------------------------------------------------------------------------------------

    async def _drafted(self, messages: Sequence[Message], ctx: InvocationContext) -> Sequence[rows.NewMemory]:
        """What is to be written of these messages."""
        quick = _are_short(message.content for message in messages)
        return await self._do(quick, ingest.drafts, messages, ctx, self._redact)

    async def _begun(self, scope: Scope, begun: Begun) -> tuple[Index, int]:
        """The index of the scope and the life that it is in; one that was never written to begins it."""
        index = await self._up_to_date(scope)
        if index.life:
            return index, index.life
        return index, await self._database.write(lambda db: 0 if begun.void else rows.begin(db, scope))

    async def _given(self, memories: Sequence[rows.NewMemory]) -> Sequence[rows.NewMemory]:
        if not self._ready:
            await self._run(lambda: None)
        return await self._vectors.given(memories)

    async def _made_ready(
        self, scope: Scope, index: Index, new: Sequence[rows.NewMemory]
    ) -> tuple[Sequence[rows.NewMemory], ingest.Prepared]:
        """What a write needs: the memories with their vectors, and what they may meet."""
        memories = await self._given(new)
        quick = _is_at_hand(index) and _are_short(row.content for row in memories)
        return memories, await self._do(quick, self._prepared, scope, index, memories)

    def _prepared(self, scope: Scope, index: Index, memories: Sequence[rows.NewMemory]) -> ingest.Prepared:
        texts = [ingest.wording(row.content) for row in memories if ingest.is_claiming(row)]
        if not texts:
            return ingest.Prepared()
        with index.lock:
            version, near = index.version, {text: ingest.neighbours(index, text) for text in texts}
            all_read = index.slots_version >= version
        if all_read:
            return ingest.Prepared(version, near)
        slots = self._database.read_now(lambda db: ingest.unread_slots(db, scope, version))
        return ingest.Prepared(version, near, slots)

    def _search(
        self,
        scope: Scope,
        index: Index,
        query: str,
        reading: Reading | None,
        where: MemoryFilter,
        top_k: int,
        budget: int | None,
        standing: bool,
    ) -> list[MemoryHit]:
        now, always = datetime.now(UTC), list[int]()
        with index.lock:
            if not index.size:
                return []
            may = allowed(index, where, now)
            ranking = rank(index, read(query, index, reading), now, may)
            kept = substance(index)
            if self._fade_days is not None:
                kept *= retention(index.column("said_at"), index.column("pinned"), now, self._fade_days)
            seqs = index.column("seqs")
            chosen = [
                (int(seqs[place]), _explained(ranking.explain(place), float(kept[place])))
                for place in best(ranking.scores * kept, top_k)
            ]
            if standing and index.column("standing").any():
                always = [int(seq) for seq in seqs[instructions(index, now)[-max(1, top_k // 3) :]]]
            missing = not bool(index.column("embedded").all())
        if missing:
            self._vectors.give_later(scope)
        records = self._database.read_now(lambda db: rows.by_seq(db, scope, [*(seq for seq, _ in chosen), *always]))
        hits = [
            MemoryHit(records[seq], min(1.0, max(0.0, sum(explained.values()))), explained)
            for seq, explained in chosen
            if seq in records
        ]
        hits = with_instructions(hits, [records[seq] for seq in reversed(always) if seq in records], top_k)
        return list(within(budget, ((hit, hit.record.content) for hit in hits)))

    async def _up_to_date(self, scope: Scope) -> Index:
        """The scope's index, with everything in it that was acknowledged before this call."""
        index = self.indexes.get(scope)
        if index is not None and await self._do(_is_at_hand(index), self._keep_up, scope, index, _FEW):
            return index
        return await self._run(self._caught_up, scope)

    def _caught_up(self, scope: Scope) -> Index:
        """`_up_to_date`, however much is new."""
        index = self.indexes.get(scope) or self.indexes.put(scope, self._vectors.index())
        self._keep_up(scope, index)
        return index

    def _keep_up(self, scope: Scope, index: Index, most: int | None = None) -> bool:
        """Take in the rows that are new; False: they are more than `most`, or long."""
        with index.lock:
            grown = self._database.read_now(lambda db: _catch_up(db, scope, index, most))
            if grown or most is None:
                self.indexes.settle(scope, index)
        return grown is not None


def _is_at_hand(index: Index) -> bool:
    return index.size <= _SMALL and not index.lock.locked()


def _are_short(texts: Iterable[str]) -> bool:
    return sum(map(len, texts)) <= _SHORT


def _catch_up(db: Connection, scope: Scope, index: Index, most: int | None = None) -> bool | None:
    """Bring the index to the rows; whether there was anything new. None: it is more than `most`, or long, and nothing was
    done."""
    state = rows.state(db, scope)
    if state.epoch != index.epoch:
        if most is not None and index.size:
            return None
        index.start_over(state.epoch)
    index.life, index.slots_version = state.life, state.slots_version
    if state.version == index.version:
        return False
    changed = rows.changed_since(db, scope, index.version, -1 if most is None else most + 1)
    if most is not None and (len(changed) > most or not _are_short(row.content for row in changed)):
        return None
    index.apply(changed, state.version)
    return True


def _explained(signals: dict[str, float], kept: float) -> dict[str, float]:
    return signals if kept == 1.0 else signals | {"faded": (kept - 1.0) * sum(signals.values())}


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
