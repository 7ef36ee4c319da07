"""Which memories are meant, how much they have faded, how many fit: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from retinue_memory.memory import (
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryRecord,
)

from .index import NEVER, Index
from .rows import microseconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

FADED = 0.5
"""What is left of a memory's score in the very long run: it steps back behind newer ones, and is never lost to them."""
_DAY = 86_400.0
_BYTES_A_TOKEN = 4
_TOKENS_A_MEMORY = 8
"""What a prompt needs around each memory: a dash, a date, a line."""


def allowed(index: Index, where: MemoryFilter, now: datetime) -> NDArray[np.bool_]:
    """For each memory of the index, whether `where` means it. `since` is inclusive, `until` is not; both ask when it was first
    said."""
    at = microseconds(now if where.as_of is None else where.as_of)
    if where.as_of is None and not where.superseded and not where.quarantined:
        mask: NDArray[np.bool_] = index.column("found_until") > at
    else:
        mask = _at_all(index, where, at)
    if where.kinds:
        codes = [index.kind_codes[kind] for kind in where.kinds if kind in index.kind_codes]
        mask &= np.isin(index.column("kinds"), codes)
    if where.since is not None:
        mask &= index.column("created_at") >= microseconds(where.since)
    if where.until is not None:
        mask &= index.column("created_at") < microseconds(where.until)
    return mask


def _at_all(index: Index, where: MemoryFilter, at: int) -> NDArray[np.bool_]:
    """What is meant by who asks for another time, or for what is hidden."""
    mask = np.ones(index.size, np.bool_)
    if not where.quarantined:
        mask &= ~index.column("quarantined")
    if where.as_of is not None:
        mask &= (index.column("valid_from") <= at) & (index.column("valid_to") > at)
    elif not where.superseded:
        mask &= index.column("valid_to") == NEVER
    if where.as_of is not None or not where.superseded:
        mask &= (index.column("expires_at") > at) | index.column("pinned")
    return mask


def retention(
    said_at: NDArray[np.float64], pinned: NDArray[np.bool_], now: datetime, fade_days: float | None
) -> NDArray[np.float32]:
    """What share of its score each memory keeps: 1 when it was just said, half of what it can lose less after every
    `fade_days`, and in the end `FADED`. What is pinned does not fade; None: nothing does. `said_at` in seconds."""
    if fade_days is None:
        return np.ones(len(said_at), np.float32)
    age = np.maximum(now.timestamp() - said_at, 0.0) / (fade_days * _DAY)
    kept = FADED + (1.0 - FADED) * np.exp2(-age)
    return np.where(pinned, 1.0, kept).astype(np.float32)


def substance(index: Index) -> NDArray[np.float32]:
    """What a memory's score counts for: small talk and questions, which are kept for a while only, step back behind what
    tells something."""
    kept: NDArray[np.float32] = index.column("substance").copy()
    return kept


def instructions(index: Index, now: datetime) -> NDArray[np.intp]:
    """The places of the standing instructions about how to answer that hold."""
    where = MemoryFilter(kinds=frozenset({MemoryKind.PREFERENCE}))
    return np.flatnonzero(index.column("standing") & allowed(index, where, now))


def with_instructions(hits: list[MemoryHit], standing: Sequence[MemoryRecord], top_k: int) -> list[MemoryHit]:
    """With the user's standing instructions about how to answer, which no word of a question finds, in the last places."""
    if not standing:
        return hits
    lowest = min((hit.score for hit in hits), default=0.0)
    ids = {record.id for record in standing}
    others = [hit for hit in hits if hit.record.id not in ids]
    kept = others[: top_k - len(standing)] if len(hits) + len(standing) > top_k else others
    found = {hit.record.id: hit for hit in hits}
    last = [found.get(one.id) or MemoryHit(one, lowest, {"standing": lowest}) for one in standing]
    return sorted([*kept, *last], key=lambda hit: -hit.score)


def tokens(text: str) -> int:
    """About how many tokens of a prompt a memory takes; rather more than fewer, in any script."""
    return _TOKENS_A_MEMORY + -(-len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN)


def within(budget: int | None, found: Iterable[tuple[T, str]]) -> Iterator[T]:
    """As many of the found, best first, as fit into `budget` tokens; one that does not fit leaves room for shorter ones."""
    left = budget
    for one, text in found:
        if left is None:
            yield one
            continue
        need = tokens(text)
        if need <= left:
            left -= need
            yield one
