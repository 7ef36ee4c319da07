"""Which memories a search may find, how much they have faded, and the instructions that always apply: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from retinue_memory.clock import to_us
from retinue_memory.memory import (
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryRecord,
)

from .index import NEVER, Index

if TYPE_CHECKING:
    from numpy.typing import NDArray

FADED = 0.5
"""The share of its score that a memory keeps in the long run: it ranks behind newer ones and is never lost to them."""
_DAY_S = 86_400.0


def allowed(index: Index, where: MemoryFilter, now: datetime) -> NDArray[np.bool_]:
    """For each memory of the index, whether `where` selects it: shape (size,)."""
    at = to_us(now if where.as_of is None else where.as_of)
    if where.as_of is None and not where.superseded and not where.quarantined:
        mask: NDArray[np.bool_] = index.column("found_until") > at
    else:
        mask = _including_hidden(index, where, at)
    if where.kinds:
        codes = [index.kind_codes[kind] for kind in where.kinds if kind in index.kind_codes]
        mask &= np.isin(index.column("kinds"), codes)
    if where.since is not None:
        mask &= index.column("created_at") >= to_us(where.since)
    if where.until is not None:
        mask &= index.column("created_at") < to_us(where.until)
    return mask


def _including_hidden(index: Index, where: MemoryFilter, at: int) -> NDArray[np.bool_]:
    """The mask of a filter that asks for another time, or for superseded or quarantined memories."""
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
    """The share of its score that each memory keeps, shape of `said_at` (seconds since the epoch).

    1 if it was just said; every `fade_days` halve the rest down to `FADED`. Pinned memories do not fade; None: nothing does.
    """
    if fade_days is None:
        return np.ones(len(said_at), np.float32)
    age = np.maximum(now.timestamp() - said_at, 0.0) / (fade_days * _DAY_S)
    kept = FADED + (1.0 - FADED) * np.exp2(-age)
    return np.where(pinned, 1.0, kept).astype(np.float32)


def substance(index: Index) -> NDArray[np.float32]:
    """A factor for each memory's score, 0..1: less for small talk and questions, which are kept for a while only."""
    kept: NDArray[np.float32] = index.column("substance").copy()
    return kept


def instructions(index: Index, now: datetime) -> NDArray[np.intp]:
    """The places of the current standing instructions about how to answer."""
    where = MemoryFilter(kinds=frozenset({MemoryKind.PREFERENCE}))
    return np.flatnonzero(index.column("standing") & allowed(index, where, now))


def with_instructions(hits: list[MemoryHit], standing: Sequence[MemoryRecord], top_k: int) -> list[MemoryHit]:
    """Add the user's standing instructions, which no word of a question finds, with the lowest score of all hits."""
    if not standing:
        return hits
    lowest = min((hit.score for hit in hits), default=0.0)
    ids = {record.id for record in standing}
    others = [hit for hit in hits if hit.record.id not in ids]
    kept = others[: top_k - len(standing)] if len(hits) + len(standing) > top_k else others
    found = {hit.record.id: hit for hit in hits}
    last = [found.get(one.id) or MemoryHit(one, lowest, {"standing": lowest}) for one in standing]
    return sorted([*kept, *last], key=lambda hit: -hit.score)
