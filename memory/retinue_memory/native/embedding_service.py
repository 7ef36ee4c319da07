"""The embedder of a memory, and the vectors it gives: to what is asked and written, and later to what has none of its."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from retinue_memory.chat import Embedder, EmbedderSource
from retinue_memory.database.base import Connection, Database
from retinue_memory.errors import MemoryBackendError, StoreError
from retinue_memory.memory import Scope

from . import management_rows, rows
from .embedder import Reader, Reading, Recent
from .index import Index

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Memories that get new vectors in one go: recall waits at most for these."""
_AT_A_TIME = 16
"""Texts that are read in one pass: what waits together shares the way of the model's weights through the cache, and what
somebody asks meanwhile waits for no more."""
_CALLS = 4
"""Calls at a time of an embedder that may be elsewhere; of one that computes here, one."""
_REST = 60.0
"""Seconds after a failure of the embedder before missing vectors are asked for again."""
_LAST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Asked:
    """Texts that wait to be read, and who waits for them."""

    texts: Sequence[str]
    readings: Future[list[Reading]]


class Vectors:
    """`source` is an embedder, or a function that finds one and is called once; None: memories are found by words alone.

    `erased` is told of a scope that was erased while it was worked on.
    """

    def __init__(
        self,
        memory: str,
        source: EmbedderSource,
        database: Database,
        erased: Callable[[Scope], None],
    ) -> None:
        self._memory = memory
        self._source = source
        self._database = database
        self._erased = erased
        self._embedder: Recent | None = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory-vectors")
        self._reading: ThreadPoolExecutor | None = None
        self._asked: deque[_Asked] = deque()
        self._closed = False
        self._rests_until = 0.0
        self.under_way: dict[Scope, Future[None]] = {}
        """The scopes whose memories are being given vectors of this embedder."""

    @property
    def known(self) -> bool:
        """Whether there is an embedder."""
        return self._embedder is not None

    def find(self) -> None:
        """Look for the embedder; blocks."""
        source = self._source
        found = source if isinstance(source, Embedder) else None
        if found is None and callable(source):
            try:
                found = source()
            except Exception:
                log.exception("memory %s: the embedder cannot be had", self._memory)
        if found is None:
            log.warning("memory %s: no embedder: what is remembered is found by its words alone", self._memory)
            return
        calls = 1 if isinstance(found, Reader) else _CALLS
        self._reading = ThreadPoolExecutor(calls, thread_name_prefix="memory-embedder")
        self._embedder = Recent(found)

    def forget(self) -> None:
        """Keep no text any longer that was read."""
        if self._embedder is not None:
            self._embedder.forget()

    def close(self) -> None:
        """Stop giving vectors; blocks until what is being given is written."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._reading is not None:
            self._reading.shutdown(wait=True)

    def index(self) -> Index:
        """An empty index for vectors of this embedder."""
        embedder = self._embedder
        return Index(embedder.name, embedder.dimensions, embedder.token_width) if embedder else Index(None, 0)

    async def read(self, texts: Sequence[str]) -> list[Reading] | None:
        """What the embedder makes of them; None where there is none, or where it fails: words alone are better than nothing."""
        embedder = self._embedder
        if embedder is None:
            return None
        found = embedder.known(texts)
        missing = sorted((text for text in dict.fromkeys(texts) if text not in found), key=len)
        try:
            for start in range(0, len(missing), _AT_A_TIME):
                part = missing[start : start + _AT_A_TIME]
                readings: list[Reading] = await asyncio.wrap_future(self._ask(embedder, part))
                found |= zip(part, readings, strict=True)
        except Exception:
            if self._closed:
                raise MemoryBackendError(f"{self._memory}: the memory is closed") from None
            log.exception("memory %s: the embedder failed on %d texts: by words alone", self._memory, len(texts))
            return None
        return [found[text] for text in texts]

    async def given(self, memories: Sequence[rows.NewMemory]) -> Sequence[rows.NewMemory]:
        """The memories with their vectors, where they can be had."""
        readings = await self.read([memory.content for memory in memories])
        return memories if readings is None or self._embedder is None else _with(self._embedder, readings, memories)

    def _ask(self, embedder: Recent, texts: Sequence[str]) -> Future[list[Reading]]:
        assert self._reading is not None  # noqa: S101 - it came with the embedder
        asked = _Asked(texts, Future())
        self._asked.append(asked)
        self._reading.submit(self._read_together, embedder)
        return asked.readings

    def _read_together(self, embedder: Recent) -> None:
        """Read what waits, so far as it goes into one pass."""
        together: list[_Asked] = []
        with self._lock:
            while self._asked and sum(len(one.texts) for one in (*together, self._asked[0])) <= _AT_A_TIME:
                asked = self._asked.popleft()
                if asked.readings.set_running_or_notify_cancel():
                    together.append(asked)
        _answer(embedder, together)

    def give_later(self, scope: Scope) -> None:
        """Give the scope's memories that have no vector of this embedder one, in the background; until then, their words find
        them."""
        if self._embedder is None or monotonic() < self._rests_until:
            return
        with self._lock:
            if scope in self.under_way or self._closed:
                return
            work = self.under_way[scope] = self._thread.submit(self._give_missing, scope, self._embedder)
        work.add_done_callback(lambda _: self.under_way.pop(scope, None))

    def _give_missing(self, scope: Scope, embedder: Recent) -> None:
        life, before = self._database.read_now(lambda db: rows.state(db, scope)).life, _LAST
        try:
            while not self._closed:
                stale = self._database.read_now(
                    functools.partial(
                        management_rows.of_other_models,
                        scope=scope,
                        embedder=embedder.name,
                        most=_AT_ONCE,
                        before=before,
                    )
                )
                if not stale:
                    return
                try:
                    readings = embedder.read([content for _, _, content in stale])
                except Exception:
                    log.exception("memory %s: the embedder failed on %d memories", self._memory, len(stale))
                    self._rests_until = monotonic() + _REST
                    return
                bare = [rows.NewMemory("user", "", content, "", 0) for _, _, content in stale]
                done = [
                    (seq, revision, new)
                    for (seq, revision, _), new in zip(stale, _with(embedder, readings, bare), strict=True)
                ]
                self._database.write_now(functools.partial(_set_vectors, scope=scope, life=life, given=done))
                before = stale[-1][0]
        except rows.Erased:
            self._erased(scope)
        except StoreError as error:
            log.warning("memory %s: vectors of %s are still missing: %s", self._memory, embedder.name, error)


def _set_vectors(db: Connection, *, scope: Scope, life: int, given: Sequence[tuple[int, int, rows.NewMemory]]) -> None:
    management_rows.set_vectors(rows.Change(db, scope, life), given)


def _answer(embedder: Recent, together: Sequence[_Asked]) -> None:
    try:
        readings = iter(embedder.read([text for asked in together for text in asked.texts]))
    except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
        if len(together) == 1:
            together[0].readings.set_exception(error)
            return
        for asked in together:  # whose text it was, only they are to suffer
            _answer(embedder, [asked])
    else:
        for asked in together:
            asked.readings.set_result([next(readings) for _ in asked.texts])


def _with(embedder: Embedder, readings: Sequence[Reading], memories: Sequence[rows.NewMemory]) -> list[rows.NewMemory]:
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
