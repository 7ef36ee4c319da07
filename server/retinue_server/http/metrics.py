"""/metrics: what the server counts, as text for Prometheus. Every label's values are names of the configuration."""

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
"""What became of a try to write: written; to be tried again; given up."""
_SECONDS = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0
"""The buckets of the time that a memory takes to answer."""


class Metrics:
    """Counters in a registry of their own, so that several servers in one process do not share them.

    Each memory of the configuration is there from the start, with zeros.
    """

    def __init__(self, memories: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        latency = Histogram(
            "retinue_memory_retrieve_seconds",
            "How long a memory took to be searched, until it answered, failed, or was given up.",
            ["memory"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        failures = Counter(
            "retinue_memory_failures",
            "What a memory could not do: by an error, or unanswered when it was given up.",
            ["memory", "operation", "reason"],
            registry=self.registry,
        )
        writes = Counter(
            "retinue_memory_writes",
            "Tries to write a turn to a memory: stored, to be retried, or failed for good.",
            ["memory", "outcome"],
            registry=self.registry,
        )
        self._pending = Gauge(
            "retinue_memory_writes_pending",
            "Writes that turns owe a memory and that have not arrived.",
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
        """Ask `count` at every look how many writes a memory is owed."""
        self._pending.labels(memory).set_function(count)

    @contextmanager
    def retrieving(self, memory: str) -> Generator[None]:
        """Time a search; one that raises has failed, one that is cancelled was given up, by its deadline or with its turn."""
        began = perf_counter()
        try:
            yield
        except asyncio.CancelledError:
            self._failures[memory, "retrieve", "unanswered"].inc()
            raise
        except Exception:
            self._failures[memory, "retrieve", "error"].inc()
            raise
        finally:
            self._latency[memory].observe(perf_counter() - began)

    def tried(self, memory: str, outcome: Outcome, error: Exception | None = None) -> None:
        """Count a try to write, and why it failed."""
        self._writes[memory, outcome].inc()
        if error is not None:
            self._failures[memory, "update", "unanswered" if isinstance(error, TimeoutError) else "error"].inc()

    async def show(self, request: Request) -> Response:
        """GET /metrics, in the format that the caller prefers."""
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"content-type": kind})
