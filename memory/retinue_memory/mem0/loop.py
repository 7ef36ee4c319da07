"""An event loop in a thread of its own, asked from any other loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from retinue_memory.errors import MemoryBackendError

T = TypeVar("T")
P = ParamSpec("P")


class LoopThread:
    """Runs coroutines on one loop whichever loop they are awaited on. What holds connections lives there, and a library
    that blocks holds up nobody else. The thread starts at the first use."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; cancelling this cancels it. Raises MemoryBackendError once closed."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work`, from any thread. Raises MemoryBackendError once closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise MemoryBackendError(f"{self._name}: the memory is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
                atexit.register(self._abandon)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last`, cancel what is still under way and end the thread. Blocks. Closing twice is fine."""
        with self._lock:
            loop, thread, self._closed = self._loop, self._thread, True
            self._loop = None
        atexit.unregister(self._abandon)
        if loop is None or thread is None:
            last.close()
            return
        try:
            asyncio.run_coroutine_threadsafe(_finish(last), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _abandon(self) -> None:
        """The process ends and nobody has closed this: end quietly. (No thread can be started any more.)"""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(2.0)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(2.0)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _finish(last: Coroutine[Any, Any, None]) -> None:
    try:
        await last
    finally:
        await _cancel_others()
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.get_running_loop().shutdown_default_executor()


class _Looped(Protocol):
    _loop: LoopThread


M = TypeVar("M", bound=_Looped)


def on_own_loop(
    method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[M, P], CoroutineType[Any, Any, T]]:
    """Run a method on the memory's own loop, whichever it is awaited on."""

    @functools.wraps(method)
    async def run(self: M, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.run(method(self, *args, **kwargs))  # pyright: ignore[reportPrivateUsage]

    return cast("Callable[Concatenate[M, P], CoroutineType[Any, Any, T]]", run)
