"""One search of a scope: filter, rank, fade, add the standing instructions, read the rows, keep to the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retinue_memory.clock import now as current_time
from retinue_memory.database.base import Database
from retinue_memory.memory import MemoryFilter, MemoryHit, Scope
from retinue_memory.text import within_budget

from . import rows
from .filters import allowed, instructions, retention, substance, with_instructions
from .index import Index
from .ranking import best, rank, read

if TYPE_CHECKING:
    from .embedder import Reading


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for, and how much may be found."""

    query: str
    where: MemoryFilter
    top_k: int
    budget: int | None
    """Tokens; None: no bound."""
    with_instructions: bool
    """Add the user's standing instructions, which apply to every question: a third of `top_k` at most."""


def find(
    database: Database, scope: Scope, index: Index, search: Search, reading: Reading | None, fade_days: float | None
) -> tuple[list[MemoryHit], bool]:
    """The memories found, best first, and whether all memories of the scope have a vector. Blocks.

    `reading` is the embedder's of the query (see `for_embedder`); without it, words alone count. The index is up to date.
    """
    now, always = current_time(), list[int]()
    with index.lock:
        if not index.size:
            return [], True
        ranking = rank(index, read(search.query, index, reading), now, allowed(index, search.where, now))
        kept = substance(index)
        if fade_days is not None:
            kept *= retention(index.column("said_at"), index.column("pinned"), now, fade_days)
        seqs = index.column("seqs")
        chosen = [
            (int(seqs[place]), _with_fading(ranking.explain(place), float(kept[place])))
            for place in best(ranking.scores * kept, search.top_k)
        ]
        if search.with_instructions and index.column("standing").any():
            always = [int(seq) for seq in seqs[instructions(index, now)[-max(1, search.top_k // 3) :]]]
        all_embedded = bool(index.column("embedded").all())
    records = database.read_now(lambda db: rows.by_seq(db, scope, [*(seq for seq, _ in chosen), *always]))
    hits = [
        MemoryHit(records[seq], min(1.0, max(0.0, sum(signals.values()))), signals)
        for seq, signals in chosen
        if seq in records
    ]
    hits = with_instructions(hits, [records[seq] for seq in reversed(always) if seq in records], search.top_k)
    return list(within_budget(search.budget, hits, lambda hit: hit.record.content)), all_embedded


def _with_fading(signals: dict[str, float], kept: float) -> dict[str, float]:
    return signals if kept == 1.0 else signals | {"faded": (kept - 1.0) * sum(signals.values())}
