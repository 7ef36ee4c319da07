"""Timestamps of A2A events."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from retinue_memory.clock import now_us


def current_timestamp() -> Timestamp:
    """The current time, in whole microseconds."""
    seconds, micros = divmod(now_us(), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)
