"""Memory writes on their way: none delays an answer, and the next turn of the same user waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from retinue_memory import InvocationContext, Memory, Message
from retinue_memory.errors import RetinueError

from .events import MemoryFailed, MemoryUpdated

log = logging.getLogger(__name__)


class Writes:
    """Writes to all of an agent's memories, `timeout` seconds each at most. What fails is logged, and told as an event."""

    def __init__(self, memories: Sequence[Memory], timeout: float) -> None:
        self.timeout = timeout
        self._memories = memories
        self._under_way: dict[asyncio.Task[list[MemoryFailed]], InvocationContext] = {}

    def begin(self, messages: Sequence[Message], ctx: InvocationContext) -> asyncio.Future[list[MemoryFailed]]:
        """Write in a task that outlives whoever began it. Where every memory takes the messages at once, that was all."""
        waiting = [memory for memory in self._memories if not _takes(memory, messages, ctx)]
        if not waiting:
            done: asyncio.Future[list[MemoryFailed]] = asyncio.get_running_loop().create_future()
            done.set_result([])
            return done
        task = asyncio.create_task(self._update(waiting, messages, ctx))
        self._under_way[task] = ctx
        task.add_done_callback(self._under_way.pop)
        return task

    async def ended(
        self, write: asyncio.Future[list[MemoryFailed]] | None, at_most: float | None = None
    ) -> Sequence[MemoryFailed | MemoryUpdated]:
        """How a write ended, or nothing where it has not within `at_most` seconds. Being cancelled leaves it running."""
        if write is None:
            return ()
        if not write.done():
            await asyncio.wait((write,), timeout=at_most)
        return (write.result() or (MemoryUpdated(),)) if write.done() else ()

    async def settled(self, ctx: InvocationContext | None = None, at_most: float | None = None) -> None:
        """Wait for this loop's pending writes, those of the same user or session where `ctx` is given.

        A next turn that begins before the last one is written would not find it.
        """
        if not self._under_way:
            return
        loop = asyncio.get_running_loop()
        pending = [
            task
            for task, other in self._under_way.items()
            if task.get_loop() is loop and (ctx is None or _same_owner(ctx, other))
        ]
        if pending:
            await asyncio.wait(pending, timeout=at_most)

    async def _update(
        self, memories: Sequence[Memory], messages: Sequence[Message], ctx: InvocationContext
    ) -> list[MemoryFailed]:
        if len(memories) == 1:
            outcomes = [await self._update_one(memories[0], messages, ctx)]
        else:
            outcomes = await asyncio.gather(*(self._update_one(memory, messages, ctx) for memory in memories))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _update_one(
        self, memory: Memory, messages: Sequence[Message], ctx: InvocationContext
    ) -> MemoryFailed | None:
        return await self.attempt("update", memory, lambda: memory.update(list(messages), ctx=ctx))

    async def attempt(
        self, what: Literal["update", "forget"], memory: Memory, work: Callable[[], Awaitable[None]]
    ) -> MemoryFailed | None:
        """Do something to a memory, and say how it failed, if it did."""
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                await work()
        except RetinueError as error:
            log.warning("memory %s: %s failed: %s", memory.name, what, error)
            return MemoryFailed(what, memory.name, str(error))
        except Exception as error:
            if limit.expired():
                log.warning("memory %s: %s did not end within %g s", memory.name, what, self.timeout)
                return MemoryFailed(what, memory.name, f"no answer within {self.timeout:g} s")
            log.warning("memory %s: %s raised", memory.name, what, exc_info=True)
            return MemoryFailed(what, memory.name, f"{type(error).__name__}: {error}")
        return None


def _takes(memory: Memory, messages: Sequence[Message], ctx: InvocationContext) -> bool:
    try:
        return memory.take(list(messages), ctx=ctx)
    except RetinueError:
        return False  # `update` raises it again, where it is told


def _same_owner(one: InvocationContext, other: InvocationContext) -> bool:
    if one.tenant != other.tenant or one.user_id != other.user_id:
        return False
    return one.user_id is not None or one.session_id == other.session_id
