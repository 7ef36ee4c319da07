"""Coalesce many delayed callbacks onto one timer of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_CLOCK_RESOLUTION_S = 0.001


class CoalescingTimer:
    """Call callbacks `delay_s` after they are asked for, with one event-loop timer at a time.

    Most callbacks are forgotten before they are due, so a timer for each would cost more than what they do.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._due_at: dict[Callable[[], None], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, call: Callable[[], None]) -> None:
        """Call `call` once after the delay. If it is pending already, its earlier time counts."""
        if call in self._due_at:
            return
        loop = asyncio.get_running_loop()
        self._due_at[call] = loop.time() + self._delay_s
        if self._timer is None:
            self._timer = loop.call_later(self._delay_s, self._ring)

    def forget(self, call: Callable[[], None]) -> None:
        """Drop a pending callback. Does nothing if it is not pending."""
        self._due_at.pop(call, None)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        soon = loop.time() + _CLOCK_RESOLUTION_S
        due = [call for call, at in self._due_at.items() if at <= soon]
        for call in due:
            del self._due_at[call]
        if self._due_at:
            self._timer = loop.call_at(next(iter(self._due_at.values())), self._ring)
        for call in due:
            call()
