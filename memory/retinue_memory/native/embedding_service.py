"""The embedder of a memory: vectors for queries and new memories, and in the background for memories that have none of its."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from retinue_memory.chat import Embedder, EmbedderSource
from retinue_memory.database.base import Connection, Database
from retinue_memory.errors import MemoryBackendError, StoreError
from retinue_memory.memory import Scope

from . import management_rows, rows
from .caches import MemoryCaches
from .embedder import Reader, Reading, Recent
from .index import Index
from .rows import NewMemory

log = logging.getLogger(__name__)

_BACKGROUND_BATCH = 64  # memories embedded between two writes in the background: a recall waits for these at most
_BATCH = 16  # texts in one call: the weights are loaded into the CPU's cache once for all; more would delay the first request
_REMOTE_CALLS = 4  # concurrent calls of an embedder that may wait for a network; one that computes here gets one
_PAUSE_AFTER_FAILURE_S = 60.0
_MAX_SEQ = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Request:
    """Texts that wait to be embedded."""

    texts: Sequence[str]
    readings: Future[list[Reading]]


class EmbeddingService:
    """Embeds texts for one memory, in batches, and caches the latest. `source` None: nothing is embedded."""

    def __init__(self, memory: str, source: EmbedderSource, database: Database, caches: MemoryCaches) -> None:
        self._memory = memory
        self._source = source
        self._database = database
        self._caches = caches
        self._embedder: Recent | None = None
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="memory-vectors")
        self._calls: ThreadPoolExecutor | None = None
        self._requests: deque[_Request] = deque()
        self._closed = False
        self._paused_until = 0.0
        self._in_flight: dict[Scope, Future[None]] = {}
        """The scopes whose missing vectors are being computed."""
        caches.on_evict(self._clear)

    @property
    def has_embedder(self) -> bool:
        """Whether there is an embedder; False before `load`."""
        return self._embedder is not None

    def load(self) -> None:
        """Get the embedder from its source. Blocks. Without one, the memory goes on with words alone, which is logged."""
        source = self._source
        found = source if isinstance(source, Embedder) else None
        if found is None and callable(source):
            try:
                found = source()
            except Exception:
                log.exception("memory %s: the embedder cannot be created", self._memory)
        if found is None:
            log.warning("memory %s: no embedder; memories are found by their words alone", self._memory)
            return
        calls = 1 if isinstance(found, Reader) else _REMOTE_CALLS
        self._calls = ThreadPoolExecutor(calls, thread_name_prefix="memory-embedder")
        self._embedder = Recent(found)

    def close(self) -> None:
        """Stop embedding. Blocks until what is being computed is written."""
        with self._lock:
            self._closed = True
        self._background.shutdown(wait=True, cancel_futures=True)
        if self._calls is not None:
            self._calls.shutdown(wait=True)

    def new_index(self) -> Index:
        """An empty index for vectors of this embedder."""
        embedder = self._embedder
        return Index(embedder.name, embedder.dimensions, embedder.token_width) if embedder else Index(None, 0)

    async def read(self, texts: Sequence[str]) -> list[Reading] | None:
        """The embedder's readings of the texts. Returns None without an embedder, or if it fails, which is logged."""
        embedder = self._embedder
        if embedder is None:
            return None
        found = embedder.known(texts)
        missing = sorted((text for text in dict.fromkeys(texts) if text not in found), key=len)
        try:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                readings: list[Reading] = await asyncio.wrap_future(self._request(embedder, part))
                found |= zip(part, readings, strict=True)
        except Exception:
            if self._closed:
                raise MemoryBackendError(f"{self._memory}: the memory is closed") from None
            log.exception(
                "memory %s: the embedder failed on %d texts; going on with words alone", self._memory, len(texts)
            )
            return None
        return [found[text] for text in texts]

    async def embed(self, memories: Sequence[NewMemory]) -> Sequence[NewMemory]:
        """The memories with vectors; without, if `read` returns None."""
        readings = await self.read([memory.content for memory in memories])
        return memories if readings is None or self._embedder is None else _with(self._embedder, readings, memories)

    def embed_missing_later(self, scope: Scope) -> None:
        """Embed the scope's memories that have no vector of this embedder, in the background, newest first."""
        if self._embedder is None or monotonic() < self._paused_until:
            return
        with self._lock:
            if scope in self._in_flight or self._closed:
                return
            work = self._in_flight[scope] = self._background.submit(self._embed_missing, scope, self._embedder)
        work.add_done_callback(lambda _: self._in_flight.pop(scope, None))

    async def settle(self) -> None:
        """Wait for what is computed in the background."""
        while in_flight := list(self._in_flight.values()):
            await asyncio.gather(*map(asyncio.wrap_future, in_flight), return_exceptions=True)

    def _clear(self) -> None:
        if self._embedder is not None:
            self._embedder.forget()

    def _request(self, embedder: Recent, texts: Sequence[str]) -> Future[list[Reading]]:
        assert self._calls is not None  # noqa: S101 - it came with the embedder
        request = _Request(texts, Future())
        self._requests.append(request)
        self._calls.submit(self._answer_next, embedder)
        return request.readings

    def _answer_next(self, embedder: Recent) -> None:
        """Answer as many of the waiting requests as fit into one call."""
        together: list[_Request] = []
        with self._lock:
            while self._requests and sum(len(one.texts) for one in (*together, self._requests[0])) <= _BATCH:
                request = self._requests.popleft()
                if request.readings.set_running_or_notify_cancel():
                    together.append(request)
        _answer(embedder, together)

    def _embed_missing(self, scope: Scope, embedder: Recent) -> None:
        generation, before = self._database.read_now(lambda db: rows.state(db, scope)).generation, _MAX_SEQ
        try:
            while not self._closed:
                stale = self._database.read_now(
                    functools.partial(
                        management_rows.without_vector,
                        scope=scope,
                        embedder=embedder.name,
                        limit=_BACKGROUND_BATCH,
                        before=before,
                    )
                )
                if not stale:
                    return
                try:
                    readings = embedder.read([content for _, _, content in stale])
                except Exception:
                    log.exception(
                        "memory %s: the embedder failed on %d memories; retrying later", self._memory, len(stale)
                    )
                    self._paused_until = monotonic() + _PAUSE_AFTER_FAILURE_S
                    return
                bare = [NewMemory("user", "", content, "", 0) for _, _, content in stale]
                embedded = [
                    (seq, revision, new)
                    for (seq, revision, _), new in zip(stale, _with(embedder, readings, bare), strict=True)
                ]
                self._database.write_now(
                    functools.partial(_set_vectors, scope=scope, generation=generation, embedded=embedded)
                )
                before = stale[-1][0]
        except rows.Erased:
            self._caches.evict(scope)
        except StoreError as error:
            log.warning("memory %s: vectors of %s are still missing: %s", self._memory, embedder.name, error)


def _set_vectors(
    db: Connection, *, scope: Scope, generation: int, embedded: Sequence[tuple[int, int, NewMemory]]
) -> None:
    management_rows.set_vectors(rows.Change(db, scope, generation), embedded)


def _answer(embedder: Recent, together: Sequence[_Request]) -> None:
    try:
        readings = iter(embedder.read([text for request in together for text in request.texts]))
    except Exception as error:  # noqa: BLE001 - the awaiter of the request gets it
        if len(together) == 1:
            together[0].readings.set_exception(error)
            return
        for request in together:  # only the request whose text it was is to fail
            _answer(embedder, [request])
    else:
        for request in together:
            request.readings.set_result([next(readings) for _ in request.texts])


def _with(embedder: Embedder, readings: Sequence[Reading], memories: Sequence[NewMemory]) -> list[NewMemory]:
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
