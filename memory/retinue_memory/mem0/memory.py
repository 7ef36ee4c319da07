"""Mem0: a memory over a `Service`, with what mem0 itself does not give."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from retinue_memory.background import LoopClosed, LoopThread
from retinue_memory.database.base import Database
from retinue_memory.errors import MemoryBackendError, RetinueError
from retinue_memory.ids import new_hex_id
from retinue_memory.memory import (
    ALL,
    InvocationContext,
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
from retinue_memory.text import storable, within_budget

from .intake import Intake
from .loop import on_own_loop
from .management import Management
from .records import merged, message_of, said_by_people, selects, unconfirmed_record
from .search import search_items
from .service import Entity, Service, ServiceError
from .turns import Turn, Turns

log = logging.getLogger(__name__)

_MAX_QUERY_CHARS = 4_000
_RECENT = 3  # unconfirmed messages that are returned although they share no word with the query, the latest first
_SEARCH_TIMEOUT_S = 1.5  # if there are unconfirmed messages, which are then returned alone: within the 2 s of a recall


class Mem0(ManagedMemory):
    """A memory over mem0. Messages are stored as rows, sent, and added to what mem0 finds until mem0 finds them itself.

    `database` holds the rows: one that the caller shares and closes, or the address of one of the memory's own; None: they
    last as long as the process. `infer`: mem0's model extracts facts from messages; False: they are kept word for word.
    `patience`: seconds that an owner's operation waits for what mem0 is still working on. `before_open` is awaited before the
    database is opened. Usable from any event loop: everything runs on one of the memory's own.
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
        before_open: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.space = space
        self._service = service
        self.queues_writes = database is not None
        self._turns = Turns(database, space, service.grace)
        self._infer = infer
        self._loop = LoopThread(f"memory-{name}")
        self._intake = Intake(name, service, self._turns, before_open)
        self._management = Management(name, service, self._turns, self._intake, self._loop, patience)

    def open(self) -> None:
        """Start to connect, and to send what an earlier process left, in the background. Failures are logged."""
        try:
            self._loop.start_soon(self._connect)
        except LoopClosed:
            raise MemoryBackendError(f"{self.name}: the memory is closed") from None

    # -- a turn -------------------------------------------------------------------------------------------------------

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """See `Memory.retrieve`. If mem0 fails or is slow, the error's `found` has the unconfirmed messages that may matter.

        `kinds`, `since` and `until` select as in `MemoryFilter`; `budget` bounds the tokens of all messages together.
        """
        scope = Scope.of(kwargs.get("ctx"), self.space)
        where = MemoryFilter(
            kinds=frozenset(map(MemoryKind, kwargs.get("kinds") or ())),
            since=kwargs.get("since"),
            until=kwargs.get("until"),
            as_of=kwargs.get("as_of"),
        )
        query = storable(query).strip()[:_MAX_QUERY_CHARS]
        if not query or top_k < 1:
            return []
        budget = kwargs.get("budget")
        try:
            return _within(budget, await self._retrieve(scope, query, top_k, where))
        except MemoryBackendError as error:
            error.found = _within(budget, error.found)
            raise

    @on_own_loop
    async def _retrieve(self, scope: Scope, query: str, top_k: int, where: MemoryFilter) -> list[Message]:
        await self._intake.delivery()
        # the rows first: a message that is confirmed in between is in both, rather than in neither
        turns = await self._turns.of_scope(scope.key)
        recent = _RECENT if any(turn.state != "failed" for turn in turns) else 0
        said = [
            message
            for turn in turns
            for message in turn.messages
            if where == ALL or selects(where, unconfirmed_record(message, turn.about))
        ]
        unconfirmed = overlay(query, said, backend=self._service.name, recent=recent)
        try:
            async with asyncio.timeout(_SEARCH_TIMEOUT_S if unconfirmed else None):
                items = await search_items(self._service, scope, query, where, top_k, turns)
        except ServiceError as error:
            error.found = merged(unconfirmed, [], top_k)
            raise
        except TimeoutError:
            problem = f"{self.name}: mem0 did not answer a search within {_SEARCH_TIMEOUT_S:g} s"
            raise MemoryBackendError(problem, found=merged(unconfirmed, [], top_k)) from None
        return merged(unconfirmed, [message_of(item, self._service.name) for item in items], top_k)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """See `Memory.update`. Stores the messages as a row and sends them, or with `wait=False` leaves that to the background.

        Raises the error of the first request, if that is waited for; the row is sent again in the background even so.
        """
        ctx: InvocationContext | None = kwargs.get("ctx")
        scope = Scope.of(ctx, self.space)
        assert ctx is not None  # noqa: S101 - Scope.of refuses None
        erasures = self._intake.erasures(scope)
        said = said_by_people(messages)
        if not said:
            return
        about = {"session": ctx.session_id} | ({} if self._infer else {"kind": MemoryKind.RECENT_MESSAGE.value})
        id = storable(ctx.turn_id) if ctx.turn_id is not None else new_hex_id()
        queue = self.queues_writes and not kwargs.get("wait", True)
        if not await self._accept(Turn(scope.key, id, Entity.of(scope), said, about, self._infer), erasures, queue):
            log.info("memory %s: dropped a turn, its scope was erased meanwhile", self.name)

    @on_own_loop
    async def _accept(self, turn: Turn, erasures: int, queue: bool) -> bool:
        return await self._intake.accept(turn, erasures, queue=queue)

    async def wait_indexed(self, ctx: InvocationContext | None = None, *, timeout: float = 60.0) -> bool:  # noqa: ASYNC109
        """Wait up to `timeout` seconds until mem0 finds every accepted message of a context's scope, or of all (None).

        Returns whether it does. Messages that mem0 does not find yet are found by their words.
        """
        return await self._wait(Scope.of(ctx, self.space).key if ctx is not None else None, timeout)

    @on_own_loop
    async def _wait(self, scope: str | None, seconds: float) -> bool:
        return await (await self._intake.delivery()).wait(scope, seconds)

    # -- start and end ------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        try:
            await self._intake.delivery()
            await self._service.connect()
        except RetinueError as error:
            log.warning("memory %s: cannot connect, the next call tries again: %s", self.name, error)

    async def aclose(self) -> None:
        """Close everything. What mem0 has not taken stays in the database, and is sent by the next process that opens it."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop. Closing twice is fine."""
        self._loop.close(self._disconnect)
        self._turns.close()

    async def _disconnect(self) -> None:
        await self._intake.aclose()
        await self._service.aclose()

    # -- the owner's operations ---------------------------------------------------------------------------------------

    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        return await self._management.browse(scope, where, limit, cursor)

    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        return await self._management.get(scope, id)

    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        return await self._management.history(scope, id)

    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        return await self._management.search(scope, query, where, top_k, budget)

    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        return await self._management.add(scope, content, kind)

    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        return await self._management.edit(scope, id, content)

    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None:
        return await self._management.pin(scope, id, pinned)

    async def forget(
        self,
        scope: Scope,
        *,
        ids: Sequence[str] = (),
        query: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Receipt:
        return await self._management.forget(scope, ids, query, since, until)

    async def erase(self, scope: Scope) -> Receipt:
        return await self._management.erase(scope)

    async def remains(self, scope: Scope) -> Mapping[str, int]:
        return await self._management.remains(scope)

    def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        return self._management.export(scope)

    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        return await self._management.import_(scope, values)

    async def profile(self, scope: Scope) -> Profile:
        return await self._management.profile(scope)


def _within(budget: int | None, messages: Sequence[Message]) -> list[Message]:
    return list(within_budget(budget, messages, lambda message: message.content))
