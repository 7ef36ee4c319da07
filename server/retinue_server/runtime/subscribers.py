"""A2A events: how each changes its task (spec 1.0, section 4.2), how many become few, and who listens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from a2a.types import (
    Task,
)

from retinue_server.runtime.events import Event

_FURTHEST_BEHIND = 1024
"""Events that may wait for one subscriber. One that is further behind gets the task as it then is, in their place."""


class Subscriber:
    """Receives a task's events in order, from when it was made until it is closed. Never blocks who publishes.

    Where it falls too far behind, the events that wait are replaced by the task that they led to.
    """

    def __init__(self, catch_up: Callable[[], Awaitable[Task]]) -> None:
        self.fresh = True
        """Whether nothing was said to it yet."""
        self._catch_up = catch_up
        self._waiting: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._behind = False
        self._closed = False

    def put(self, event: Event) -> None:
        if self._behind or self._closed:
            return
        self.fresh = False
        if len(self._waiting) >= _FURTHEST_BEHIND:
            self._waiting.clear()
            self._behind = True
        else:
            self._waiting.append(event)
        self._wake()

    def close(self) -> None:
        """No more events will come; those that wait are still delivered."""
        self._closed = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            if self._behind:
                task = await self._catch_up()
                self._behind = False
                yield task
            while self._waiting:
                yield self._waiting.popleft()
            if self._behind:
                continue
            if self._closed:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
