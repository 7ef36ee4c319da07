"""The owner's side of a memory over mem0, as far as mem0 carries it."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from retinue_memory.background import LoopThread
from retinue_memory.errors import MemoryBackendError
from retinue_memory.memory import (
    ALL,
    ManagedMemory,
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

from .delivery import Delivery
from .loop import on_own_loop
from .records import (
    about,
    between,
    clean,
    contains,
    exported,
    meant,
    record_of,
    versions,
    waiting_record,
    within,
)
from .service import (
    ABOUT,
    TURN,
    Entity,
    Item,
    Service,
)
from .turns import Turn, Turns, now

HEADER: Mapping[str, Any] = {"format": "retinue-mem0", "version": 1}
LARGEST_PAGE = 1000
PROFILE = 20
_FOCUS = 5
_ADDED_WITHIN = 30.0
"""Seconds that `add` waits for mem0 to give the memory an id."""


class Owned(ManagedMemory):
    """What the owner does with it.

    mem0 keeps neither from when to when something held, nor what superseded it: `as_of` is a ValueError, and what mem0 has
    replaced is in the history only. It gives its own ids: those of imported memories are new, and their history begins anew.
    A listing reads everything of the scope. What mem0 is still working on is waited for a moment, then shown as it was said;
    it can be forgotten and erased, and edited only once it is there.
    """

    space: str
    _service: Service
    _turns: Turns
    _loop: LoopThread
    _erasures: dict[str, int]
    _patience: float

    @abstractmethod
    async def _open(self) -> Delivery: ...

    @abstractmethod
    async def _accept(
        self, scope: Scope, id: str, said: list[Message], about: Mapping[str, Any], infer: bool, erasures: int
    ) -> bool: ...

    @abstractmethod
    async def _found(
        self, scope: Scope, query: str, where: MemoryFilter, top_k: int, turns: list[Turn]
    ) -> list[Item]: ...

    # -- reading ------------------------------------------------------------------------------------------------------

    @on_own_loop
    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        if not 1 <= limit <= LARGEST_PAGE:
            raise ValueError(f"a page holds 1 to {LARGEST_PAGE} memories, not {limit}")
        before = _place_of(cursor) if cursor is not None else None
        records = [record for record in await self._records(scope) if meant(record, where)]
        records = sorted(records, key=_place, reverse=True)
        if before is not None:
            records = [record for record in records if _place(record) < before]
        page = records[:limit]
        return MemoryPage(tuple(page), _cursor(page[-1]) if len(records) > limit else None)

    @on_own_loop
    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        await self._settled(scope)
        item = await self._item(scope, id)
        if item is not None:
            return record_of(item)
        waiting = [record for turn in await self._turns.of_scope(scope.key) for record in _waiting(turn)]
        return next((record for record in waiting if record.id == id), None)

    @on_own_loop
    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        record = await self.get(scope, id)
        if record is None:
            return []
        return versions(record, await self._service.history(id) if await self._item(scope, id) is not None else [])

    @on_own_loop
    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        """As the contract says; the one signal is mem0's score, or for what mem0 does not have yet, the shared words."""
        query = clean(query).strip()
        if top_k < 1 or not query:
            return []
        await self._settled(scope)
        turns = await self._turns.of_scope(scope.key)
        found = [(record_of(item), item.score, "mem0") for item in await self._found(scope, query, where, top_k, turns)]
        waiting = {record.id: record for turn in turns for record in _waiting(turn)}
        said = [message for turn in turns for message in turn.messages]
        found += [
            (waiting[message.id], message.metadata["memory"]["score"], "words")
            for message in overlay(query, said, backend=self.name)
        ]
        hits = [
            MemoryHit(record, score, {signal: score})
            for record, score, signal in sorted(found, key=lambda one: -one[1])
            if meant(record, where)
        ]
        return list(within(budget, hits[:top_k], lambda hit: hit.record.content))

    @on_own_loop
    async def remains(self, scope: Scope) -> Mapping[str, int]:
        delivery = await self._open()
        entity = Entity.of(scope)
        counts = {
            "memories": await delivery.count(entity),
            "mem0_turns": await self._turns.count(scope.key),
            **await self._service.remains(entity),
        }
        return {table: count for table, count in counts.items() if count}

    async def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        """As the contract says, oldest first; what mem0 knows beside a memory goes with it, its history does not."""
        values = await self._exported(scope)
        yield HEADER
        for value in values:
            yield value

    @on_own_loop
    async def _exported(self, scope: Scope) -> list[dict[str, Any]]:
        await self._settled(scope)
        items = await (await self._open()).everything(Entity.of(scope))
        pairs = [(record_of(item), item.metadata) for item in items]
        turns = await self._turns.of_scope(scope.key)
        pairs += [(record, {}) for turn in turns for record in _waiting(turn)]
        return [exported(record, metadata) for record, metadata in sorted(pairs, key=lambda pair: _place(pair[0]))]

    @on_own_loop
    async def profile(self, scope: Scope) -> Profile:
        records = sorted(await self._records(scope), key=_place, reverse=True)
        records.sort(key=lambda record: not record.pinned)

        def latest(kind: MemoryKind, most: int = PROFILE) -> tuple[MemoryRecord, ...]:
            return tuple(record for record in records if record.kind == kind)[:most]

        return Profile(
            facts=latest(MemoryKind.ENTITY),
            preferences=latest(MemoryKind.PREFERENCE),
            focus=latest(MemoryKind.RECENT_MESSAGE, _FOCUS),
            summaries=latest(MemoryKind.SUMMARY, _FOCUS),
        )

    # -- correcting ---------------------------------------------------------------------------------------------------

    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        """As the contract says; what it supersedes is mem0's to find out, and it does not for what is added by hand."""
        text = _text_of(content)
        return await self._add(scope, text, {"kind": kind.value}, self._erasures.get(scope.key, 0))

    @on_own_loop
    async def _add(self, scope: Scope, text: str, about: Mapping[str, Any], erasures: int) -> MemoryRecord:
        turn, message = f"by-hand/{uuid.uuid4().hex}", Message("user", text)
        if not await self._accept(scope, turn, [message], about, False, erasures):
            raise MemoryBackendError(f"{self.name}: not added: everything of this scope was erased meanwhile")
        delivery = await self._open()
        await delivery.wait(scope.key, _ADDED_WITHIN)
        made = await delivery.of_turn(Entity.of(scope), turn, text)
        return record_of(made[0]) if made else waiting_record(message, about)

    @on_own_loop
    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        text = _text_of(content)
        item = await self._there(scope, id)
        if item is None:
            return None
        return await self._changed(item, text, {"version": record_of(item).version + 1})

    @on_own_loop
    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None:
        """As the contract says, as a note in the memory's metadata: mem0 expires nothing of what it is not told to."""
        item = await self._there(scope, id)
        return await self._changed(item, item.text, {"pinned": pinned}) if item is not None else None

    async def _changed(self, item: Item, text: str, known: Mapping[str, Any]) -> MemoryRecord | None:
        metadata = {**item.metadata, ABOUT: {"said_at": item.created_at.isoformat(), **about(item), **known}}
        await self._service.change(item.id, text=text, metadata=metadata)
        return record_of(replace(item, text=text, metadata=metadata))

    # -- deleting -----------------------------------------------------------------------------------------------------

    @on_own_loop
    async def forget(
        self,
        scope: Scope,
        *,
        ids: Sequence[str] = (),
        query: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Receipt:
        """As the contract says; of several conditions all must hold. A turn that mem0 is still working on goes as a whole."""
        if not ids and query is None and since is None and until is None:
            raise ValueError("say what to forget: ids, a query, or a time; erase() forgets everything")
        if query is not None and not query.strip():
            raise ValueError("an empty query would forget everything: erase() does that")

        def goes(record: MemoryRecord) -> bool:
            return (
                (not ids or record.id in ids)
                and (query is None or contains(record, query))
                and between(record, since, until)
            )

        await self._settled(scope)
        forgotten = [turn for turn in await self._turns.of_scope(scope.key) if any(map(goes, _waiting(turn)))]
        for turn in forgotten:
            if turn.state == "failed":
                await self._turns.drop(turn)
            else:
                await self._turns.make_void(scope.key, turn.id)
        delivery = await self._open()
        gone = [item for item in await delivery.everything(Entity.of(scope)) if goes(record_of(item))]
        for item in gone:
            await self._service.delete(item.id)
        left = await self._scrub(rows=len(forgotten)) if gone or forgotten else (self._service.elsewhere,)
        return Receipt(scope.key, datetime.now(UTC), {"memories": len(gone), "mem0_turns": len(forgotten)}, left)

    async def erase(self, scope: Scope) -> Receipt:
        """As the contract says. What began before it is not there after it: what mem0 is still working on is deleted as soon
        as it appears, and named in the receipt until then."""
        self._erasures[scope.key] = self._erasures.get(scope.key, 0) + 1
        return await self._erase(scope)

    @on_own_loop
    async def _erase(self, scope: Scope) -> Receipt:
        delivery, entity = await self._open(), Entity.of(scope)
        turns = await self._turns.count(scope.key)
        await self._turns.make_void(scope.key)
        await delivery.finish(scope.key, self._patience)
        deleted = {"memories": await delivery.count(entity), "mem0_turns": turns}
        deleted |= await self._service.remains(entity)
        await self._delete_all(entity)
        await delivery.wait(scope.key, self._patience)
        await self._turns.drop_settled(scope.key)
        still = [item.id for item in await delivery.everything(entity)]
        for id in still:  # made while the rest was deleted
            await self._service.delete(id)
        waiting = await self._turns.count(scope.key)
        left = await self._scrub(rows=turns)
        if waiting:
            left = (
                f"{waiting} turns that mem0 is working on: what it makes of them is deleted when it is there",
                *left,
            )
        return Receipt(scope.key, datetime.now(UTC), deleted, left)

    async def _scrub(self, *, rows: int) -> tuple[str, ...]:
        """Take what was deleted, so many rows of ours among it, out of the files, too: what could not be reached, in words."""
        ours, theirs = await self._turns.scrub(rows), await self._service.scrub()
        return (*filter(None, (ours, theirs)), self._service.elsewhere)

    async def _delete_all(self, entity: Entity) -> None:
        """All at once, unless others' memories would go too: mem0 finds a session's also where they name a user."""
        apart = entity.field == "user_id" or self._service.knows_sessions
        strangers = not apart and await self._has_strangers(entity)
        if not strangers:
            await self._service.delete_all(entity)
            return
        for item in await (await self._open()).everything(entity):
            await self._service.delete(item.id)

    async def _has_strangers(self, entity: Entity) -> bool:
        number = 1
        while page := await self._service.page(entity, number):
            if not all(item.belongs_to(entity) for item in page):
                return True
            number += 1
        return False

    # -- moving -------------------------------------------------------------------------------------------------------

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """As the contract says, word for word. Raises ValueError, naming the value, for what no export gave; what came before
        it is kept."""
        taken, number, known = 0, 0, await self._origins(scope)
        erasures = self._erasures.get(scope.key, 0)
        async for value in values:
            number += 1
            if number == 1:
                if dict(value) != dict(HEADER):
                    raise ValueError(f"value 1 is not the head of such an export: {dict(HEADER)}")
                continue
            id, message, about = _imported(value, number)
            if id not in known and await self._accept(scope, f"import/{id}", [message], about, False, erasures):
                known.add(id)
                taken += 1
        return taken

    @on_own_loop
    async def _origins(self, scope: Scope) -> set[str]:
        """The ids of what is there, here and where it was imported from."""
        await self._settled(scope)
        items = await (await self._open()).everything(Entity.of(scope))
        turns = await self._turns.of_scope(scope.key)
        known = [about(item) for item in items] + [turn.about for turn in turns]
        return {item.id for item in items} | {str(one["origin"]) for one in known if "origin" in one}

    # -- the rim ------------------------------------------------------------------------------------------------------

    async def _settled(self, scope: Scope) -> None:
        """Wait a moment for what mem0 has just begun to work on, so that an owner sees memories with lasting ids."""
        delivery = await self._open()
        waiting = [turn for turn in await self._turns.of_scope(scope.key) if turn.state in ("new", "sent", "pending")]
        if waiting:
            youngest = (now() - max(turn.since for turn in waiting)) / 1e6
            await delivery.wait(scope.key, self._patience - youngest)

    async def _records(self, scope: Scope) -> list[MemoryRecord]:
        await self._settled(scope)
        turns = await self._turns.of_scope(scope.key)
        void = {turn.id for turn in turns if turn.void}
        items = await (await self._open()).everything(Entity.of(scope))
        texts = {item.text for item in items}
        waiting = [record for turn in turns for record in _waiting(turn) if record.content not in texts]
        return [*waiting, *(record_of(item) for item in items if item.metadata.get(TURN) not in void)]

    async def _item(self, scope: Scope, id: str) -> Item | None:
        await self._open()
        item = await self._service.get(id) if id else None
        return item if item is not None and item.belongs_to(Entity.of(scope)) else None

    async def _there(self, scope: Scope, id: str) -> Item | None:
        """The memory to change. Raises MemoryBackendError where mem0 is still working on it."""
        record = await self.get(scope, id)
        item = await self._item(scope, id) if record is not None else None
        if record is not None and item is None:
            raise MemoryBackendError(f"{self.name}: mem0 is still working on this memory: try again in a moment")
        return item


def _waiting(turn: Turn) -> list[MemoryRecord]:
    return [waiting_record(message, turn.about) for message in turn.messages if message.role == "user"]


def _place(record: MemoryRecord) -> tuple[datetime, str]:
    return record.created_at, record.id


def _cursor(record: MemoryRecord) -> str:
    return f"{record.created_at.isoformat()} {record.id}"


def _place_of(cursor: str) -> tuple[datetime, str]:
    at, _, id = cursor.partition(" ")
    try:
        return datetime.fromisoformat(at), id
    except ValueError:
        raise ValueError(f"{cursor!r} is no cursor that a page gave") from None


def _text_of(content: str) -> str:
    if not content.strip():
        raise ValueError("a memory needs a text; forget() deletes one")
    return clean(content)


def _imported(value: Mapping[str, Any], number: int) -> tuple[str, Message, dict[str, Any]]:
    """The id, the message and what goes with it of an exported value."""
    try:
        id, content, kind = value["id"], value["content"], MemoryKind(value["kind"])
        said_at = datetime.fromisoformat(value["said_at"])
        if not isinstance(id, str) or not isinstance(content, str) or not content.strip() or said_at.tzinfo is None:
            raise ValueError("not a text")
        sources, metadata = list(value["sources"]), dict(value["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"value {number} is no exported memory: {type(error).__name__}: {error}") from None
    known = {
        "origin": id,
        "kind": kind.value,
        "session": str(value.get("session", "")),
        "sources": sources,
        "pinned": value.get("pinned") is True,
        "metadata": metadata,
    }
    return id, Message("user", clean(content), created_at=said_at), known
