"""When to try again."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from retinue_memory.retry import Backoff, CircuitBreaker, RetryPolicy, retry_after


def test_a_delay_grows_to_its_longest_and_is_shortened_at_random() -> None:
    """By its jitter at most, however many failures there were."""
    backoff = Backoff(first_s=0.5, factor=2.0, longest_s=300.0, jitter=0.5)
    for failures, longest_s in ((0, 0.5), (1, 1.0), (4, 8.0), (20, 300.0), (100_000, 300.0)):
        delays = [backoff.delay_s(failures) for _ in range(50)]
        assert all(longest_s / 2 <= delay <= longest_s for delay in delays)
        assert len(set(delays)) > 1
    assert Backoff(first_s=1.0, jitter=0.0).delay_s(3) == 8.0


def test_a_policy_counts_tries() -> None:
    """The last one has no delay after it; without a limit there is always one."""
    policy = RetryPolicy(tries=3)
    assert policy.retry_in_s(0) is not None
    assert policy.retry_in_s(1) is not None
    assert policy.retry_in_s(2) is None
    assert RetryPolicy().retry_in_s(1_000_000) is not None


def test_a_circuit_opens_rests_and_probes() -> None:
    """Nothing is called while it rests; then one call, whose outcome closes it, keeps it open, or is not known."""
    breaker = CircuitBreaker(opens_after=2, rest_s=0.05)
    breaker.failed()
    assert breaker.acquire() == 0.0
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    for ending in (breaker.failed, breaker.abandoned):
        while (wait_s := breaker.acquire()) > 0.0:
            assert wait_s <= 0.05
            time.sleep(wait_s)  # what it says to do
        assert breaker.acquire() > 0.0
        ending()
    assert breaker.acquire() == 0.0  # the last probe was abandoned
    breaker.succeeded()
    assert (breaker.is_open, breaker.failures, breaker.acquire()) == (False, 0, 0.0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("0", 0.0),
        ("2.5", 2.5),
        ("3600", 3600.0),
        ("9" * 30, 86_400.0),
        ("9" * 400, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """A day at most; whatever else stands there is none."""
    assert retry_after(header) == seconds


def test_a_retry_after_date_is_counted_from_now() -> None:
    """A Retry-After header that holds a date gives the seconds until then."""
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < (retry_after(at) or 0.0) <= 60
