"""Memory writes in flight: they never delay an answer, and the same user's next turn waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from retinue_memory import InvocationContext, Memory, Message
from retinue_memory.errors import RetinueError

from .events import MemoryFailed, MemoryOperation

log = logging.getLogger(__name__)

PendingWrite = asyncio.Future[list[MemoryFailed]]
"""A write that has started. Its result: the memories that failed."""


class MemoryWrites:
    """Write to all of an agent's memories, each within `timeout` seconds. Failures are logged and returned, not raised."""

    def __init__(self, memories: Sequence[Memory], timeout: float) -> None:
        self.timeout = timeout
        self._memories = memories
        self._in_flight: dict[asyncio.Task[list[MemoryFailed]], InvocationContext] = {}

    def start(self, messages: Sequence[Message], ctx: InvocationContext) -> PendingWrite:
        """Start to write the messages, in a task that outlives its caller; without one if every memory takes them at once."""
        slow = [memory for memory in self._memories if not _takes(memory, messages, ctx)]
        if not slow:
            done: PendingWrite = asyncio.get_running_loop().create_future()
            done.set_result([])
            return done
        task = asyncio.create_task(self._update(slow, messages, ctx))
        self._in_flight[task] = ctx
        task.add_done_callback(self._in_flight.pop)
        return task

    async def wait(self, ctx: InvocationContext | None = None, max_wait_s: float | None = None) -> None:
        """Wait, at most `max_wait_s` seconds, for the writes in flight in this event loop.

        With `ctx`, for those of its user (or session) only: a search would not find them before they end.
        """
        if not self._in_flight:
            return
        loop = asyncio.get_running_loop()
        tasks = [
            task
            for task, other in self._in_flight.items()
            if task.get_loop() is loop and (ctx is None or _same_owner(ctx, other))
        ]
        if tasks:
            await asyncio.wait(tasks, timeout=max_wait_s)

    async def attempt(
        self, operation: MemoryOperation, memory: Memory, work: Callable[[], Awaitable[None]]
    ) -> MemoryFailed | None:
        """Run `work` on a memory within the timeout. Returns None if it succeeded."""
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                await work()
        except RetinueError as error:
            log.warning("memory %s: %s failed: %s", memory.name, operation, error)
            return MemoryFailed(operation, memory.name, str(error))
        except Exception as error:
            if limit.expired():
                log.warning("memory %s: %s did not end within %g s", memory.name, operation, self.timeout)
                return MemoryFailed(operation, memory.name, f"no answer within {self.timeout:g} s")
            log.warning("memory %s: %s raised an unexpected error", memory.name, operation, exc_info=True)
            return MemoryFailed(operation, memory.name, f"{type(error).__name__}: {error}")
        return None

    async def _update(
        self, memories: Sequence[Memory], messages: Sequence[Message], ctx: InvocationContext
    ) -> list[MemoryFailed]:
        if len(memories) == 1:
            outcomes = [await self._update_one(memories[0], messages, ctx)]
        else:
            outcomes = await asyncio.gather(*(self._update_one(memory, messages, ctx) for memory in memories))
        return [failure for failure in outcomes if failure is not None]

    async def _update_one(
        self, memory: Memory, messages: Sequence[Message], ctx: InvocationContext
    ) -> MemoryFailed | None:
        return await self.attempt("update", memory, partial(memory.update, list(messages), ctx=ctx))


async def failures_of(write: PendingWrite, max_wait_s: float | None = None) -> list[MemoryFailed] | None:
    """Wait at most `max_wait_s` seconds for a write. Returns None if it is still in flight. Cancellation does not stop it."""
    if not write.done():
        await asyncio.wait((write,), timeout=max_wait_s)
    return write.result() if write.done() else None


def _takes(memory: Memory, messages: Sequence[Message], ctx: InvocationContext) -> bool:
    try:
        return memory.take(list(messages), ctx=ctx)
    except RetinueError:
        return False  # `update` raises it again, and it is reported there


def _same_owner(one: InvocationContext, other: InvocationContext) -> bool:
    if one.tenant != other.tenant or one.user_id != other.user_id:
        return False
    return one.user_id is not None or one.session_id == other.session_id
