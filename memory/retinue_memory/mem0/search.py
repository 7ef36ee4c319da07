"""Searches of mem0, limited to what a scope may see."""

from __future__ import annotations

from collections.abc import Iterable

from retinue_memory.memory import ALL, MemoryFilter, Scope

from .records import record_of, selects
from .service import TURN, Entity, Item, Service
from .turns import Turn

_FILTER_FACTOR = 10  # so many times as many results are requested if a filter may drop some
_MAX_RESULTS = 1000


async def search_items(
    service: Service, scope: Scope, query: str, where: MemoryFilter, top_k: int, turns: Iterable[Turn]
) -> list[Item]:
    """The scope's items that match the query and that `where` selects, best first, at most `top_k`.

    `turns` are those of the scope; items of void ones are left out. Raises ServiceError, and ValueError as `selects` does.
    """
    limit = top_k if where == ALL else min(_MAX_RESULTS, _FILTER_FACTOR * top_k)
    entity, void = Entity.of(scope), {turn.id for turn in turns if turn.void}
    return [
        item
        for item in await service.search(query, entity, top_k=limit)
        if item.belongs_to(entity) and item.metadata.get(TURN) not in void and selects(where, record_of(item))
    ][:top_k]
