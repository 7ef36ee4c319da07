"""Everything that a memory keeps of its users' texts outside the database."""

from __future__ import annotations

from collections.abc import Callable

from retinue_memory.memory import Scope

from .index_cache import IndexCache
from .text_caches import TextCaches


class MemoryCaches:
    """One memory's caches. Evicting loses nothing but time. Usable from any thread."""

    def __init__(self, max_index_bytes: int) -> None:
        self.indexes = IndexCache(max_index_bytes)
        self.texts = TextCaches()
        self.evictions = 0
        """How often something was evicted: work that started at a lower count may have cached deleted texts since."""
        self._others: list[Callable[[], None]] = []

    def on_evict(self, clear: Callable[[], None]) -> None:
        """Call `clear` too, whenever something is evicted."""
        self._others.append(clear)

    def evict(self, scope: Scope) -> None:
        """Keep nothing of a scope. Caches that do not know scopes are cleared."""
        self.evictions += 1
        self.indexes.evict(scope)
        self.texts.clear()
        for clear in self._others:
            clear()
