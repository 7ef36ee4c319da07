"""Caches of what was computed from texts: a turn's texts are searched with, compared, written and indexed.

They hold what users said, so they belong to a memory, which clears them when it deletes something; the memories of a process
share nothing. The functions stay pure: `cached` uses the caches of the memory that is calling, and without one just computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_Caches = dict[Callable[..., Any], Callable[..., Any]]
_active: ContextVar[_Caches | None] = ContextVar("text_caches", default=None)


class TextCaches:
    """One memory's caches of texts. Usable from any thread."""

    def __init__(self) -> None:
        self._by_function: _Caches = {}

    def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `work` with these caches; it must not await anything."""
        token = _active.set(self._by_function)
        try:
            return work(*args, **kwargs)
        finally:
            _active.reset(token)

    def clear(self) -> None:
        """Drop everything. A `run` that is in progress may add to them afterwards: clear them again when it has ended."""
        self._by_function.clear()


def cached(max_entries: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep the latest `max_entries` results of a function of hashable arguments, in the caches of the memory that calls it."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        create = functools.lru_cache(max_entries)
        get_active = _active.get

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            caches = get_active()
            if caches is None:
                return function(*args, **kwargs)
            try:
                cache = caches[function]
            except KeyError:
                cache = caches.setdefault(function, create(function))
            result: R = cache(*args, **kwargs)
            return result

        return call

    return decorate
