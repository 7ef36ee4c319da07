"""The owner's operations on a memory over mem0, as far as mem0 supports them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from retinue_memory.background import LoopThread
from retinue_memory.clock import now
from retinue_memory.errors import MemoryBackendError
from retinue_memory.ids import new_hex_id
from retinue_memory.management import (
    MAX_FOCUS_RECORDS,
    MAX_PROFILE_RECORDS,
    check_forget,
    check_limit,
    checked_text,
)
from retinue_memory.memory import (
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Profile,
    Receipt,
    Scope,
)
from retinue_memory.messages import Message
from retinue_memory.pending import overlay
from retinue_memory.text import storable, within_budget

from .contents import Contents, unconfirmed_records
from .intake import Intake
from .loop import on_own_loop
from .records import (
    HEADER,
    about,
    contains,
    exported,
    imported,
    record_of,
    said_between,
    selects,
    unconfirmed_record,
    versions,
)
from .search import search_items
from .service import ABOUT, Entity, Item, Service
from .turns import Turn, Turns

_ADD_TIMEOUT_S = 30.0  # for mem0 to give an added memory its id


class Management:
    """Operates on mem0's memories and on unconfirmed turns of any scope. The docstrings of `ManagedMemory` apply.

    mem0 keeps neither when a memory held nor what superseded it: `as_of` is a ValueError, and what mem0 replaced is in the
    history only. It chooses its own ids: imported memories get new ones, and a new history. Listings read everything of the
    scope. An operation waits `patience_s` seconds for what mem0 is still working on, then shows it as it was said; it can be
    forgotten and erased then, but not edited.
    """

    def __init__(
        self, name: str, service: Service, turns: Turns, intake: Intake, loop: LoopThread, patience_s: float
    ) -> None:
        self._name = name
        self._service = service
        self._turns = turns
        self._intake = intake
        self._loop = loop
        self._patience_s = patience_s
        self._contents = Contents(name, service, turns, intake, patience_s)

    # -- reading ------------------------------------------------------------------------------------------------------

    @on_own_loop
    async def browse(self, scope: Scope, where: MemoryFilter, limit: int, cursor: str | None) -> MemoryPage:
        check_limit(limit)
        before = _place_of_cursor(cursor) if cursor is not None else None
        records = [record for record in await self._contents.records(scope) if selects(where, record)]
        records = sorted(records, key=_place, reverse=True)
        if before is not None:
            records = [record for record in records if _place(record) < before]
        page = records[:limit]
        return MemoryPage(tuple(page), _cursor(page[-1]) if len(records) > limit else None)

    @on_own_loop
    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        return await self._contents.record(scope, id)

    @on_own_loop
    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        record = await self.get(scope, id)
        if record is None:
            return []
        return versions(
            record, await self._service.history(id) if await self._contents.item(scope, id) is not None else []
        )

    @on_own_loop
    async def search(
        self, scope: Scope, query: str, where: MemoryFilter, top_k: int, budget: int | None
    ) -> list[MemoryHit]:
        """The only signal is mem0's score, or the share of common words for what mem0 has not confirmed."""
        query = storable(query).strip()
        if top_k < 1 or not query:
            return []
        await self._contents.wait_briefly(scope)
        turns = await self._turns.of_scope(scope.key)
        items = await search_items(self._service, scope, query, where, top_k, turns)
        found = [(record_of(item), item.score, "mem0") for item in items]
        unconfirmed = {record.id: record for turn in turns for record in unconfirmed_records(turn)}
        said = [message for turn in turns for message in turn.messages]
        found += [
            (unconfirmed[message.id], message.metadata["memory"]["score"], "words")
            for message in overlay(query, said, backend=self._name)
        ]
        hits = [
            MemoryHit(record, score, {signal: score})
            for record, score, signal in sorted(found, key=lambda one: -one[1])
            if selects(where, record)
        ]
        return list(within_budget(budget, hits[:top_k], lambda hit: hit.record.content))

    @on_own_loop
    async def remains(self, scope: Scope) -> Mapping[str, int]:
        delivery = await self._intake.delivery()
        entity = Entity.of(scope)
        counts = {
            "memories": await delivery.count(entity),
            "mem0_turns": await self._turns.count(scope.key),
            **await self._service.remains(entity),
        }
        return {table: count for table, count in counts.items() if count}

    async def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        """Oldest first, with mem0's metadata, without history."""
        values = await self._exported(scope)
        yield HEADER
        for value in values:
            yield value

    @on_own_loop
    async def _exported(self, scope: Scope) -> list[dict[str, Any]]:
        await self._contents.wait_briefly(scope)
        pairs = [(record_of(item), item.metadata) for item in await self._contents.items(scope)]
        turns = await self._turns.of_scope(scope.key)
        pairs += [(record, {}) for turn in turns for record in unconfirmed_records(turn)]
        return [exported(record, metadata) for record, metadata in sorted(pairs, key=lambda pair: _place(pair[0]))]

    @on_own_loop
    async def profile(self, scope: Scope) -> Profile:
        records = sorted(await self._contents.records(scope), key=_place, reverse=True)
        records.sort(key=lambda record: not record.pinned)

        def latest(kind: MemoryKind, limit: int = MAX_PROFILE_RECORDS) -> tuple[MemoryRecord, ...]:
            return tuple(record for record in records if record.kind == kind)[:limit]

        return Profile(
            facts=latest(MemoryKind.ENTITY),
            preferences=latest(MemoryKind.PREFERENCE),
            focus=latest(MemoryKind.RECENT_MESSAGE, MAX_FOCUS_RECORDS),
            summaries=latest(MemoryKind.SUMMARY, MAX_FOCUS_RECORDS),
        )

    # -- correcting ---------------------------------------------------------------------------------------------------

    async def add(self, scope: Scope, content: str, kind: MemoryKind) -> MemoryRecord:
        """mem0 supersedes nothing by what is added word for word."""
        text = checked_text(content)
        return await self._add(scope, text, {"kind": kind.value}, self._intake.erasures(scope))

    @on_own_loop
    async def _add(self, scope: Scope, text: str, about: Mapping[str, Any], erasures: int) -> MemoryRecord:
        message = Message("user", text)
        turn = Turn(scope.key, f"by-hand/{new_hex_id()}", Entity.of(scope), [message], about, infer=False)
        if not await self._intake.accept(turn, erasures):
            raise MemoryBackendError(f"{self._name}: not added, the scope was erased meanwhile")
        delivery = await self._intake.delivery()
        await delivery.wait(scope.key, _ADD_TIMEOUT_S)
        created = await delivery.of_turn(turn.entity, turn.id, text)
        return record_of(created[0]) if created else unconfirmed_record(message, about)

    @on_own_loop
    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        text = checked_text(content)
        item = await self._contents.item_to_change(scope, id)
        if item is None:
            return None
        return await self._change(item, text, {"version": record_of(item).version + 1})

    @on_own_loop
    async def pin(self, scope: Scope, id: str, pinned: bool) -> MemoryRecord | None:
        """Stored in the memory's metadata; mem0 expires nothing by itself."""
        item = await self._contents.item_to_change(scope, id)
        return await self._change(item, item.text, {"pinned": pinned}) if item is not None else None

    async def _change(self, item: Item, text: str, known: Mapping[str, Any]) -> MemoryRecord:
        metadata = {**item.metadata, ABOUT: {"said_at": item.created_at.isoformat(), **about(item), **known}}
        await self._service.change(item.id, text=text, metadata=metadata)
        return record_of(replace(item, text=text, metadata=metadata))

    # -- deleting -----------------------------------------------------------------------------------------------------

    @on_own_loop
    async def forget(
        self, scope: Scope, ids: Sequence[str], query: str | None, since: datetime | None, until: datetime | None
    ) -> Receipt:
        """A turn that mem0 is still working on is forgotten as a whole."""
        check_forget(ids, query, since, until)

        def matches(record: MemoryRecord) -> bool:
            return (
                (not ids or record.id in ids)
                and (query is None or contains(record, query))
                and said_between(record, since, until)
            )

        await self._contents.wait_briefly(scope)
        turns = [turn for turn in await self._turns.of_scope(scope.key) if any(map(matches, unconfirmed_records(turn)))]
        for turn in turns:
            if turn.state == "failed":
                await self._turns.drop(turn)
            else:
                await self._turns.make_void(scope.key, turn.id)
        items = [item for item in await self._contents.items(scope) if matches(record_of(item))]
        for item in items:
            await self._service.delete(item.id)
        left = await self._contents.scrub(len(turns)) if items or turns else (self._service.elsewhere,)
        return Receipt(scope.key, now(), {"memories": len(items), "mem0_turns": len(turns)}, left)

    async def erase(self, scope: Scope) -> Receipt:
        """What mem0 is still working on is deleted as soon as it appears, and named in the receipt until then."""
        self._intake.count_erasure(scope)
        return await self._erase(scope)

    @on_own_loop
    async def _erase(self, scope: Scope) -> Receipt:
        delivery, entity = await self._intake.delivery(), Entity.of(scope)
        turns = await self._turns.count(scope.key)
        await self._turns.make_void(scope.key)
        await delivery.finish(scope.key, self._patience_s)
        deleted = {"memories": await delivery.count(entity), "mem0_turns": turns}
        deleted |= await self._service.remains(entity)
        await self._contents.delete_all(entity)
        await delivery.wait(scope.key, self._patience_s)
        await self._turns.drop_settled(scope.key)
        for item in await delivery.everything(entity):  # created while the rest was deleted
            await self._service.delete(item.id)
        in_flight = await self._turns.count(scope.key)
        left = await self._contents.scrub(turns)
        if in_flight:
            left = (f"{in_flight} turns that mem0 is working on; its results are deleted when they appear", *left)
        return Receipt(scope.key, now(), deleted, left)

    # -- moving -------------------------------------------------------------------------------------------------------

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """The texts are stored word for word."""
        new, number, known = 0, 0, await self._origins(scope)
        erasures = self._intake.erasures(scope)
        async for value in values:
            number += 1
            if number == 1:
                if dict(value) != dict(HEADER):
                    raise ValueError(f"value 1 is not the header of an export of mem0: expected {dict(HEADER)}")
                continue
            id, message, about = imported(value, number)
            if id not in known:
                turn = Turn(scope.key, f"import/{id}", Entity.of(scope), [message], about, infer=False)
                if await self._accept(turn, erasures):
                    known.add(id)
                    new += 1
        return new

    @on_own_loop
    async def _accept(self, turn: Turn, erasures: int) -> bool:
        return await self._intake.accept(turn, erasures)

    @on_own_loop
    async def _origins(self, scope: Scope) -> set[str]:
        """The ids of all memories, and the ids that imported ones had before."""
        await self._contents.wait_briefly(scope)
        items = await self._contents.items(scope)
        turns = await self._turns.of_scope(scope.key)
        known = [about(item) for item in items] + [turn.about for turn in turns]
        return {item.id for item in items} | {str(one["origin"]) for one in known if "origin" in one}


def _place(record: MemoryRecord) -> tuple[datetime, str]:
    return record.created_at, record.id


def _cursor(record: MemoryRecord) -> str:
    return f"{record.created_at.isoformat()} {record.id}"


def _place_of_cursor(cursor: str) -> tuple[datetime, str]:
    at, _, id = cursor.partition(" ")
    try:
        return datetime.fromisoformat(at), id
    except ValueError:
        raise ValueError(f"{cursor!r} is not a cursor: pass the `next` of the previous page") from None
