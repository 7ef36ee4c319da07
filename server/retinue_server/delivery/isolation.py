"""Memories that others wrote, kept apart: what hangs, blocks or fails in one holds up neither the server nor its start."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from retinue_memory import (
    InvocationContext,
    ManagedMemory,
    Memory,
    Message,
)
from retinue_memory.errors import MemoryBackendError

log = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN_AFTER = 2.0
"""Seconds after which a memory that could not be made is made once more, when somebody asks for it."""


class IsolatedMemory(Memory):
    """A memory in a daemon thread of its own: made there by `make`, and called there, on an event loop of its own.

    Until it is made, a search is refused at once, and a write waits; where it could not be, a call some seconds later makes it
    once more. A `ManagedMemory` is only made there, and called where the requests of its owner are: `came` is told of one
    that comes after nobody waited for it any more, from the thread.
    """

    def __init__(self, name: str, make: Callable[[], Memory], came: Callable[[ManagedMemory], None]) -> None:
        self.name = name
        self._make = make
        self._came = came
        self._late = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin()

    def wait(self, seconds: float) -> Memory:
        """The memory, as soon as it is made. Raises what its constructor does; TimeoutError: that runs on."""
        try:
            return self._made.result(seconds)
        except TimeoutError:
            self._late = not self._made.done()
            raise

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return await self._there(lambda memory: memory.retrieve(query, top_k=top_k, **kwargs))

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await self._over()
        await self._there(lambda memory: memory.update(messages, **kwargs))

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        await self._over()
        return await self._there(lambda memory: memory.already_written(messages, ctx=ctx))

    @property
    def ready(self) -> bool:
        """Whether the memory is made: before, nothing can be said of what it keeps."""
        return self._made.done() and not self._failed()

    @property
    def managed(self) -> ManagedMemory | None:
        """The memory itself, where it is a `ManagedMemory` and made by now."""
        made = self._made.result() if self._made.done() and self._made.exception() is None else None
        return made if isinstance(made, ManagedMemory) else None

    async def aclose(self) -> None:
        if self._failed() or not self._made.done():
            return
        await self._there(lambda memory: memory.aclose())
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._made: Future[Memory] = Future()
        self._again_at = 0.0
        threading.Thread(target=self._live, args=(self._made,), name=f"memory-{self.name}", daemon=True).start()

    def _live(self, made: Future[Memory]) -> None:
        try:
            memory = self._make()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the memory
            self._again_at = time.monotonic() + _AGAIN_AFTER
            if self._late:
                log.error("memory %s: could not be made: %s", self.name, error)
            made.set_exception(error)
            return
        loop = None if isinstance(memory, ManagedMemory) else asyncio.new_event_loop()
        self._loop = loop
        made.set_result(memory)
        if self._late:
            log.info("memory %s: ready at last", self.name)
            if isinstance(memory, ManagedMemory):
                self._came(memory)
        if loop is not None:
            try:
                loop.run_forever()
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left, timeout=_AGAIN_AFTER))
            finally:
                loop.close()

    async def _over(self) -> None:
        """Wait until its constructor has ended; where it failed, until it has done so once more."""
        if self._failed():
            await asyncio.sleep(self._again_at - time.monotonic())
        self._make_again()
        if self._made.done():
            return
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._made.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(over.set))
        await over.wait()

    def _ready(self) -> Memory:
        self._make_again()
        if not self._made.done():
            raise MemoryBackendError(f"{self.name}: not ready: its constructor has not returned")
        if self._failed():
            error = self._made.exception()
            raise MemoryBackendError(f"{self.name}: could not be made: {error}") from error
        return self._made.result()

    def _make_again(self) -> None:
        if self._failed() and time.monotonic() >= self._again_at:
            self._late = True
            self._begin()

    def _failed(self) -> bool:
        return self._made.done() and self._made.exception() is not None

    async def _there(self, call: Callable[[Memory], Coroutine[Any, Any, T]]) -> T:
        """Make a call in the thread. One that is cancelled before it began is not begun."""
        memory, loop = self._ready(), self._loop
        if loop is None:
            return await call(memory)
        done: Future[T] = Future()

        async def work() -> T:
            try:
                return await call(memory)
            except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop
                raise MemoryBackendError(f"{self.name}: {type(error).__name__}: {error}") from error

        def begin() -> None:
            if not done.cancelled():
                task = loop.create_task(work())
                task.add_done_callback(lambda task: _settle(done, task))
                done.add_done_callback(lambda done: done.cancelled() and loop.call_soon_threadsafe(task.cancel))

        loop.call_soon_threadsafe(begin)
        return await asyncio.wrap_future(done)


def is_outage(error: BaseException | None) -> bool:
    """Whether a memory could not be made because of what it talks to, which may be back soon."""
    while error is not None:
        if isinstance(error, MemoryBackendError | ConnectionError | TimeoutError | socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _settle(done: Future[T], task: asyncio.Task[T]) -> None:
    with suppress(asyncio.InvalidStateError):  # given up in the meantime
        if task.cancelled():
            done.cancel()
        elif (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(task.result())
