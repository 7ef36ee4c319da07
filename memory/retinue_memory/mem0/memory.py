"""Mem0: a memory over a `Service`, with what mem0 itself does not give."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from retinue_memory.background import LoopClosed, LoopThread
from retinue_memory.database.base import Database
from retinue_memory.errors import MemoryBackendError, RetinueError
from retinue_memory.memory import (
    ALL,
    InvocationContext,
    MemoryFilter,
    MemoryKind,
    Scope,
)
from retinue_memory.messages import Message
from retinue_memory.pending import overlay

from .delivery import Delivery
from .loop import on_own_loop
from .managed import Owned
from .records import (
    clean,
    meant,
    merged,
    message_of,
    record_of,
    waiting_record,
    within,
    worth_keeping,
)
from .service import (
    TURN,
    Entity,
    Item,
    Service,
    ServiceError,
)
from .turns import Turn, Turns

log = logging.getLogger(__name__)

_LONGEST_QUERY = 4_000
_RECENT = 3
"""Of what waits and shares no word with a query, so many are recalled all the same, the latest first."""
_MORE, _MOST_FOUND = 10, 1000
"""So many times as much is asked for where a filter leaves some out, and at most so much."""
_SEARCHED_WITHIN = 1.5
"""Seconds that mem0 has for a search where something waits, which is then used alone: within the 2 s of a recall."""


class Mem0(Owned):
    """A memory over mem0: what is said is written down as a row, sent, and laid over what mem0 finds until mem0 finds it.

    `database` holds the rows: one that the caller shares and closes, or the address of one of its own; None: they are in
    memory and last as long as the process. `infer`: mem0's model draws facts from what was said; False: it is kept word for
    word. `patience`: seconds that what an owner does (browse, edit, ...) waits for what mem0 is working on.

    Usable from any event loop: everything runs on one of its own.
    """

    def __init__(
        self,
        service: Service,
        *,
        space: str = "default",
        name: str = "mem0",
        database: Database | str | None = None,
        infer: bool = True,
        patience: float = 2.0,
    ) -> None:
        self.name = name
        self.space = space
        self._service = service
        self.queues_writes = database is not None
        self._turns = Turns(database, space, service.grace)
        self._infer = infer
        self._patience = patience
        self._loop = LoopThread(f"memory-{name}")
        self._delivery: Delivery | None = None
        self._erasures: dict[str, int] = {}

    def open(self) -> None:
        """Begin to connect, and to send what an earlier process has left. In the background: what fails is logged."""
        try:
            self._loop.start_soon(self._begin)
        except LoopClosed:
            raise MemoryBackendError(f"{self.name}: the memory is closed") from None

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """As the contract says. Where mem0 fails or is slow, the error has in `found` what may matter here and is not confirmed
        yet. `kinds`, `since` and `until` choose as `MemoryFilter` does; `budget` bounds the tokens of all that comes back."""
        scope = Scope.of(kwargs.get("ctx"), self.space)
        where = MemoryFilter(
            kinds=frozenset(map(MemoryKind, kwargs.get("kinds") or ())),
            since=kwargs.get("since"),
            until=kwargs.get("until"),
            as_of=kwargs.get("as_of"),
        )
        query = clean(query).strip()[:_LONGEST_QUERY]
        if not query or top_k < 1:
            return []
        budget = kwargs.get("budget")
        try:
            return _within(budget, await self._retrieve(scope, query, top_k, where))
        except MemoryBackendError as error:
            error.found = _within(budget, error.found)
            raise

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """Store the messages as a row and send them, now or with `wait=False` in the background (if there is a database).

        Raises what comes of the first request that is waited for; the row is sent again in the background even so.
        """
        ctx: InvocationContext | None = kwargs.get("ctx")
        scope = Scope.of(ctx, self.space)
        assert ctx is not None  # noqa: S101 - Scope.of refuses None
        erasures = self._erasures.get(scope.key, 0)
        said = worth_keeping(messages)
        queue = self.queues_writes and not kwargs.get("wait", True)
        if said:
            about = {"session": ctx.session_id} | ({} if self._infer else {"kind": MemoryKind.RECENT_MESSAGE.value})
            turn = ctx.turn_id if ctx.turn_id is not None else uuid.uuid4().hex
            if not await self._accept(scope, clean(turn), said, about, self._infer, erasures, queue=queue):
                log.info("memory %s: a turn was dropped: its scope was erased meanwhile", self.name)

    async def wait_indexed(self, ctx: InvocationContext | None = None, *, timeout: float = 60.0) -> bool:  # noqa: ASYNC109
        """Wait until mem0 has made searchable what was accepted: of a context's scope, or of all. Whether it has, within
        `timeout` seconds. (What is not searchable is found all the same: by its words.)"""
        return await self._wait(Scope.of(ctx, self.space).key if ctx is not None else None, timeout)

    async def aclose(self) -> None:
        """Release everything. What mem0 has not taken stays in the database, and is sent by the next that opens it."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop. Closing twice is fine."""
        self._loop.close(self._let_go)
        self._turns.close()

    async def _let_go(self) -> None:
        if self._delivery is not None:
            await self._delivery.aclose()
        await self._service.aclose()

    async def _begin(self) -> None:
        try:
            await self._open()
            await self._service.connect()
        except RetinueError as error:
            log.warning("memory %s: %s", self.name, error)

    # -- on the own loop ----------------------------------------------------------------------------------------------

    async def _open(self) -> Delivery:
        """What sends turns, begun at the first use."""
        if self._delivery is None:
            await asyncio.to_thread(self._turns.open)
        if self._delivery is None:
            self._delivery = Delivery(self._service, self._turns, self.name)
        return self._delivery

    @on_own_loop
    async def _retrieve(self, scope: Scope, query: str, top_k: int, where: MemoryFilter) -> list[Message]:
        await self._open()
        # the rows first: what is confirmed in between is in both, rather than in neither
        turns = await self._turns.of_scope(scope.key)
        recent = _RECENT if any(turn.state != "failed" for turn in turns) else 0
        said = [
            message
            for turn in turns
            for message in turn.messages
            if where == ALL or meant(waiting_record(message, turn.about), where)
        ]
        waiting = overlay(query, said, backend=self._service.name, recent=recent)
        try:
            async with asyncio.timeout(_SEARCHED_WITHIN if waiting else None):
                items = await self._found(scope, query, where, top_k, turns)
        except ServiceError as error:
            error.found = merged(waiting, [], top_k)
            raise
        except TimeoutError:
            problem = f"{self.name}: mem0 did not answer a search within {_SEARCHED_WITHIN:g} s"
            raise MemoryBackendError(problem, found=merged(waiting, [], top_k)) from None
        return merged(waiting, [message_of(item, self._service.name) for item in items], top_k)

    async def _found(self, scope: Scope, query: str, where: MemoryFilter, top_k: int, turns: list[Turn]) -> list[Item]:
        """What mem0 finds of the scope, at most `top_k`; where not everything is meant, among the more that it is asked for."""
        most = top_k if where == ALL else min(_MOST_FOUND, _MORE * top_k)
        entity, void = Entity.of(scope), {turn.id for turn in turns if turn.void}
        return [
            item
            for item in await self._service.search(query, entity, top_k=most)
            if item.belongs_to(entity) and item.metadata.get(TURN) not in void and meant(record_of(item), where)
        ][:top_k]

    @on_own_loop
    async def _accept(
        self,
        scope: Scope,
        id: str,
        said: list[Message],
        about: Mapping[str, Any],
        infer: bool,
        erasures: int,
        *,
        queue: bool = False,
    ) -> bool:
        """Store a turn, and send it now or with `queue` in the background. Returns False if its scope, which had been erased
        `erasures` times when the turn started, was erased since."""
        delivery = await self._open()
        turn = Turn(scope.key, id, Entity.of(scope), said, about, infer)
        accept = delivery.enqueue if queue else delivery.accept
        return await accept(turn, unless=lambda _: self._erasures.get(scope.key, 0) != erasures)

    @on_own_loop
    async def _wait(self, scope: str | None, seconds: float) -> bool:
        return await (await self._open()).wait(scope, seconds)


def _within(budget: int | None, messages: Sequence[Message]) -> list[Message]:
    return list(within(budget, messages, lambda message: message.content))
