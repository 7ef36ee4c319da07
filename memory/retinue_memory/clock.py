"""The clock: timezone-aware datetimes in Python, whole microseconds since the epoch (UTC) in rows and exports."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def now_us() -> int:
    """The current time in microseconds since the epoch."""
    return time.time_ns() // 1_000


def to_us(moment: datetime) -> int:
    """Convert to microseconds since the epoch. A time without a zone is taken as UTC."""
    return ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def from_us(moment_us: int) -> datetime:
    """The inverse of `to_us`: a datetime in UTC. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=moment_us)
