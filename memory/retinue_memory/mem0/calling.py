"""Calls of a service over the network: repeated if that may help, and stopped for a while if it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from retinue_memory.clock import now
from retinue_memory.retry import Backoff, CircuitBreaker, RetryPolicy

from .service import ServiceError

T = TypeVar("T")

_BACKOFF = Backoff(first_s=0.25)


class Caller:
    """Tries a call at most `tries` times, and opens a circuit after `opens_after` failures in a row, for `rest_s` seconds.

    A Retry-After of the service is waited for if it is at most `longest_wait_s`; otherwise the error is raised at once and
    says how long to wait. For one event loop.
    """

    def __init__(
        self, name: str, *, tries: int = 3, longest_wait_s: float = 10.0, opens_after: int = 5, rest_s: float = 10.0
    ) -> None:
        self._name = name
        self._policy = RetryPolicy(tries=tries, backoff=_BACKOFF)
        self._longest_wait_s = longest_wait_s
        self._breaker = CircuitBreaker(opens_after=opens_after, rest_s=rest_s)
        self._last: ServiceError | None = None

    async def __call__(self, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        """Returns what `work` returns. Raises ServiceError. `again`: repeat it even if it may have been applied."""
        failures = 0
        while True:
            try:
                return await self._try(work)
            except ServiceError as error:
                delay_s = self._policy.retry_in_s(failures)
                hopeless = self._breaker.is_open or not error.retry or (error.applied and not again)
                if delay_s is None or hopeless or (error.after or 0.0) > self._longest_wait_s:
                    raise
                failures += 1
                delay_s = error.after or delay_s
            await asyncio.sleep(delay_s)

    async def _try(self, work: Callable[[], Awaitable[T]]) -> T:
        if (wait_s := self._breaker.acquire()) > 0:
            raise self._open(wait_s)
        probes = self._breaker.is_open
        try:
            done = await work()
        except ServiceError as error:
            # a refusal, or a request to wait, is an answer of a service that works
            if error.retry and (error.applied or error.after is None):
                self._last = error
                self._breaker.failed()
            else:
                self._breaker.succeeded()
            raise
        except BaseException:
            if probes:
                self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return done

    def _open(self, wait_s: float) -> ServiceError:
        until = now() + timedelta(seconds=wait_s)
        problem = (
            f"{self._name} failed {self._breaker.failures} times in a row and is not asked again before "
            f"{until:%H:%M:%S} UTC; the last time: {self._last}"
        )
        return ServiceError(problem, after=wait_s)
