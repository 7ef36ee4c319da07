"""Where a memory's work runs: on the calling thread if it is short, else on a thread of the memory's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from typing import ParamSpec, TypeVar

from retinue_memory.errors import MemoryBackendError

from .index import Index
from .text_caches import TextCaches

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 4  # loading the index of one scope must not hold up all others

# Below these bounds, work takes less than the way to another thread and back, which fights with the event loop for the GIL
# (about a millisecond each way under load): see `python -m benchmarks retrieval`.
_SHORT_INDEX_SIZE = 2_000
_SHORT_TEXT_CHARS = 4_000


class _Progress(IntEnum):
    """NEW -> OPENED (tables are there) -> LOADED (the embedder is known). Never back; closing is independent of it."""

    NEW = 0
    OPENED = 1
    LOADED = 2


class Placement:
    """Runs a memory's work, with the memory's text caches, and sets the memory up before the first of it.

    `open_database` and `load_embedder` are called once, in this order; both may block. Usable from any event loop and thread.
    """

    def __init__(
        self,
        name: str,
        caches: TextCaches,
        *,
        open_database: Callable[[], None],
        load_embedder: Callable[[], None],
    ) -> None:
        self._name = name
        self._caches = caches
        self._open_database = open_database
        self._load_embedder = load_embedder
        self._opening, self._loading = threading.Lock(), threading.Lock()
        self._progress = _Progress.NEW
        self._closed = False
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memory")

    def open(self) -> None:
        """Open the database unless it is open. Blocks. Raises MemoryBackendError if closed, and what opening raises."""
        with self._opening:
            self._refuse_if_closed()
            if self._progress is _Progress.NEW:
                self._open_database()
                self._progress = _Progress.OPENED

    async def set_up(self) -> None:
        """Set the memory up unless it is. Raises what `open` raises."""
        self._refuse_if_closed()
        if self._progress is not _Progress.LOADED:
            await self.run(lambda: None)

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` on a thread of the pool, once the memory is set up."""
        self._refuse_if_closed()

        def run_when_loaded() -> R:
            if self._progress is not _Progress.LOADED:
                self._load()
            return self._caches.run(work, *args, **kwargs)

        try:
            future = self._pool.submit(run_when_loaded)
        except RuntimeError:  # closed since
            raise self._closed_error() from None
        return await asyncio.wrap_future(future)

    async def run_here_if(self, is_short: bool, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` on the calling thread if it is short and the memory is set up, else as `run` does."""
        if not is_short or self._progress is not _Progress.LOADED:
            return await self.run(work, *args, **kwargs)
        self._refuse_if_closed()
        return self._caches.run(work, *args, **kwargs)

    def refuse_work(self) -> None:
        """Refuse work from now on; what was accepted still runs."""
        with self._opening:
            self._closed = True

    def close(self) -> None:
        """Refuse work and wait for what was accepted. Blocks. Closing twice is fine."""
        self.refuse_work()
        self._pool.shutdown(wait=True)

    def _load(self) -> None:
        with self._loading:
            if self._progress is not _Progress.LOADED:
                self.open()
                self._load_embedder()
                self._progress = _Progress.LOADED

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> MemoryBackendError:
        return MemoryBackendError(f"{self._name}: the memory is closed")


def is_short_search(index: Index) -> bool:
    """Whether work on the whole index is short, and nobody else works on it."""
    return index.size <= _SHORT_INDEX_SIZE and not index.lock.locked()


def are_short(texts: Iterable[str]) -> bool:
    """Whether reading these texts is short."""
    return sum(map(len, texts)) <= _SHORT_TEXT_CHARS
