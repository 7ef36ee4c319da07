"""Awaiting from code that has no event loop: one loop for the process, on a daemon thread, begun at the first call."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_beginning = threading.Lock()


def wait_for(work: Coroutine[Any, Any, R]) -> R:
    """What `work` returns or raises, once it is done. From any thread; one whose own loop is running waits with it."""
    with _beginning:
        loop = _loop()
    under_way = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return under_way.result()
    except BaseException:
        under_way.cancel()  # the caller gave up (Ctrl+C): so does the work
        raise


def blocking(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """The coroutine function as a plain one, for code without an event loop."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(function(*args, **kwargs))

    return call


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="memory-calls", daemon=True)
    thread.start()

    def end() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(end)
    return loop
