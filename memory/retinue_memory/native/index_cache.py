"""A scope's memories in the form that ranking reads: term postings, vectors and columns, all in memory, growing in place.

Nothing is rebuilt when a memory is added: what ranking needs to know of its surroundings (what it follows, its stretch of
talk, how new it is) is worked out once, when it is appended. An index is made from rows and catches up with newer ones; it
is a cache and never the truth. `Indexes` keeps the recently used ones within a bound of bytes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from retinue_memory.memory import Scope
from retinue_memory.native.index import Index

if TYPE_CHECKING:
    pass


class Indexes:
    """The recently used indexes, at most `most_bytes` of them together (one that is larger alone is kept alone)."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._indexes: OrderedDict[Scope, Index] = OrderedDict()
        self._sizes: dict[Scope, int] = {}
        self._bytes = 0

    def get(self, scope: Scope) -> Index | None:
        """The scope's index, now the most recently used."""
        with self._lock:
            index = self._indexes.get(scope)
            if index is not None:
                self._indexes.move_to_end(scope)
            return index

    def put(self, scope: Scope, fresh: Index) -> Index:
        """Keep `fresh`, unless another thread was quicker: the one that is kept."""
        with self._lock:
            return self._indexes.setdefault(scope, fresh)

    def settle(self, scope: Scope, index: Index) -> None:
        """Count the bytes of an index that has grown, and let go of the least recently used beyond the bound."""
        size = index.nbytes
        with self._lock:
            if self._indexes.get(scope) is not index:
                return
            self._bytes += size - self._sizes.get(scope, 0)
            self._sizes[scope] = size
            while self._bytes > self._most_bytes and len(self._indexes) > 1:
                oldest, _ = self._indexes.popitem(last=False)
                self._bytes -= self._sizes.pop(oldest, 0)

    def drop(self, scope: Scope) -> None:
        """Keep nothing of a scope."""
        with self._lock:
            if self._indexes.pop(scope, None) is not None:
                self._bytes -= self._sizes.pop(scope, 0)

    def clear(self) -> None:
        with self._lock:
            self._indexes.clear()
            self._sizes.clear()
            self._bytes = 0

    def kept(self) -> Iterable[Scope]:
        """The scopes whose index is in memory, least recently used first."""
        with self._lock:
            return list(self._indexes)
