"""Metrics for Prometheus. The values of every label are names of the config, so that their number is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

Outcome = Literal["stored", "retried", "failed"]
"""How an attempt to write ended; after "failed" there is no other."""
_BUCKETS_S = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0


class Metrics:
    """Counters in their own registry, so that several servers in one process do not share them.

    Every memory of the config has its series, with zeros, from the start.
    """

    def __init__(self, memories: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        latency = Histogram(
            "retinue_memory_retrieve_seconds",
            "Time until a memory answered a search, failed, or was given up.",
            ["memory"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        failures = Counter(
            "retinue_memory_failures",
            "Failed operations of a memory: by an error, or unanswered when they were given up.",
            ["memory", "operation", "reason"],
            registry=self.registry,
        )
        writes = Counter(
            "retinue_memory_writes",
            "Attempts to write a turn to a memory: stored, to be retried, or failed for good.",
            ["memory", "outcome"],
            registry=self.registry,
        )
        self._pending = Gauge(
            "retinue_memory_writes_pending",
            "Writes to a memory that are not stored yet.",
            ["memory"],
            registry=self.registry,
        )
        names = list(memories)
        self._latency = {name: latency.labels(name) for name in names}
        self._failures = {
            (name, operation, reason): failures.labels(name, operation, reason)
            for name in names
            for operation in ("retrieve", "update")
            for reason in ("error", "unanswered")
        }
        self._writes = {
            (name, outcome): writes.labels(name, outcome)
            for name in names
            for outcome in ("stored", "retried", "failed")
        }

    def count_pending(self, memory: str, count: Callable[[], int]) -> None:
        """Call `count` at every scrape for the number of a memory's pending writes."""
        self._pending.labels(memory).set_function(count)

    @contextmanager
    def retrieving(self, memory: str) -> Generator[None]:
        """Time a search. An exception counts as its failure; a cancellation, by its deadline or with its turn, as unanswered."""
        started = perf_counter()
        try:
            yield
        except asyncio.CancelledError:
            self._failures[memory, "retrieve", "unanswered"].inc()
            raise
        except Exception:
            self._failures[memory, "retrieve", "error"].inc()
            raise
        finally:
            self._latency[memory].observe(perf_counter() - started)

    def tried(self, memory: str, outcome: Outcome, error: Exception | None = None) -> None:
        """Count an attempt to write, and the reason if it failed."""
        self._writes[memory, outcome].inc()
        if error is not None:
            self._failures[memory, "update", "unanswered" if isinstance(error, TimeoutError) else "error"].inc()

    async def show(self, request: Request) -> Response:
        """Answer GET /metrics in the format that the caller prefers."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"content-type": kind})
