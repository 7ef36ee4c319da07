"""Being called back a moment later, for many at the price of one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class CoalescingTimer:
    """Calls everyone who asked for it after `delay` seconds, with one timer of the event loop at a time.

    A timer of one's own costs more than most of those who ask: they are done, and forgotten, before it would ring.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._asked: dict[Callable[[], None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, call: Callable[[], None]) -> None:
        """Call `call` after the delay, once; who asked before keeps the earlier time."""
        if call in self._asked:
            return
        loop = asyncio.get_running_loop()
        self._asked[call] = loop.time() + self._delay
        if self._timer is None:
            self._timer = loop.call_later(self._delay, self._ring)

    def forget(self, call: Callable[[], None]) -> None:
        self._asked.pop(call, None)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        soon = loop.time() + 0.001  # the clock of a timer is coarse
        due = [call for call, at in self._asked.items() if at <= soon]
        for call in due:
            del self._asked[call]
        if self._asked and self._timer is None:
            self._timer = loop.call_at(next(iter(self._asked.values())), self._ring)
        for call in due:
            call()
