"""How a service is asked over a network: again where that may help, and not at all for a while where it does not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TypeVar

from .service import ServiceError

T = TypeVar("T")

_FIRST_DELAY = 0.25
"""Seconds before a second try; doubled before each later one, a random part of it less."""


class Caller:
    """Repeats what failed for the moment, at most `tries` times in all, and opens a circuit after `opens_after` failures in
    a row: until `rest` seconds have passed nothing is asked, then one call tries whether it works again.

    A wait that the service asks for (Retry-After) is kept to where it is not above `longest` seconds; where it is, the
    error comes at once and says it. One event loop only.
    """

    def __init__(
        self, name: str, *, tries: int = 3, longest: float = 10.0, opens_after: int = 5, rest: float = 10.0
    ) -> None:
        self._name = name
        self._tries = tries
        self._longest = longest
        self._opens_after = opens_after
        self._rest = rest
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False
        self._last: ServiceError | None = None

    async def __call__(self, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        """What `work` returns. It raises ServiceError; `again`: it may be repeated even where it may have been applied."""
        for number in range(1, self._tries + 1):
            try:
                return await self._ask(work)
            except ServiceError as error:
                delay = error.after or _FIRST_DELAY * 2 ** (number - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                refused = self._open_until is not None
                if refused or not error.retry or (error.applied and not again) or delay > self._longest:
                    raise
                if number == self._tries:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("the last try returns or raises")

    async def _ask(self, work: Callable[[], Awaitable[T]]) -> T:
        self._refuse_while_open()
        probe = self._open_until is not None
        self._probing = self._probing or probe
        try:
            done = await work()
        except ServiceError as error:
            if error.retry and (
                error.applied or error.after is None
            ):  # a refusal, or "not so fast", is an answer of a service that works
                self._failed(error)
            else:
                self._works()
            raise
        else:
            self._works()
            return done
        finally:
            if probe:
                self._probing = False

    def _refuse_while_open(self) -> None:
        if self._open_until is None:
            return
        left = self._open_until - monotonic()
        if left > 0 or self._probing:
            left = max(left, 0.5)
            until = datetime.now(UTC) + timedelta(seconds=left)
            problem = (
                f"{self._name} failed {self._failures} times in a row and is not asked again before {until:%H:%M:%S} UTC; "
                f"the last time: {self._last}"
            )
            raise ServiceError(problem, after=left)

    def _failed(self, error: ServiceError) -> None:
        self._failures += 1
        self._last = error
        if self._failures >= self._opens_after:
            self._open_until = monotonic() + self._rest

    def _works(self) -> None:
        self._failures = 0
        self._open_until = self._last = None


def retry_after(header: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for: a number or an HTTP date (RFC 9110, 10.2.3); None: neither."""
    try:
        if header is None:
            return None
        if header.strip()[:1].isdigit():
            return float(header)
        at = parsedate_to_datetime(header)
        return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
