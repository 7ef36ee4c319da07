"""The events of one turn, pulled by iteration or pushed to a callback."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from .events import Event, MemoryFailed, MemoryUpdated, TextDelta
from .loop import AgentLoop, Emit
from .memory_writes import PendingWrite


class EventStream(AsyncIterator[Event]):
    """One turn of an agent, which runs once: iterate over its events, or `run` it with a callback.

    While it is iterated over, the turn runs in a task of its own, so that what limits or cancels one of its steps cannot
    cancel the consumer. It waits before each event until the consumer asks for the next, but reads the model's text ahead.
    """

    def __init__(self, turn: AgentLoop) -> None:
        self._turn = turn
        self._events = _iterate(turn)

    async def run(self, emit: Emit) -> PendingWrite | None:
        """Run the turn in the calling task, and await `emit` with each event.

        Returns the memory write that the turn started, which may be in flight, or None if there is none; `outcome` gives
        its events. Raises what iterating raises, and what `emit` raises.
        """
        return await self._turn.run(emit)

    async def outcome(self, write: PendingWrite | None) -> Sequence[MemoryFailed | MemoryUpdated]:
        """Wait for the write that `run` returned, and return the events that end the turn."""
        return await self._turn.memory.outcome(write)

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Stop the turn, unless it has ended. A memory write that has started completes."""
        await self._events.aclose()


async def _iterate(turn: AgentLoop) -> AsyncGenerator[Event, None]:
    """The events of a turn that runs in a task. Nothing of it refers to the stream: one that is dropped stops the turn."""
    handover = _Handover()
    task = asyncio.create_task(turn.run(handover.emit))
    task.add_done_callback(handover.wake)
    try:
        while True:
            while handover.events:
                yield handover.events.popleft()
            handover.resume()
            if task.done():
                break
            await handover.wait()
        write = task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # mark it as retrieved: asyncio would log it otherwise
    for event in await turn.memory.outcome(write):
        yield event


class _Handover:
    """Hands events from the task that runs a turn to the consumer of its stream."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self._consumer: asyncio.Future[None] | None = None
        self._producer: asyncio.Future[None] | None = None

    async def emit(self, event: Event) -> None:
        self.events.append(event)
        self.wake()
        if not isinstance(event, TextDelta):
            self._producer = asyncio.get_running_loop().create_future()
            await self._producer

    async def wait(self) -> None:
        """Wait for an event, or for the end of the turn."""
        self._consumer = asyncio.get_running_loop().create_future()
        await self._consumer

    def wake(self, _: object = None) -> None:
        _resolve(self._consumer)

    def resume(self) -> None:
        """Let the turn go on: the consumer has asked for more than there is."""
        _resolve(self._producer)


def _resolve(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
