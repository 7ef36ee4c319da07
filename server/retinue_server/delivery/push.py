"""The delivery of push notifications (spec 1.0, section 4.3): durable, and in order for each config."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from a2a.types import TaskPushNotificationConfig
from a2a.utils.errors import InvalidParamsError

from retinue_memory.clock import now_us
from retinue_memory.delivery import Deliveries, DeliveryWorker, Group
from retinue_memory.retry import Backoff, CircuitBreaker, RetryPolicy
from retinue_server.runtime.store.push import PushRows
from retinue_server.runtime.turn import DuePush

from .push_sender import PushFailed, PushSender
from .url_policy import Refused, UrlPolicy

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""A task's id and a config's id."""

_TRIES = 10
_FIRST_DELAY_S = 0.5
_MAX_RUNNING, _MAX_RUNNING_PER_HOST, _MAX_RUNNING_PER_URL = 64, 16, 4
_ROWS_AT_ONCE = 256
_STUCK_AFTER_S, _DEFER_S, _REREAD_S = 0.5, 2.0, 0.01
_OPENS_AFTER, _REST_S = 5, 30.0
_MAX_BREAKERS = 10_000


class Pusher(Deliveries[Key, DuePush]):
    """Delivers the pushes that a store has pending. A slow or failing receiver delays nobody else: its host and its URL
    have a few deliveries running at most, and a circuit breaker."""

    name = "push"

    def __init__(
        self, rows: PushRows, url_policy: UrlPolicy, *, tries: int = _TRIES, first_delay_s: float = _FIRST_DELAY_S
    ) -> None:
        self.policy = RetryPolicy(tries=tries, backoff=Backoff(first_delay_s))
        self._rows = rows
        self._url_policy = url_policy
        self._sender = PushSender(url_policy, max_connections=_MAX_RUNNING)
        self._running_to: Counter[str] = Counter()
        """The number of running deliveries, by URL and by host."""
        self._ended_at = 0.0
        self._breakers: dict[str, CircuitBreaker] = {}
        """By URL, for those whose last delivery failed."""
        self._worker = DeliveryWorker(self)

    async def start(self) -> None:
        self._worker.start()

    async def stop(self) -> None:
        """Cancel what is running; what is not delivered stays pending."""
        await self._worker.stop(timeout_s=0.0)
        await self._sender.aclose()

    def wake(self) -> None:
        """Deliver pushes that were just committed."""
        self._worker.wake()

    async def check(self, config: TaskPushNotificationConfig) -> None:
        """Raises InvalidParamsError if the config's URL may not be called, or if its values fit in no HTTP header."""
        authentication = config.authentication
        for value in (config.token, authentication.scheme, authentication.credentials):
            if not (value.isascii() and value.isprintable()):
                raise InvalidParamsError("push config: expected printable ASCII in the token and the credentials")
        try:
            await self._url_policy.check(config.url)
        except Refused as error:
            raise InvalidParamsError(str(error)) from error

    # -- for the worker -----------------------------------------------------------------------------------------------

    @property
    def at_once(self) -> int:
        return _MAX_RUNNING

    async def due(self, busy: Collection[Key], limit: int) -> tuple[Sequence[Group[Key, DuePush]], float | None]:
        rows = await self._rows.due_pushes(_ROWS_AT_ONCE)
        groups: list[Group[Key, DuePush]] = []
        for push in rows:
            if len(groups) < limit and _key(push) not in busy and self._acquire(push):
                groups.append((_key(push), [push]))
        if groups or len(rows) < _ROWS_AT_ONCE or time.monotonic() - self._ended_at < _STUCK_AFTER_S:
            at = now_us() if rows else await self._rows.next_push()
            return groups, None if at is None else (at - now_us()) / 1e6
        # none of these can start, and they hide what is due behind them
        later = now_us() + int(1e6 * _DEFER_S)
        await asyncio.gather(*(self._rows.push_later(push, later) for push in rows if _key(push) not in busy))
        return (), _REREAD_S

    async def deliver(self, item: DuePush) -> None:
        url = item.config.url
        try:
            breaker = self._breakers.get(url)
            if breaker is not None and (rest_s := breaker.acquire()) > 0:
                await self._rows.push_later(item, now_us() + int(1e6 * rest_s) + 1)
                return
            await self._sender.send(item)
            self._breakers.pop(url, None)
            await self._rows.push_done(item)
        finally:
            self._release(item)

    async def failed(self, item: DuePush, error: Exception, retry_in_s: float | None) -> None:
        if not isinstance(error, PushFailed):
            raise error
        if len(self._breakers) >= _MAX_BREAKERS:
            self._breakers.clear()
        breaker = self._breakers.setdefault(item.config.url, CircuitBreaker(opens_after=_OPENS_AFTER, rest_s=_REST_S))
        breaker.failed()
        level = logging.ERROR if retry_in_s is None else logging.WARNING
        log.log(level, "push %s of task %s failed: %s", item.config.id, item.config.task_id, error)
        retry_at = None if retry_in_s is None else now_us() + int(1e6 * retry_in_s)
        await self._rows.push_failed(item, str(error), retry_at)

    def _acquire(self, push: DuePush) -> bool:
        """Count one more delivery to a URL and its host, if neither has too many."""
        url, host = _destinations(push)
        if self._running_to[url] >= _MAX_RUNNING_PER_URL or self._running_to[host] >= _MAX_RUNNING_PER_HOST:
            return False
        self._running_to.update((url, host))
        return True

    def _release(self, push: DuePush) -> None:
        self._ended_at = time.monotonic()
        for destination in _destinations(push):
            self._running_to[destination] -= 1
            if not self._running_to[destination]:
                del self._running_to[destination]


def _key(push: DuePush) -> Key:
    return push.config.task_id, push.config.id


def _destinations(push: DuePush) -> tuple[str, str]:
    url = push.config.url
    return url, urlsplit(url).netloc
