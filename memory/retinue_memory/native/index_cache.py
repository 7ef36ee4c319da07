"""The indexes in memory: the recently used ones within a bound of bytes, each caught up with its rows when it is used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from retinue_memory.database.base import Connection, Database
from retinue_memory.memory import Scope

from . import rows
from .index import Index
from .placement import Placement, are_short, is_short_search

_MAX_ROWS_HERE = 50  # an index catches up with so many rows on the calling thread, if they are short


class IndexCache:
    """The recently used indexes, at most `max_bytes` of them together; a single larger one is kept. Usable from any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._indexes: OrderedDict[Scope, Index] = OrderedDict()
        self._sizes: dict[Scope, int] = {}
        self._bytes = 0

    def get(self, scope: Scope) -> Index | None:
        """The scope's index, which becomes the most recently used. Returns None if it is not cached."""
        with self._lock:
            index = self._indexes.get(scope)
            if index is not None:
                self._indexes.move_to_end(scope)
            return index

    def put(self, scope: Scope, new: Index) -> Index:
        """Cache an index, unless the scope has one. Returns the cached one."""
        with self._lock:
            return self._indexes.setdefault(scope, new)

    def resized(self, scope: Scope, index: Index) -> None:
        """Count the bytes of an index that has grown, and evict the least recently used ones beyond the bound."""
        size = index.nbytes
        with self._lock:
            if self._indexes.get(scope) is not index:
                return
            self._bytes += size - self._sizes.get(scope, 0)
            self._sizes[scope] = size
            while self._bytes > self._max_bytes and len(self._indexes) > 1:
                oldest, _ = self._indexes.popitem(last=False)
                self._bytes -= self._sizes.pop(oldest, 0)

    def evict(self, scope: Scope) -> None:
        """Drop the scope's index."""
        with self._lock:
            if self._indexes.pop(scope, None) is not None:
                self._bytes -= self._sizes.pop(scope, 0)

    def clear(self) -> None:
        """Drop every index."""
        with self._lock:
            self._indexes.clear()
            self._sizes.clear()
            self._bytes = 0

    def scopes(self) -> Iterable[Scope]:
        """The scopes that have a cached index, least recently used first."""
        with self._lock:
            return list(self._indexes)


class IndexLoader:
    """Returns indexes that are up to date. `new_index` creates an empty one."""

    def __init__(
        self, cache: IndexCache, database: Database, placement: Placement, new_index: Callable[[], Index]
    ) -> None:
        self._cache = cache
        self._database = database
        self._placement = placement
        self._new_index = new_index

    async def load(self, scope: Scope) -> Index:
        """The scope's index, with every write that was acknowledged before this call."""
        index = self._cache.get(scope)
        if index is not None:
            short = is_short_search(index)
            if await self._placement.run_here_if(short, self._catch_up, scope, index, _MAX_ROWS_HERE):
                return index
        return await self._placement.run(self.load_now, scope)

    def load_now(self, scope: Scope) -> Index:
        """`load` on a thread of the placement. Blocks."""
        index = self._cache.get(scope) or self._cache.put(scope, self._new_index())
        self._catch_up(scope, index)
        return index

    def _catch_up(self, scope: Scope, index: Index, max_rows: int | None = None) -> bool:
        """Apply the new rows. Returns False and applies nothing if they are more than `max_rows`, or long."""
        with index.lock:
            grown = self._database.read_now(lambda db: _apply_new_rows(db, scope, index, max_rows))
            if grown or max_rows is None:
                self._cache.resized(scope, index)
        return grown is not None


def _apply_new_rows(db: Connection, scope: Scope, index: Index, max_rows: int | None) -> bool | None:
    """Returns whether there were any, or None if they are more than `max_rows`, or long, and none was applied."""
    state = rows.state(db, scope)
    if state.epoch != index.epoch:
        if max_rows is not None and index.size:
            return None
        index.start_over(state.epoch)
    index.generation, index.slots_version = state.generation, state.slots_version
    if state.version == index.version:
        return False
    changed = rows.changed_since(db, scope, index.version, -1 if max_rows is None else max_rows + 1)
    if max_rows is not None and (len(changed) > max_rows or not are_short(row.content for row in changed)):
        return None
    index.apply(changed, state.version)
    return True
