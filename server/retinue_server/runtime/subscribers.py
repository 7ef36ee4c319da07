"""Subscribers of a task's events, and those of them that stay over all the turns of a task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from a2a.types import Message, Task, TaskArtifactUpdateEvent

from .events import Event, Numbered
from .turn import RESTING

_MAX_WAITING_EVENTS = 1024
_MAX_WAITING_BYTES = 1 << 20
"""Of the events that wait for one subscriber. Further behind, it gets the current task in their place."""


class Subscriber:
    """Receives events in the order of their generations, each once, until it is closed. Publishing never blocks.

    If it falls too far behind, the waiting events are replaced by the task as `catch_up` returns it.
    """

    def __init__(self, catch_up: Callable[[], Awaitable[Numbered[Task]]], *, after: int = 0) -> None:
        self._catch_up = catch_up
        self._delivered = after
        self._waiting: deque[tuple[Numbered[Event], int]] = deque()
        """Events with their sizes in bytes."""
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._behind = False
        self._closed = False

    def start_after(self, generation: int) -> None:
        """Skip the events up to a generation: they are part of a task that the subscriber was given."""
        self._delivered = generation

    def put(self, event: Numbered[Event]) -> None:
        if self._behind or self._closed:
            return
        size = event.event.ByteSize()
        self._waiting_bytes += size
        too_many = len(self._waiting) >= _MAX_WAITING_EVENTS or self._waiting_bytes > _MAX_WAITING_BYTES
        if self._waiting and too_many:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._behind = True
        else:
            self._waiting.append((event, size))
        self._wake()

    def close(self) -> None:
        """Deliver what waits, then end the iteration."""
        self._closed = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Numbered[Event]]:
        while True:
            if self._behind:
                self._behind = False  # before the task is read: what happens meanwhile must not be missed
                task = await self._catch_up()
                self._delivered = task.generation
                yield task
            while self._waiting:
                event, size = self._waiting.popleft()
                self._waiting_bytes -= size
                if event.generation > self._delivered:
                    self._delivered = event.generation
                    yield event
            if self._behind:
                continue
            self._waiting_bytes = 0
            if self._closed:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class TaskSubscribers:
    """Subscribers by task id. Each hears every turn of its task, until the task ends or is interrupted."""

    def __init__(self) -> None:
        self._by_task: dict[str, list[Subscriber]] = {}

    def add(self, task_id: str, subscriber: Subscriber) -> None:
        self._by_task.setdefault(task_id, []).append(subscriber)

    def remove(self, task_id: str, subscriber: Subscriber) -> None:
        """Does nothing if it was removed before."""
        subscribers = self._by_task.get(task_id, [])
        if subscriber in subscribers:
            subscribers.remove(subscriber)
        if not subscribers:
            self._by_task.pop(task_id, None)

    def publish(self, numbered: Numbered[Event]) -> None:
        event = numbered.event
        if not self._by_task or isinstance(event, Message):
            return
        task_id = event.id if isinstance(event, Task) else event.task_id
        for subscriber in self._by_task.get(task_id, ()):
            subscriber.put(numbered)
            if not isinstance(event, TaskArtifactUpdateEvent) and event.status.state in RESTING:
                subscriber.close()

    def close_all(self) -> None:
        for subscribers in self._by_task.values():
            for subscriber in subscribers:
                subscriber.close()
