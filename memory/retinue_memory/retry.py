"""When to try again: backoff, retry policy, circuit breaker, Retry-After.

Hand-written, because tenacity and stamina retry a call that waits in memory and have no circuit breaker: here the number of
tries and the due time are mostly columns of a row, so that a restart goes on where the last process stopped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from time import monotonic, time

_MAX_EXPONENT = 64
_MAX_RETRY_AFTER_S = 86_400.0
_PROBE_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `first_s` after the first failure, `factor` times as long after each further one, at most
    `longest_s`; each shortened by a random part of up to `jitter` of it."""

    first_s: float = 0.5
    factor: float = 2.0
    longest_s: float = 300.0
    jitter: float = 0.5

    def delay_s(self, failures: int) -> float:
        """The seconds to wait if `failures` tries failed before the one that failed now."""
        delay_s: float = min(self.longest_s, self.first_s * self.factor ** min(failures, _MAX_EXPONENT))
        return delay_s * random.uniform(1.0 - self.jitter, 1.0)  # noqa: S311 - jitter, not a secret


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long one try may take (None: the callee decides), how many tries there are (None: no limit), and the delays
    between them."""

    timeout_s: float | None = None
    tries: int | None = None
    backoff: Backoff = field(default_factory=Backoff)

    def retry_in_s(self, failures: int) -> float | None:
        """The seconds to wait if `failures` tries failed before the one that failed now. Returns None if that was the last."""
        if self.tries is not None and failures + 1 >= self.tries:
            return None
        return self.backoff.delay_s(failures)


class CircuitBreaker:
    """Stops calls to what failed `opens_after` times in a row: none for `rest_s` seconds, then one (a probe) every `rest_s`
    seconds until one succeeds. Not thread-safe."""

    def __init__(self, *, opens_after: int, rest_s: float) -> None:
        self._opens_after = opens_after
        self._rest_s = rest_s
        self._open_until: float | None = None
        self._probing = False
        self.failures = 0

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    def acquire(self) -> float:
        """Ask to make a call. Returns 0.0 if it may be made, else the seconds after which to ask again."""
        if self._open_until is None:
            return 0.0
        left_s = self._open_until - monotonic()
        if left_s > 0:
            return min(left_s, _PROBE_WAIT_S) if self._probing else left_s
        self._open_until = monotonic() + self._rest_s
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        self.failures = 0
        self._open_until = None
        self._probing = False

    def failed(self) -> None:
        self.failures += 1
        self._probing = False
        if self.failures >= self._opens_after:
            self._open_until = monotonic() + self._rest_s

    def abandoned(self) -> None:
        """Report a probe without an outcome: the next call may be made at once."""
        self._probing = False
        if self._open_until is not None:
            self._open_until = monotonic()


def retry_after(header: str | None) -> float | None:
    """Parse a Retry-After header: a number of seconds or an HTTP date (RFC 9110, 10.2.3).

    Returns the seconds from now, at most a day, or None if the header is neither.
    """
    try:
        if header is None:
            return None
        if header.strip()[:1].isdigit():
            seconds = float(header)
        else:
            at = parsedate_to_datetime(header)
            seconds = max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
    return min(seconds, _MAX_RETRY_AFTER_S) if isfinite(seconds) else None
