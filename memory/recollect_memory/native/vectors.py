"""The embedder of a memory, and the vectors it gives: to what is asked and written, and later to what has none of its."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

from recollect_memory.contract import Embedder, EmbedderSource, Scope
from recollect_memory.errors import StoreError
from recollect_memory.sqlite import Database

from . import owning, store
from .embedding import Reading, Recent
from .index import Index

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Memories that get new vectors in one go: recall waits at most for these."""
_REST = 60.0
"""Seconds after a failure of the embedder before missing vectors are asked for again."""
_LAST = 2**63 - 1


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

    def index(self) -> Index:
        """An empty index for vectors of this embedder."""
        embedder = self._embedder
        return Index(embedder.name, embedder.dimensions, embedder.token_width) if embedder else Index(None, 0)

    def read(self, texts: Sequence[str]) -> list[Reading] | None:
        """What the embedder makes of them; None where there is none, or where it fails: words alone are better than nothing."""
        if self._embedder is None:
            return None
        try:
            return self._embedder.read(texts)
        except Exception:
            log.exception("memory %s: the embedder failed on %d texts: by words alone", self._memory, len(texts))
            return None

    def given(self, memories: Sequence[store.NewMemory]) -> Sequence[store.NewMemory]:
        """The memories with their vectors, where they can be had."""
        readings, embedder = self.read([memory.content for memory in memories]), self._embedder
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

    def give_later(self, scope: Scope) -> None:
        """Give the scope's memories that have no vector of this embedder one, in the background; until then, their words find
        them."""
        if self._embedder is None or monotonic() < self._rests_until:
            return
        with self._lock:
            if scope in self.under_way or self._closed:
                return
            work = self.under_way[scope] = self._thread.submit(self._give_missing, scope, self._embedder.name)
        work.add_done_callback(lambda _: self.under_way.pop(scope, None))

    def _give_missing(self, scope: Scope, embedder: str) -> None:
        life, before = self._database.read_now(lambda db: store.state(db, scope)).life, _LAST
        try:
            while not self._closed:
                rows = self._database.read_now(
                    functools.partial(
                        owning.of_other_models, scope=scope, embedder=embedder, most=_AT_ONCE, before=before
                    )
                )
                if not rows:
                    return
                embedded = self.given([store.NewMemory("user", "", content, "", 0) for _, _, content in rows])
                if embedded[0].vector is None:
                    self._rests_until = monotonic() + _REST
                    return
                done = [(seq, revision, new) for (seq, revision, _), new in zip(rows, embedded, strict=True)]
                self._database.write_now(functools.partial(_set_vectors, scope=scope, life=life, rows=done))
                before = rows[-1][0]
        except store.Erased:
            self._erased(scope)
        except StoreError as error:
            log.warning("memory %s: vectors of %s are still missing: %s", self._memory, embedder, error)


def _set_vectors(
    db: sqlite3.Connection, *, scope: Scope, life: int, rows: Sequence[tuple[int, int, store.NewMemory]]
) -> None:
    owning.set_vectors(store.Change(db, scope, life), rows)
