"""What a server closes when it stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class Resources:
    """Everything to be closed, in reverse order of its creation. One that hangs or fails does not keep the others open."""

    def __init__(self) -> None:
        self._closers: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def add(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` at the end; `name` says what it closes, for the log."""
        self._closers.append((name, close))

    async def aclose(self) -> None:
        while self._closers:
            name, close = self._closers.pop()
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await close()
            except TimeoutError:
                logger.warning("%s: not closed within %g s; going on without it", name, _CLOSE_TIMEOUT_S)
            except Exception:
                logger.exception("%s: could not be closed; going on without it", name)
