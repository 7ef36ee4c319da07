"""Threads for what must not block an event loop: a loop in a thread, and a call in a thread.

Every thread is a daemon and nothing at the exit of the process waits for one without a deadline, so a third-party call that
hangs cannot keep the process alive.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from anyio.from_thread import BlockingPortal

from .errors import RetinueError

P = ParamSpec("P")
T = TypeVar("T")

_EXIT_TIMEOUT_S = 2.0


class LoopClosed(RetinueError):
    """The event loop in a thread was closed: create another."""


class LoopThread:
    """An event loop in a daemon thread, for use from other threads and other loops. It starts at the first use.

    The loop runs anyio's `BlockingPortal`. anyio's `start_blocking_portal` is not used: it joins its thread without a
    deadline, at the exit of the process too.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._portal: Future[BlockingPortal] = Future()
        self._closed = False
        self._exiting = False

    def run(self, started: Callable[[], object] = lambda: None) -> None:
        """Run the loop in the calling thread until it is closed; `started` is called on it, once it takes calls."""

        async def serve() -> None:
            async with BlockingPortal() as portal:
                self._loop = asyncio.get_running_loop()
                self._portal.set_result(portal)
                started()
                await portal.sleep_until_stopped()

        self._thread = threading.current_thread()
        try:
            asyncio.run(serve())
        except BaseException as error:
            if not self._portal.done():
                self._portal.set_exception(error)
            raise

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await `function()` on this loop, from any loop. The calling loop never waits for this one.

        A call that is cancelled before it started is not started; a running one is cancelled and left behind. Raises
        LoopClosed.
        """
        if asyncio.get_running_loop() is self._loop:
            return await function()
        self._start()
        if not self._portal.done():
            await asyncio.shield(asyncio.wrap_future(self._portal))
        portal = self._portal.result()
        abandoned = False

        async def work() -> asyncio.Future[T]:
            if abandoned:
                raise asyncio.CancelledError
            return await _finish(function)

        try:
            task = await portal.call_async(work, abandon_on_cancel=True)
        except concurrent.futures.CancelledError:
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            abandoned = True
            raise
        except RuntimeError:
            if self._closed:
                raise LoopClosed(f"{self.name} is closed") from None
            raise
        try:
            return task.result()
        finally:
            del task

    def start_soon(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        """Start `function()` on this loop, from any thread. Blocks until the loop has started it. Raises LoopClosed."""
        self._start()
        try:
            return self._portal.result().start_task_soon(function)
        except RuntimeError:
            if self._closed:
                raise LoopClosed(f"{self.name} is closed") from None
            raise

    def wait(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await `function()` on this loop, from any thread. Blocks; an interrupt (Ctrl+C) cancels it. Raises LoopClosed."""
        future = self.start_soon(lambda: _finish(function))
        try:
            task = future.result()
        except concurrent.futures.CancelledError:
            if self._exiting:
                raise SystemExit from None  # ends this daemon thread without a traceback
            raise
        except BaseException:
            future.cancel()
            raise
        try:
            return task.result()
        finally:
            del task

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Schedule a callback on the loop, if it runs. Never blocks, even while the loop is blocked."""
        with suppress(RuntimeError):  # the loop has just ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback)

    def close(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Await `last` on the loop if it ever ran, cancel what is left there and end the thread. Blocks. May be repeated."""
        with self._lock:
            closed, self._closed = self._closed, True
        atexit.unregister(self._abandon)
        if closed or self._thread is None:
            return
        portal = self._portal.result()
        try:
            if last is not None:
                portal.call(last)
        finally:
            self.stop()
            if self._thread is not threading.current_thread():
                self._thread.join()

    def stop(self) -> None:
        """Cancel what runs on the loop and let its thread end. Does not wait for it."""
        self._closed = True
        self.call_soon(lambda: asyncio.ensure_future(self._portal.result().stop(cancel_remaining=True)))

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise LoopClosed(f"{self.name} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)
                self._thread.start()
                atexit.register(self._abandon)

    def _abandon(self) -> None:
        """If the loop was not closed: let its tasks end, before the exit of the process freezes the thread."""
        self._exiting = True
        self.stop()
        if self._thread is not None:
            self._thread.join(_EXIT_TIMEOUT_S)


async def _finish(function: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
    """Await `function()` in a task, and return the task.

    A task is cancelled once; a scope of anyio would cancel every further await, cleanup included. And an exception that goes
    through the portal is in a reference cycle there, which keeps alive whatever its frames hold.
    """
    task = asyncio.ensure_future(function())
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(_retrieve_exception)
        raise
    return task


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def call_in_thread(function: Callable[[], T], *, name: str) -> Future[T]:
    """Call `function` in a daemon thread of its own. The future cannot be cancelled: who gives up leaves the call running.

    Not anyio's `to_thread`, which counts a call that was left behind as ended and cannot be waited for again.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class DaemonThreads(ThreadPoolExecutor):
    """The default executor of an event loop that runs third-party code: a daemon thread per call, so that one that hangs
    delays neither other calls nor the exit of the process, where a pool's threads are joined."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return call_in_thread(lambda: fn(*args, **kwargs), name="executor-call")


_SHARED = LoopThread("memory-calls")


def wait_for(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a coroutine function from code without an event loop, and wait for its result.

    All calls share one loop in the background. A thread whose own loop is running may call this too, and blocks it.
    """
    return _SHARED.wait(lambda: function(*args, **kwargs))


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Turn a coroutine function into a plain one, for code without an event loop."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return wait_for(function, *args, **kwargs)

    return call
