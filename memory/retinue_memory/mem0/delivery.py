"""How accepted turns get to mem0, once each, and when they are known to be searchable there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from retinue_memory.clock import now_us as now
from retinue_memory.database.base import Operation
from retinue_memory.errors import RetinueError

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

_AT_ONCE = 8
_MOST_PAGES = 10_000
_PAUSE = 0.5
"""Seconds after something failed before it is looked for what is to be done."""
_EVENTS = 3
"""Events of one turn that may fail before it is given up: the later ones are asked to keep it as it was said."""
_LONGEST_EVENT = 3600.0
"""Seconds after which an event that has not ended is not asked about any more."""
_SEND, _POLL, _LOOK = (1.0, 2.0, 300.0), (0.2, 1.5, 5.0), (1.0, 2.0, 10.0)
"""First delay in seconds, factor, longest: of sending again, of asking about an event, of looking whether something arrived."""


class Delivery:
    """Sends turns, asks how far mem0 has come with them, and looks into what is unclear, in the background where need be.

    A request that ended without an answer may have been applied. Before it is sent again mem0's memories are looked through
    for the turn's id, for the service's `grace` seconds: where mem0 takes longer to show what it accepted, it has it twice.
    """

    def __init__(self, service: Service, turns: Turns, name: str) -> None:
        self._service = service
        self._turns = turns
        self._name = name
        self._at_work: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._poller = asyncio.create_task(self._poll_forever(), name=f"{name}-poller")

    async def accept(self, turn: Turn, *, unless: Operation[bool]) -> bool:
        """Write the turn down and send it; one that was written before is not sent again. False: `unless` held.

        Returns when mem0 has taken it, or when it may have: that is looked into in the background. Raises ServiceError where
        it has not: the turn is tried again in the background as well, unless it is Refused, which takes it back.
        """
        accepted = await self._turns.accept(turn, unless=unless)
        if accepted is None:
            return False
        turn, inserted = accepted
        if inserted:
            await asyncio.shield(self._begin(turn, lambda: self._send(turn, first=True)))
        elif turn.state == "new":
            await asyncio.shield(self._begin(turn, lambda: self._send(turn)))
        elif turn.state == "sent":
            if (task := self._at_work.get(turn.key)) is not None:
                await asyncio.shield(task)
            else:
                await self._turns.again(turn, 0.0)
                self._wake.set()
        return True

    async def wait(self, scope: str | None, seconds: float) -> bool:
        """Until mem0 has made searchable what was accepted, of a scope or of all. False: not within that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)), self._changed:
                while await self._turns.waiting(scope):
                    await self._changed.wait()
                return True
        return False

    async def finish(self, scope: str, seconds: float) -> None:
        """Wait for the requests of a scope that are under way, so long."""
        theirs = [task for key, task in self._at_work.items() if key[0] == scope]
        if theirs:
            await asyncio.wait(theirs, timeout=seconds)

    async def aclose(self) -> None:
        """Stop asking, and wait for what is being sent for a moment. What has not arrived is sent by the next process."""
        self._poller.cancel()
        await asyncio.gather(self._poller, return_exceptions=True)
        if self._at_work:
            await asyncio.wait(list(self._at_work.values()), timeout=2.0)

    # -- one turn -----------------------------------------------------------------------------------------------------

    def _begin(self, turn: Turn, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Work on a turn, unless that is being done already."""
        task = self._at_work.get(turn.key)
        if task is None:
            task = self._at_work[turn.key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._ended(turn, done))
        return task

    def _ended(self, turn: Turn, task: asyncio.Task[None]) -> None:
        del self._at_work[turn.key]
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._wake.set()
        else:  # not at once: it may be the database that fails
            asyncio.get_running_loop().call_later(_PAUSE, self._wake.set)
            level = logging.WARNING if isinstance(error, RetinueError) else logging.ERROR
            log.log(
                level, "memory %s: a turn is not with mem0 yet: %s", self._name, error, exc_info=level > logging.WARNING
            )

    async def _send(self, turn: Turn, *, first: bool = False) -> None:
        if not first and await self._advance(turn, "sent", self._service.grace):
            await self._turns.drop(turn)  # what was erased before it was sent needs no sending
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
            if first:
                await self._turns.drop(turn)
            else:
                await self._advance(turn, "failed")
            raise
        except ServiceError as error:
            if not error.applied:
                if await self._advance(turn, "new", max(error.after or 0.0, _delay(turn.tries, _SEND))):
                    await self._turns.drop(turn)
                raise
            log.warning("memory %s: it is not known whether mem0 has a turn: %s", self._name, error)
            await self._advance(turn, "sent", _delay(0, _LOOK))
            return
        if added.event is not None:
            await self._advance(turn, "pending", _delay(0, _POLL), event=added.event)
        else:
            await self._done(turn)

    async def _done(self, turn: Turn) -> None:
        if await self._advance(turn, "done", _delay(turn.tries, _LOOK)):
            await self._undo(turn)

    async def _undo(self, turn: Turn) -> None:
        """It was erased or forgotten meanwhile: delete what mem0 has made of it."""
        for item in await self.of_turn(turn.entity, turn.id, turn.said):
            await self._service.delete(item.id)
        await self._turns.drop(turn)
        await self._note()

    async def _step(self, turn: Turn) -> None:
        async with self._gate:
            try:
                await self._go_on(turn)
            except Exception as error:
                after = error.after if isinstance(error, ServiceError) else None
                await self._turns.again(turn, max(after or 0.0, _delay(turn.tries, _SEND)))
                raise

    async def _go_on(self, turn: Turn) -> None:
        if turn.state == "new":
            await self._send(turn)
        elif turn.state == "pending":
            await self._ask(turn)
        elif await self.of_turn(turn.entity, turn.id, turn.said):
            await self._done(turn)
        elif now() - turn.since < self._service.grace * 1e6:
            await self._turns.again(turn, _delay(turn.tries, _LOOK))
        elif turn.void:
            await self._turns.drop(turn)
            await self._note()
        else:
            await self._send(turn)

    async def _ask(self, turn: Turn) -> None:
        """How far mem0 is with a turn. What it does not know, or never ends, is as unclear as a lost answer."""
        progress: Progress = "pending"
        try:
            progress = await self._service.progress(turn.event or "")
        except ServiceError as error:
            if not error.retry:
                log.warning("memory %s: mem0 cannot tell what became of a turn: %s", self._name, error)
                await self._advance(turn, "sent")
                return
            log.info("memory %s: mem0 could not be asked about a turn: %s", self._name, error)
        if progress == "done":
            await self._done(turn)
        elif progress == "failed":
            await self._failed(turn)
        elif now() - turn.since > _LONGEST_EVENT * 1e6:
            await self._advance(turn, "sent")
        else:
            await self._turns.again(turn, _delay(turn.tries, _POLL))

    async def _failed(self, turn: Turn) -> None:
        """What was said is not to be lost for that: mem0 is asked to keep it as it is, and in the end we do."""
        if turn.void:
            await self._undo(turn)
        elif turn.failures + 1 < _EVENTS:
            log.warning("memory %s: mem0 could not work on a turn: it gets it again, to be kept as it is", self._name)
            await self._advance(turn, "new", failed=True)
        else:
            log.error(
                "memory %s: mem0 gave up a turn %d times: from now on it is found by its words", self._name, _EVENTS
            )
            await self._advance(turn, "failed", failed=True)

    async def _advance(self, turn: Turn, state: Any, seconds: float = 0.0, **rest: Any) -> bool:
        void = await self._turns.advance(turn, state, seconds=seconds, **rest)
        await self._note()
        return void

    # -- all of them --------------------------------------------------------------------------------------------------

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item]:
        """What mem0 has made of a turn, in which this was said."""
        found = await self._service.of_turn(entity, turn, said)
        found = await self.everything(entity) if found is None else found
        return [item for item in found if item.belongs_to(entity) and item.metadata.get(TURN) == turn]

    async def count(self, entity: Entity) -> int:
        """How many memories of an entity there are; where those are more than mem0 lists, how many it lists."""
        try:
            return len(await self.everything(entity))
        except TooMany as error:
            return error.listed

    async def everything(self, entity: Entity) -> list[Item]:
        """All memories of an entity, and no one else's."""
        found: dict[str, Item] = {}
        for number in range(1, _MOST_PAGES):
            page = await self._service.page(entity, number)
            found |= {item.id: item for item in page if item.belongs_to(entity)}
            if len(page) < PAGE:
                break
        return list(found.values())

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()
        self._wake.set()

    async def _poll_forever(self) -> None:
        while True:
            self._wake.clear()
            try:
                due, seconds = await self._turns.due()
            except RetinueError:
                log.exception("memory %s: what mem0 has not confirmed could not be read", self._name)
                due, seconds = [], 5.0
            for turn in due:
                if turn.key not in self._at_work:
                    self._begin(turn, lambda turn=turn: self._step(turn))  # type: ignore[misc]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if seconds is None else max(0.02, seconds)):
                    await self._wake.wait()


def _delay(tries: int, pace: tuple[float, float, float]) -> float:
    first, factor, longest = pace
    delay: float = min(longest, first * factor ** min(tries, 40))
    return delay * random.uniform(0.75, 1.0)  # noqa: S311 - jitter, not a secret
