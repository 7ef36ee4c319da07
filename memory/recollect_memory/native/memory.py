"""NativeMemory: the built-in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, ParamSpec, Self, TypeVar

from recollect_memory.contract import Embedder, InvocationContext, Memory, MemoryRecord, Message, Provenance, Scope
from recollect_memory.errors import ConfigError, MemoryBackendError, RecollectError, StoreError
from recollect_memory.sqlite import Database, path_of

from . import store
from .cues import needs_memory
from .embedding import Reading, Recent, find_embedder
from .index import Index, Indexes
from .ranking import best, for_embedder, rank, read

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

DEFAULT_DATABASE = "sqlite:///var/recollect.db"
_THREADS = 4
"""For what a turn computes: embedding releases the GIL, and one scope's loading must not hold up all others."""
_SETTINGS = {"database": DEFAULT_DATABASE, "embedder": "minilm", "cache_mb": 128}


class NativeMemory(Memory):
    """What was said, kept word for word in a database and found by words and by meaning.

    `database` is one that the caller shares and closes, or an address that the memory opens itself at its first use.
    `embedder` is an embedder or a function that finds one, called once, off the event loop, at the first use; None:
    retrieval is by words alone. `cache_mb` bounds the indexes kept in memory. May be used from any event loop.
    """

    def __init__(
        self,
        database: Database | str = DEFAULT_DATABASE,
        *,
        embedder: Embedder | Callable[[], Embedder | None] | None = None,
        space: str = "default",
        name: str = "native",
        cache_mb: float = 128,
    ) -> None:
        self.name = name
        self.space = space
        self._owns_database = isinstance(database, str)
        self._database = Database(path_of(database)) if isinstance(database, str) else database
        self._embedder_source = embedder
        self._embedder: Recent | None = None
        self._opening, self._getting_ready = threading.Lock(), threading.Lock()
        self._opened = self._ready = False
        self._closed = False
        self.indexes = Indexes(int(cache_mb * 1_000_000))
        """What is kept in memory; letting go of any of it loses nothing."""
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memory")

    @classmethod
    def from_config(
        cls,
        entry: Mapping[str, Any],
        *,
        name: str,
        database: Database | None,
        embedder: Embedder | Callable[[], Embedder | None] | None,
    ) -> Self:
        """From a config entry: `database`, `embedder` ("minilm" or off) and `cache_mb`. Raises ConfigError."""
        from recollect_memory.registry import nearest

        for key, value in entry.items():
            if key not in _SETTINGS:
                near = nearest(key, _SETTINGS) or f" (it has {', '.join(_SETTINGS)})"
                raise ConfigError(f"the native memory has no setting {key!r}{near}", key=key, value=value)
        settings = _SETTINGS | dict(entry)
        return cls(
            _database(settings["database"]) if database is None or "database" in entry else database,
            embedder=_embedder(settings["embedder"], embedder),
            space=name,
            name=name,
            cache_mb=_megabytes(settings["cache_mb"]),
        )

    def open(self) -> None:
        """Open the database now rather than at the first use; the embedder still waits for that. Raises StoreError; blocks."""
        with self._opening:
            if self._closed:
                raise MemoryBackendError(f"{self.name}: the memory is closed")
            if not self._opened:
                store.migrate(self._database)
                self._opened = True

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        scope = Scope.of(kwargs.get("ctx"), self.space)
        if top_k < 1 or not needs_memory(query):
            return []
        return await self._run(self._retrieve, scope, query, top_k)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        ctx: InvocationContext | None = kwargs.get("ctx")
        scope = Scope.of(ctx, self.space)
        assert ctx is not None  # noqa: S101 - Scope.of refuses None
        new = list(_memories(messages, ctx))
        if not new:
            return
        life = await self._run(self._begun, scope)
        rows = await self._run(self._embedded, new)
        try:
            await self._database.write(lambda db: store.Change(db, scope, life).add(rows))
        except store.Erased:
            log.info("memory %s: a turn was not written: its scope was erased meanwhile", self.name)
            return
        if self.indexes.get(scope) is not None:  # now rather than in the next retrieve, which would do it too
            try:
                await self._run(self._caught_up, scope)
            except RecollectError as error:  # the messages are accepted all the same
                log.warning("memory %s: its index could not be brought up to date: %s", self.name, error)

    async def aclose(self) -> None:
        """Wait for what is under way; close the database if it is the memory's own. Closing twice is fine."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop."""
        with self._opening:
            self._closed = True
        self._pool.shutdown(wait=True)
        self.indexes.clear()
        if self._owns_database:
            self._database.close()

    # -- on the pool's threads ----------------------------------------------------------------------------------------

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._closed:
            raise MemoryBackendError(f"{self.name}: the memory is closed")

        def ready() -> R:
            if not self._ready:
                self._get_ready()
            return work(*args, **kwargs)

        try:
            under_way = self._pool.submit(ready)
        except RuntimeError:  # closed since
            raise MemoryBackendError(f"{self.name}: the memory is closed") from None
        return await asyncio.wrap_future(under_way)

    def _get_ready(self) -> None:
        with self._getting_ready:
            self.open()
            if not self._ready:
                self._embedder = self._find_embedder()
                self._ready = True

    def _begun(self, scope: Scope) -> int:
        """The life that the scope is in; one that was never written to begins it."""
        life = self._database.read_now(lambda db: store.state(db, scope)).life
        return life or self._database.write_now(lambda db: store.begin(db, scope))

    def _retrieve(self, scope: Scope, query: str, top_k: int) -> list[Message]:
        index = self._caught_up(scope)
        if not index.size:
            return []
        readings = self._read([for_embedder(query, index)])
        with index.lock:
            asked = read(query, index, readings[0] if readings else None)
            scores = rank(index, asked, datetime.now(UTC)).scores
            chosen = [(int(index.column("seqs")[place]), float(scores[place])) for place in best(scores, top_k)]
        rows = self._database.read_now(lambda db: store.by_seq(db, scope, [seq for seq, _ in chosen]))
        return [_message(rows[seq], score) for seq, score in chosen if seq in rows]

    def _caught_up(self, scope: Scope) -> Index:
        """The scope's index, with everything in it that was acknowledged before this call."""
        kept = self.indexes.get(scope)
        index = kept or self.indexes.put(scope, self._empty_index())
        with index.lock:
            changed = self._database.read_now(lambda db: _catch_up(db, scope, index))
            if changed or kept is None:
                self.indexes.settle(scope, index)
        return index

    def _empty_index(self) -> Index:
        embedder = self._embedder
        return Index(embedder.name, embedder.dimensions, embedder.token_width) if embedder else Index(None, 0)

    def _embedded(self, memories: Sequence[store.NewMemory]) -> Sequence[store.NewMemory]:
        readings, embedder = self._read([memory.content for memory in memories]), self._embedder
        if readings is None or embedder is None:
            return memories
        return [
            dataclasses.replace(
                memory,
                embedder=embedder.name,
                dimensions=len(reading.vector),
                vector=reading.vector.astype("<f4").tobytes(),
                tokens=reading.tokens.tobytes() if reading.tokens is not None else None,
            )
            for memory, reading in zip(memories, readings, strict=True)
        ]

    def _read(self, texts: Sequence[str]) -> list[Reading] | None:
        """What the embedder makes of them; None where there is none, or where it fails: words alone are better than nothing."""
        if self._embedder is None:
            return None
        try:
            return self._embedder.read(texts)
        except Exception:
            log.exception("memory %s: the embedder failed on %d texts: by words alone", self.name, len(texts))
            return None

    def _find_embedder(self) -> Recent | None:
        source = self._embedder_source
        found = source if isinstance(source, Embedder) else None
        if found is None and callable(source):
            try:
                found = source()
            except Exception:
                log.exception("memory %s: the embedder cannot be had", self.name)
        if found is None:
            log.warning("memory %s: no embedder: what is remembered is found by its words alone", self.name)
            return None
        return Recent(found)


def _catch_up(db: Any, scope: Scope, index: Index) -> bool:
    state = store.state(db, scope)
    if state.epoch != index.epoch:
        index.start_over(state.epoch)
    if state.version == index.version:
        return False
    index.apply(store.changed_since(db, scope, index.version), state.version)
    return True


def _memories(messages: Sequence[Message], ctx: InvocationContext) -> list[store.NewMemory]:
    """What the user and the assistant said. Recalled memories, instructions and tool results are not memories."""
    return [
        store.NewMemory(
            role=message.role,
            speaker=store.storable(message.name or ""),
            content=store.storable(message.content),
            session_id=store.storable(ctx.session_id),
            said_at=store.microseconds(message.created_at),
            sources=(
                store.Source(
                    message_id=store.storable(message.id),
                    said_at=store.microseconds(message.created_at),
                    turn_id=None if ctx.turn_id is None else store.storable(ctx.turn_id),
                    position=position,
                ),
            ),
        )
        for position, message in enumerate(messages)
        if message.role in ("user", "assistant") and message.content.strip() and "memory" not in message.metadata
    ]


def _message(memory: MemoryRecord, score: float) -> Message:
    provenance = Provenance(
        id=memory.id,
        kind=memory.kind,
        score=round(min(1.0, max(0.0, score)), 6),
        sources=list(memory.sources),
        created_at=memory.created_at.isoformat(),
        backend="native",
    )
    metadata = {"memory": provenance, "role": memory.role}
    name = memory.speaker or memory.role
    return Message("system", memory.content, id=memory.id, name=name, created_at=memory.created_at, metadata=metadata)


def _database(address: object) -> str:
    try:
        if isinstance(address, str):
            path_of(address)
            return address
    except StoreError as error:
        raise ConfigError(str(error), key="database", value=address) from None
    raise ConfigError("a database is an address such as sqlite:///file.db", key="database", value=address)


def _embedder(
    setting: object, given: Embedder | Callable[[], Embedder | None] | None
) -> Embedder | Callable[[], Embedder | None] | None:
    if setting in (False, None, "off", "none"):
        return None
    if setting != "minilm":
        raise ConfigError('an embedder is "minilm", or off', key="embedder", value=setting)
    return given or find_embedder


def _megabytes(setting: object) -> float:
    if isinstance(setting, bool) or not isinstance(setting, int | float) or not setting > 0:
        raise ConfigError("a size in megabytes is a number above 0", key="cache_mb", value=setting)
    return float(setting)
