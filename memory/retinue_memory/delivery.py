"""DeliveryWorker: the loop that delivers what is due, in order, with retries, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .retry import RetryPolicy

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
_SHORTEST_SLEEP_S = 0.02
_CANCEL_TIMEOUT_S = 1.0


class Tried(Protocol):
    """What can be delivered; `tries` says how often it failed before."""

    @property
    def tries(self) -> int: ...


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Tried)
Group = tuple[K, Sequence[T]]
"""The items of one key, in the order in which they are to be delivered."""


class Deliveries(ABC, Generic[K, T]):
    """What a `DeliveryWorker` delivers, and how. All methods are called on the worker's event loop."""

    name: str
    """For log lines."""
    policy: RetryPolicy = RetryPolicy()

    @property
    @abstractmethod
    def at_once(self) -> int:
        """The number of keys that may be delivered at the same time."""

    @property
    def in_batches(self) -> bool:
        """Whether all of what was due together is delivered before the next look, and a key that is alone without a task.

        For deliveries that are cheaper together (they share a commit, a model's batch) and none of which takes long.
        """
        return False

    @abstractmethod
    async def due(self, busy: Collection[K], limit: int) -> tuple[Sequence[Group[K, T]], float | None]:
        """Find what is due: at most `limit` groups, each of a key of its own that is not in `busy` when this returns.

        All of them are started. The second value is in how many seconds to look again (negative: something is due already,
        but cannot start before another delivery ends); None if nothing else is waiting. Raises StoreError.
        """

    @abstractmethod
    async def deliver(self, item: T) -> None:
        """Deliver one item, and record that it was delivered. Whatever it raises is a failed try."""

    @abstractmethod
    async def failed(self, item: T, error: Exception, retry_in_s: float | None) -> None:
        """Log and record a failed try. `retry_in_s` is the policy's delay; None if this was the last try.

        If this raises, the worker logs it and reads what is due again after a pause.
        """


class DeliveryWorker(Generic[K, T]):
    """Delivers what is due, until it is stopped.

    Items of one key are delivered in order: one that fails is recorded, and the rest of its group is left for later. Several
    keys are delivered at the same time, up to `at_once`. The worker sleeps until the next item is due, a delivery ends or
    `wake` is called. A store that fails is read again after a second.
    """

    def __init__(self, deliveries: Deliveries[K, T]) -> None:
        self._deliveries = deliveries
        self._woken = asyncio.Event()
        self._running: dict[K, asyncio.Future[None]] = {}
        self._busy: set[K] = set()
        """The running keys, and those that ended since `due` began to read: what it reads may still show them."""
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> Mapping[K, asyncio.Future[None]]:
        """The keys that are being delivered, with a future that is done when that ends."""
        return self._running

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"{self._deliveries.name}-delivery")

    def wake(self) -> None:
        """Look now for what is due."""
        self._woken.set()

    async def stop(self, timeout_s: float) -> None:
        """Start nothing more, wait for what is running, and cancel what is not done within `timeout_s`."""
        self._stopping = True
        self._woken.set()
        tasks = {*self._running.values(), *([self._task] if self._task is not None else [])}
        if tasks and timeout_s > 0:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_TIMEOUT_S)

    def deliver_now(self, key: K, item: T) -> asyncio.Future[None]:
        """Deliver an item before it is read as due, unless its key is being delivered already.

        The future raises what the delivery raised.
        """
        running = self._running.get(key)
        return running if running is not None else self._start(key, self._deliver_one(item))

    async def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            sleep_s = await self._start_due()
            if self._woken.is_set():
                continue
            # not `wait_for`: before Python 3.12 it may lose a cancellation that comes just as it is woken
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sleep_s):
                    await self._woken.wait()

    async def _start_due(self) -> float | None:
        """Start what is due. Returns the seconds to sleep; None: until the worker is woken."""
        self._busy = set(self._running)
        free = self._deliveries.at_once - len(self._running)
        if free <= 0:
            return None
        try:
            groups, next_s = await self._deliveries.due(self._busy, free)
        except Exception:
            log.exception("%s: what is due cannot be read; trying again in %g s", self._deliveries.name, _PAUSE_S)
            return _PAUSE_S
        if len(groups) == 1 and not self._running and self._deliveries.in_batches:
            await self._deliver_inline(*groups[0])
            return None
        tasks = [self._start(key, self._deliver_in_order(items)) for key, items in groups]
        if tasks and self._deliveries.in_batches:
            await asyncio.wait(tasks)
            return None
        if next_s is None:
            return None
        if next_s <= 0 and self._running:
            return _PAUSE_S
        return max(_SHORTEST_SLEEP_S, next_s)

    def _start(self, key: K, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._running[key] = asyncio.create_task(work)
        self._busy.add(key)
        task.add_done_callback(lambda task: self._ended(key, task))
        return task

    async def _deliver_inline(self, key: K, items: Sequence[T]) -> None:
        done = self._running[key] = asyncio.get_running_loop().create_future()
        self._busy.add(key)
        try:
            await self._deliver_in_order(items)
        finally:
            if not done.done():
                done.set_result(None)
            self._ended(key, done)

    def _ended(self, key: K, done: asyncio.Future[None]) -> None:
        del self._running[key]
        self._woken.set()
        if not done.cancelled():
            done.exception()  # mark it as retrieved: the caller of `deliver_now` may have been cancelled

    async def _deliver_one(self, item: T) -> None:
        if (error := await self._deliver_in_order((item,))) is not None:
            raise error

    async def _deliver_in_order(self, items: Iterable[T]) -> Exception | None:
        """Deliver items until one fails. Returns what it failed with, once that is recorded."""
        for item in items:
            if self._stopping:
                break
            try:
                await self._deliveries.deliver(item)
            except Exception as error:  # noqa: BLE001 - recorded by `failed`, which logs it
                await self._record(item, error)
                return error
        return None

    async def _record(self, item: T, error: Exception) -> None:
        try:
            await self._deliveries.failed(item, error, self._deliveries.policy.retry_in_s(item.tries))
        except Exception:
            log.exception("%s: a failed try cannot be recorded; pausing for %g s", self._deliveries.name, _PAUSE_S)
            await asyncio.sleep(_PAUSE_S)


def group(items: Iterable[T], key: Callable[[T], K], busy: Collection[K], limit: int) -> list[Group[K, T]]:
    """Group items by their key, in order: the first `limit` keys that are not busy."""
    groups: dict[K, list[T]] = {}
    for item in items:
        at = key(item)
        if at in groups:
            groups[at].append(item)
        elif len(groups) < limit and at not in busy:
            groups[at] = [item]
    return list(groups.items())
