"""The way of accepted turns to mem0, once each, until they are known to be searchable there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from retinue_memory.clock import now_us
from retinue_memory.database.base import Operation
from retinue_memory.delivery import Deliveries, DeliveryWorker, Group
from retinue_memory.errors import RetinueError
from retinue_memory.retry import Backoff, RetryPolicy

from .records import metadata_of
from .service import (
    PAGE,
    TURN,
    Entity,
    Item,
    Progress,
    Refused,
    Service,
    ServiceError,
    TooMany,
)
from .turns import Turn, Turns

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""A scope and a turn's id."""

_TURNS_AT_ONCE = 8
_MAX_PAGES = 10_000
_MAX_EVENTS = 3
"""Events of one turn that may fail; after the first, mem0 is asked to keep the turn as it was said."""
_MAX_EVENT_AGE_S = 3600.0
_CLOSE_TIMEOUT_S = 2.0
_SEND = Backoff(first_s=1.0, jitter=0.25)
_POLL = Backoff(first_s=0.2, factor=1.5, longest_s=5.0, jitter=0.25)
"""Of asking about an event."""
_LOOK = Backoff(first_s=1.0, longest_s=10.0, jitter=0.25)
"""Of looking whether mem0 has what it was sent."""


class Delivery(Deliveries[Key, Turn]):
    """Sends turns, asks how far mem0 has come with them, and finds out what became of requests without an answer.

    A request that ended without an answer may have been applied. Before it is repeated, mem0's memories are searched for the
    turn's id, for the service's `grace` seconds: if mem0 takes longer to show what it accepted, it has the turn twice.

    The turns of a scope that nobody waits for are sent in their order: one waits until mem0 has taken the one before, or may
    have.
    """

    policy = RetryPolicy(backoff=_SEND)

    def __init__(self, service: Service, turns: Turns, name: str) -> None:
        self.name = f"memory {name}"
        self._service = service
        self._turns = turns
        self._changed = asyncio.Condition()
        self._worker = DeliveryWorker(self)
        self._worker.start()

    async def enqueue(self, turn: Turn, *, unless: Operation[bool]) -> bool:
        """Store a turn and return, to send it in the background; one that was stored before is not sent again.

        Returns False, and stores nothing, if `unless` holds.
        """
        is_behind = any(scope == turn.scope for scope, _ in self._worker.running)
        accepted = await self._turns.accept(turn, unless=unless, queue=True, is_behind=is_behind)
        if accepted is None:
            return False
        if accepted.fresh and accepted.state == "new":
            self._worker.wake()
        elif accepted.fresh or accepted.state == "new":
            self._worker.deliver_now(accepted.key, accepted)
        return True

    async def accept(self, turn: Turn, *, unless: Operation[bool]) -> bool:
        """Store a turn and send it; one that was stored before is not sent again. Returns False if `unless` holds.

        Returns when mem0 has taken it, or may have, which is then found out in the background. Raises ServiceError if it has
        not: the turn is tried again in the background as well, unless it is Refused, which deletes it.
        """
        accepted = await self._turns.accept(turn, unless=unless)
        if accepted is None:
            return False
        if accepted.fresh or accepted.state == "new":
            await asyncio.shield(self._worker.deliver_now(accepted.key, replace(accepted, awaited=True)))
        elif accepted.state == "sent":
            if (running := self._worker.running.get(accepted.key)) is not None:
                await asyncio.shield(running)
            else:
                await self._turns.again(accepted, 0.0)
                self._worker.wake()
        return True

    async def wait(self, scope: str | None, timeout_s: float) -> bool:
        """Wait until mem0 has made searchable what was accepted, of a scope or of all. Returns whether it has in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)), self._changed:
                while await self._turns.waiting(scope):
                    await self._changed.wait()
                return True
        return False

    async def finish(self, scope: str, timeout_s: float) -> None:
        """Wait for the running requests of a scope."""
        running = [future for key, future in self._worker.running.items() if key[0] == scope]
        if running:
            await asyncio.wait(running, timeout=timeout_s)

    async def aclose(self) -> None:
        """Start no more requests, and wait a moment for those that are running. What did not arrive is sent by the next
        process."""
        await self._worker.stop(_CLOSE_TIMEOUT_S)

    # -- for the worker -----------------------------------------------------------------------------------------------

    @property
    def at_once(self) -> int:
        return _TURNS_AT_ONCE

    async def due(self, busy: Collection[Key], limit: int) -> tuple[Sequence[Group[Key, Turn]], float | None]:
        turns, next_s = await self._turns.due()
        busy_scopes = {scope for scope, _ in busy}
        groups: list[Group[Key, Turn]] = []
        for turn in turns:
            waits = turn.state == "new" and turn.scope in busy_scopes
            if len(groups) < limit and turn.key not in busy and not waits:
                groups.append((turn.key, [turn]))
        return groups, next_s

    async def deliver(self, item: Turn) -> None:
        turn = item
        if turn.fresh or turn.state == "new":
            await self._send(turn)
        elif turn.state == "pending":
            await self._ask(turn)
        elif await self.of_turn(turn.entity, turn.id, turn.said):
            await self._done(turn)
        elif now_us() - turn.since < self._service.grace * 1e6:
            await self._turns.again(turn, _LOOK.delay_s(turn.tries))
        elif turn.void:
            await self._turns.drop(turn)
            await self._notify()
        else:
            await self._send(turn)

    async def failed(self, item: Turn, error: Exception, retry_in_s: float | None) -> None:
        expected = isinstance(error, RetinueError)
        level = logging.WARNING if expected else logging.ERROR
        log.log(level, "%s: a turn is not with mem0 yet: %s", self.name, error, exc_info=None if expected else error)
        after_s = error.after if isinstance(error, ServiceError) else None
        await self._turns.again(item, max(after_s or 0.0, retry_in_s or 0.0))

    # -- one turn -----------------------------------------------------------------------------------------------------

    async def _send(self, turn: Turn) -> None:
        if not turn.fresh and await self._advance(turn, "sent", self._service.grace):
            await self._turns.drop(turn)  # erased before it was sent
            return
        messages = [
            {"role": message.role, "content": message.content} | ({"name": message.name} if message.name else {})
            for message in turn.messages
        ]
        metadata = metadata_of(turn.id, turn.messages, turn.about)
        try:
            at = turn.messages[0].created_at
            added = await self._service.add(messages, turn.entity, metadata=metadata, infer=turn.infer, at=at)
        except Refused:
            if turn.fresh and turn.awaited:
                await self._turns.drop(turn)
            else:
                await self._advance(turn, "failed")
            raise
        except ServiceError as error:
            if not error.applied:
                if await self._advance(turn, "new"):
                    await self._turns.drop(turn)
                raise
            log.warning("%s: mem0 may have a turn or not, looking for it: %s", self.name, error)
            await self._advance(turn, "sent", _LOOK.delay_s(0))
            return
        if added.event is not None:
            await self._advance(turn, "pending", _POLL.delay_s(0), event=added.event)
        else:
            await self._done(turn)

    async def _done(self, turn: Turn) -> None:
        if await self._advance(turn, "done", _LOOK.delay_s(turn.tries)):
            await self._undo(turn)

    async def _undo(self, turn: Turn) -> None:
        """Delete what mem0 has made of a turn that was erased or forgotten meanwhile."""
        for item in await self.of_turn(turn.entity, turn.id, turn.said):
            await self._service.delete(item.id)
        await self._turns.drop(turn)
        await self._notify()

    async def _ask(self, turn: Turn) -> None:
        """Ask how far mem0 is with a turn. An event that it does not know, or that never ends, is like a lost answer."""
        progress: Progress = "pending"
        try:
            progress = await self._service.progress(turn.event or "")
        except ServiceError as error:
            if not error.retry:
                log.warning("%s: mem0 does not know the event of a turn, looking for the turn: %s", self.name, error)
                await self._advance(turn, "sent")
                return
            log.info("%s: asking about the event of a turn failed, asking again: %s", self.name, error)
        if progress == "done":
            await self._done(turn)
        elif progress == "failed":
            await self._failed(turn)
        elif now_us() - turn.since > _MAX_EVENT_AGE_S * 1e6:
            await self._advance(turn, "sent")
        else:
            await self._turns.again(turn, _POLL.delay_s(turn.tries))

    async def _failed(self, turn: Turn) -> None:
        """Have mem0 keep a turn as it was said after its event failed; after some failures, only we keep it."""
        if turn.void:
            await self._undo(turn)
        elif turn.failures + 1 < _MAX_EVENTS:
            log.warning("%s: mem0 failed at a turn, sending it again to be kept as it was said", self.name)
            await self._advance(turn, "new", failed=True)
        else:
            log.error(
                "%s: mem0 failed %d times at a turn, which from now on is found by its words", self.name, _MAX_EVENTS
            )
            await self._advance(turn, "failed", failed=True)

    async def _advance(self, turn: Turn, state: Any, seconds: float = 0.0, **rest: Any) -> bool:
        void = await self._turns.advance(turn, state, seconds=seconds, **rest)
        await self._notify()
        return void

    # -- all of them --------------------------------------------------------------------------------------------------

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item]:
        """The memories that mem0 has made of a turn in which this was said."""
        found = await self._service.of_turn(entity, turn, said)
        found = await self.everything(entity) if found is None else found
        return [item for item in found if item.belongs_to(entity) and item.metadata.get(TURN) == turn]

    async def count(self, entity: Entity) -> int:
        """Count the memories of an entity; those that mem0 lists, if it does not list all."""
        try:
            return len(await self.everything(entity))
        except TooMany as error:
            return error.listed

    async def everything(self, entity: Entity) -> list[Item]:
        """All memories that belong to the entity."""
        found: dict[str, Item] = {}
        for number in range(1, _MAX_PAGES):
            page = await self._service.page(entity, number)
            found |= {item.id: item for item in page if item.belongs_to(entity)}
            if len(page) < PAGE:
                break
        return list(found.values())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
        self._worker.wake()
