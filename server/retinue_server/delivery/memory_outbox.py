"""The outbox of memory writes: pending from the commit that ends a turn, delivered in the background, found meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from retinue_memory import InvocationContext, ManagedMemory, Memory, Message, Scope
from retinue_memory.errors import MemoryBackendError
from retinue_memory.pending import overlay
from retinue_memory.recall import sound
from retinue_memory.retry import RetryPolicy
from retinue_server.http.metrics import Metrics
from retinue_server.runtime.store.memory_outbox import MemoryOutboxRows
from retinue_server.runtime.turn import WRITES, DueWrite, MemoryWrite

from .memory_delivery import DEFAULT_POLICY, MemoryDelivery
from .pending_writes import PendingWrites

_STOP_TIMEOUT_S = 3.0
"""A write that is cut off may have arrived all the same, so a stop waits for those that are running."""
_RECENT = 2
"""Pending messages that are recalled although they share no word with the query ("I am from Italy", "my capital?")."""


class Outbox:
    """Delivers the writes that turns commit to their memories, and knows which are pending.

    A row stays until its memory has returned from `update`, is retried by the policy of the memory's config entry, and is
    kept as failed after the last try. A memory with `queues_writes` returns once the write is in its own durable queue: the
    row goes then, and whatever follows is retried by that queue alone. A crash between the two hands the write over again,
    which changes nothing, since it has the same turn id.
    """

    def __init__(
        self,
        rows: MemoryOutboxRows,
        memories: Mapping[str, Memory],
        metrics: Metrics | None = None,
        policies: Mapping[str, RetryPolicy] | None = None,
    ) -> None:
        self._rows = rows
        self._memories = memories
        self._policies = policies or {}
        self._deliveries: dict[str, MemoryDelivery] = {}
        self.metrics = metrics or Metrics(memories)
        self.pending = PendingWrites()

    async def start(self) -> None:
        """Load what earlier processes left, and start to deliver to every memory that exists by now."""
        left = await self._rows.unconfirmed_writes()
        for write in left:
            self.pending.add(write)
        for name in self._memories:
            self.metrics.count_pending(name, partial(self.pending.count, name))
            inherited = [write.context.turn_id for write in left if write.memory == name]
            policy = self._policies.get(name, DEFAULT_POLICY)
            self._deliveries[name] = MemoryDelivery(
                name, self._memories, self._rows, self.pending, self.metrics, policy, inherited
            )
        for delivery in self._deliveries.values():
            delivery.worker.start()

    async def stop(self) -> None:
        """Start nothing more, and wait for what is running; what is not delivered stays pending."""
        await asyncio.gather(*(delivery.stop(_STOP_TIMEOUT_S) for delivery in self._deliveries.values()))

    def add(self, committed: Iterable[DueWrite]) -> None:
        """Deliver writes that were just committed."""
        for due in committed:
            self.pending.add(due.write)
            if (delivery := self._deliveries.get(due.write.memory)) is not None:
                delivery.add(due)

    async def retry(self) -> int:
        """Deliver the writes that failed for the last time, of all memories. Returns their number."""
        count = 0
        for name, delivery in self._deliveries.items():
            for write in await self._rows.retry_failed_writes(name):
                self.pending.add(write)
                count += 1
            delivery.read_rows()
        return count

    async def drop(self, tenant: str, user: str) -> None:
        """Drop the pending writes of a user who is being erased, and wait for those that are being delivered."""
        running = [
            future
            for key in self.pending.drop(tenant, user)
            if (delivery := self._deliveries.get(key[0])) is not None
            if (future := delivery.worker.running.get(key)) is not None
        ]
        if running:
            await asyncio.wait(running)


class OutboxMemory(Memory):
    """A memory as turns see it: a write is pending from the commit of its step or its turn, and recall sees what is pending."""

    def __init__(self, name: str, memory: Memory, outbox: Outbox) -> None:
        self.name = name
        self._memory = memory
        self._pending = outbox.pending
        self._metrics = outbox.metrics

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        scope = Scope.of(kwargs.get("ctx")).key
        await self._pending.wait(self.name, scope)
        pending = self._matching(query, scope)

        def with_pending(answer: Sequence[Message]) -> list[Message]:
            found = sound(answer, top_k)
            known = {message.content for message in found}
            return [*(message for message in pending if message.content not in known), *found][:top_k]

        with self._metrics.retrieving(self.name):
            try:
                found = await self._memory.retrieve(query, top_k=top_k, **kwargs)
                return with_pending(found) if pending else found
            except MemoryBackendError as error:
                error.found = with_pending(error.found)
                raise

    def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
        return self._matching(query, Scope.of(ctx).key)[:top_k]

    def _matching(self, query: str, scope: str) -> list[Message]:
        """The pending messages of a scope that a query may be about, as the memory would return them."""
        pending = self._pending.of(self.name, scope)
        if not pending:
            return []
        said = [message for write in pending for message in write.messages]
        return overlay(query, said, backend=self.name, recent=_RECENT)

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        if not self.take(messages, ctx=kwargs["ctx"]):
            await self._memory.update(messages, **kwargs)

    def take(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        writes = WRITES.get()
        if writes is None:
            return False
        writes.append(MemoryWrite(self.name, ctx, list(messages)))
        return True

    @property
    def managed(self) -> ManagedMemory | None:
        return self._memory.managed
