"""Methods that run on the event loop of their memory, from whichever loop they are awaited on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from retinue_memory.background import LoopClosed, LoopThread
from retinue_memory.errors import MemoryBackendError

T = TypeVar("T")
P = ParamSpec("P")


class _HasLoop(Protocol):
    _loop: LoopThread


M = TypeVar("M", bound=_HasLoop)


def on_own_loop(
    method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[M, P], CoroutineType[Any, Any, T]]:
    """Run a method on `self._loop`. Cancelling the call cancels it there. Raises MemoryBackendError once that is closed."""

    @functools.wraps(method)
    async def run(self: M, *args: P.args, **kwargs: P.kwargs) -> T:
        loop = self._loop  # pyright: ignore[reportPrivateUsage] - it decorates methods of that class
        try:
            return await loop.call(lambda: method(self, *args, **kwargs))
        except LoopClosed:
            raise MemoryBackendError(f"{loop.name} is closed") from None

    return cast("Callable[Concatenate[M, P], CoroutineType[Any, Any, T]]", run)
