"""What a scope has in mem0 and in unconfirmed turns: reading it for its owner, and deleting it."""

from __future__ import annotations

from retinue_memory.clock import now_us
from retinue_memory.errors import MemoryBackendError
from retinue_memory.memory import MemoryRecord, Scope

from .intake import Intake
from .records import record_of, unconfirmed_record
from .service import TURN, Entity, Item, Service
from .turns import Turn, Turns


class Contents:
    """The contents of any scope. Every method runs on the memory's own event loop.

    `patience_s`: how long to wait for what mem0 is still working on.
    """

    def __init__(self, name: str, service: Service, turns: Turns, intake: Intake, patience_s: float) -> None:
        self._name = name
        self._service = service
        self._turns = turns
        self._intake = intake
        self._patience_s = patience_s

    async def wait_briefly(self, scope: Scope) -> None:
        """Wait for what mem0 has just started to work on, so that an owner sees memories with permanent ids."""
        delivery = await self._intake.delivery()
        in_flight = [turn for turn in await self._turns.of_scope(scope.key) if turn.state in ("new", "sent", "pending")]
        if in_flight:
            youngest_s = (now_us() - max(turn.since for turn in in_flight)) / 1e6
            await delivery.wait(scope.key, self._patience_s - youngest_s)

    async def items(self, scope: Scope) -> list[Item]:
        """All items of the scope."""
        return await (await self._intake.delivery()).everything(Entity.of(scope))

    async def records(self, scope: Scope) -> list[MemoryRecord]:
        """All records: of unconfirmed messages, then of items. Waits briefly."""
        await self.wait_briefly(scope)
        turns = await self._turns.of_scope(scope.key)
        void = {turn.id for turn in turns if turn.void}
        items = await self.items(scope)
        texts = {item.text for item in items}
        unconfirmed = [record for turn in turns for record in unconfirmed_records(turn) if record.content not in texts]
        return [*unconfirmed, *(record_of(item) for item in items if item.metadata.get(TURN) not in void)]

    async def record(self, scope: Scope, id: str) -> MemoryRecord | None:
        """One record. Waits briefly. Returns None if there is none with this id."""
        await self.wait_briefly(scope)
        item = await self.item(scope, id)
        if item is not None:
            return record_of(item)
        unconfirmed = [record for turn in await self._turns.of_scope(scope.key) for record in unconfirmed_records(turn)]
        return next((record for record in unconfirmed if record.id == id), None)

    async def item(self, scope: Scope, id: str) -> Item | None:
        """One item. Returns None if mem0 has none with this id in this scope."""
        await self._intake.delivery()
        item = await self._service.get(id) if id else None
        return item if item is not None and item.belongs_to(Entity.of(scope)) else None

    async def item_to_change(self, scope: Scope, id: str) -> Item | None:
        """Returns None if there is no such memory. Raises MemoryBackendError if mem0 is still working on it."""
        record = await self.record(scope, id)
        item = await self.item(scope, id) if record is not None else None
        if record is not None and item is None:
            raise MemoryBackendError(f"{self._name}: mem0 is still working on this memory, try again in a moment")
        return item

    async def delete_all(self, entity: Entity) -> None:
        """Delete in one call, unless that deletes others' memories: mem0 also finds a session's memories that name a user."""
        is_safe = entity.field == "user_id" or self._service.knows_sessions
        if is_safe or not await self._has_others(entity):
            await self._service.delete_all(entity)
            return
        for item in await (await self._intake.delivery()).everything(entity):
            await self._service.delete(item.id)

    async def scrub(self, deleted_turns: int) -> tuple[str, ...]:
        """Remove the bytes of deleted rows from the files. Returns what may still hold them, in words."""
        ours, theirs = await self._turns.scrub(deleted_turns), await self._service.scrub()
        return (*filter(None, (ours, theirs)), self._service.elsewhere)

    async def _has_others(self, entity: Entity) -> bool:
        number = 1
        while page := await self._service.page(entity, number):
            if not all(item.belongs_to(entity) for item in page):
                return True
            number += 1
        return False


def unconfirmed_records(turn: Turn) -> list[MemoryRecord]:
    """The records of what the user said in a turn."""
    return [unconfirmed_record(message, turn.about) for message in turn.messages if message.role == "user"]
