"""Acceptance of turns by a memory over mem0, on the memory's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from retinue_memory.memory import Scope

from .delivery import Delivery
from .service import Service
from .turns import Turn, Turns


class Intake:
    """Accepts turns unless their scope was erased since they started. Opens the database of the turns at the first use.

    `before_open` is awaited before that; None: there is nothing to do.
    """

    def __init__(
        self, name: str, service: Service, turns: Turns, before_open: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._name = name
        self._service = service
        self._turns = turns
        self._before_open = before_open
        self._delivery: Delivery | None = None
        self._erasures: dict[str, int] = {}

    async def delivery(self) -> Delivery:
        """The delivery of turns, started at the first use. Raises StoreError, and what `before_open` raises."""
        if self._delivery is None:
            if self._before_open is not None:
                await self._before_open()
            await asyncio.to_thread(self._turns.open)
        if self._delivery is None:  # another call may have started it meanwhile
            self._delivery = Delivery(self._service, self._turns, self._name)
        return self._delivery

    async def accept(self, turn: Turn, erasures: int, *, queue: bool = False) -> bool:
        """Accept a turn that started when its scope had been erased so many times, and send it now or with `queue` in the
        background. Returns False if it was erased since."""
        delivery = await self.delivery()
        accept = delivery.enqueue if queue else delivery.accept
        return await accept(turn, unless=lambda _: self._erasures.get(turn.scope, 0) != erasures)

    def erasures(self, scope: Scope) -> int:
        """How many times this process has erased the scope."""
        return self._erasures.get(scope.key, 0)

    def count_erasure(self, scope: Scope) -> None:
        """Refuse turns of the scope that started before now."""
        self._erasures[scope.key] = self._erasures.get(scope.key, 0) + 1

    async def aclose(self) -> None:
        """Stop delivering; what was not delivered stays in the database."""
        if self._delivery is not None:
            await self._delivery.aclose()
