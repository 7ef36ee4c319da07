"""Run a third-party memory on its own thread and event loop, so that a hang or a crash in it cannot block the server."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from retinue_memory import InvocationContext, ManagedMemory, Memory, Message
from retinue_memory.background import DaemonThreads, LoopThread, call_in_thread
from retinue_memory.errors import MemoryBackendError

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_AFTER_S = 2.0


class IsolatedMemory(Memory):
    """A memory that is created by `create` in a thread of its own, and called on an event loop of that thread.

    Until it is created, `retrieve` fails at once and `update` waits. If it could not be created, a call some seconds later
    tries again. A `ManagedMemory` is only created in the thread, and called on the caller's loop; `created_late` is called
    from the thread with one that nobody waits for any more.
    """

    def __init__(self, name: str, create: Callable[[], Memory], created_late: Callable[[ManagedMemory], None]) -> None:
        self.name = name
        self._create = create
        self._created_late = created_late
        self._late = False
        """Whether `wait` has given up, so that the log is where the outcome belongs."""
        self._start()

    def wait(self, timeout_s: float) -> Memory:
        """Wait for the memory. Raises what its constructor raises, or TimeoutError if it is still running."""
        try:
            return self._created.result(timeout_s)
        except TimeoutError:
            self._late = not self._created.done()
            raise

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return await self._call(lambda memory: memory.retrieve(query, top_k=top_k, **kwargs))

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await self._constructed()
        await self._call(lambda memory: memory.update(messages, **kwargs))

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        await self._constructed()
        return await self._call(lambda memory: memory.already_written(messages, ctx=ctx))

    @property
    def ready(self) -> bool:
        """Whether the memory is created: before, nothing is known of what it keeps."""
        return self._created.done() and not self._failed()

    @property
    def managed(self) -> ManagedMemory | None:
        memory = self._created.result() if self.ready else None
        return memory.managed if memory is not None and _is_managed(memory) else None

    async def aclose(self) -> None:
        if not self.ready:
            return
        await self._call(lambda memory: memory.aclose())
        self._loop.stop()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._created: Future[Memory] = Future()
        self._loop = LoopThread(f"memory-{self.name}")
        self._retry_at = 0.0
        call_in_thread(partial(self._run, self._created, self._loop), name=f"memory-{self.name}")

    def _run(self, created: Future[Memory], loop: LoopThread) -> None:
        try:
            memory = self._create()
        except BaseException as error:  # noqa: BLE001 - handed to whoever calls the memory
            self._retry_at = time.monotonic() + _RETRY_AFTER_S
            if self._late:
                log.error("memory %s: cannot be created: %s; trying again when it is used", self.name, error)
            created.set_exception(error)
            return
        self.queues_writes = memory.queues_writes
        if self._late:
            log.info("memory %s: ready, after the server started", self.name)
        if _is_managed(memory):
            created.set_result(memory)
            if self._late and memory.managed is not None:
                self._created_late(memory.managed)
            return

        def started() -> None:
            asyncio.get_running_loop().set_default_executor(DaemonThreads())
            created.set_result(memory)

        try:
            loop.run(started)
        except BaseException:
            log.exception("memory %s: its event loop crashed", self.name)

    async def _constructed(self) -> None:
        """Wait until the constructor has returned; if it failed, until it has been tried once more."""
        if self._failed():
            await asyncio.sleep(self._retry_at - time.monotonic())
        self._retry()
        if self._created.done():
            return
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._created.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(done.set))
        await done.wait()

    def _retry(self) -> None:
        if self._failed() and time.monotonic() >= self._retry_at:
            self._late = True
            self._start()

    def _failed(self) -> bool:
        return self._created.done() and self._created.exception() is not None

    async def _call(self, call: Callable[[Memory], Coroutine[Any, Any, T]]) -> T:
        """Call the memory in its thread. A call that is cancelled before it started is not started."""
        self._retry()
        if not self._created.done():
            raise MemoryBackendError(f"{self.name}: not ready: its constructor has not returned")
        if (error := self._created.exception()) is not None:
            raise MemoryBackendError(f"{self.name}: cannot be created: {error}") from error
        memory = self._created.result()
        if _is_managed(memory):
            return await call(memory)

        async def guarded() -> T:
            try:
                return await call(memory)
            except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop
                raise MemoryBackendError(f"{self.name}: {type(error).__name__}: {error}") from error

        return await self._loop.call(guarded)


def is_outage(error: BaseException | None) -> bool:
    """Whether a memory could not be created because a service that it needs is unavailable, which may be back soon."""
    while error is not None:
        if isinstance(error, MemoryBackendError | ConnectionError | TimeoutError | socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_managed(memory: Memory) -> bool:
    return memory.managed is memory
