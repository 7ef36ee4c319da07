"""Push notifications (spec 1.0, section 4.3): durable, in order for each config, to addresses that may be called."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import httpcore
from a2a.types import StreamResponse, TaskPushNotificationConfig
from a2a.utils.errors import InvalidParamsError
from google.protobuf.json_format import MessageToDict

from retinue_memory.errors import RetinueError
from retinue_server.delivery.url_policy import TIMEOUT, PolicyBackend, Refused, UrlPolicy
from retinue_server.runtime.store.push import PushRows
from retinue_server.runtime.store.rows import now
from retinue_server.runtime.turn import DuePush

from .memory_outbox import backoff

logger = logging.getLogger(__name__)
_TRIES = 10
_AT_ONCE, _AT_ONCE_HOST, _AT_ONCE_EACH = 64, 16, 4
"""Deliveries under way, over all, to one host and to one URL: who is slow holds up nobody else."""
_LOOKED_AT = 256
"""How many of the pushes that are due are looked at together."""
_STUCK_AFTER, _ASIDE_FOR = 0.5, 2.0
"""Where none of these can go and none ended for so many seconds, they are put aside for some, and others are looked at."""
_FIRST_DELAY = 0.5
_MOST_URLS = 10_000
_OPEN_AFTER, _OPEN_FOR = 5, 30.0
"""A URL that failed this often in a row is left alone for this many seconds."""


class Pusher:
    """Delivers the pushes that a store owes. `first_delay` is how many seconds pass before the second try."""

    def __init__(
        self, rows: PushRows, screen: UrlPolicy, *, tries: int = _TRIES, first_delay: float = _FIRST_DELAY
    ) -> None:
        self._rows = rows
        self._screen = screen
        self._tries = tries
        self._first_delay = first_delay
        self._due = asyncio.Event()
        self._under_way: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._to: Counter[str] = Counter()
        self._just_over: set[tuple[str, str]] = set()
        self._ended_at = 0.0
        self._failures: dict[str, tuple[int, float]] = {}
        self._worker: asyncio.Task[None] | None = None
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=_AT_ONCE, keepalive_expiry=30, network_backend=PolicyBackend(screen)
        )

    async def start(self) -> None:
        self._worker = asyncio.create_task(self._deliver_forever())

    async def stop(self) -> None:
        """What is not delivered stays owed."""
        running = [*self._under_way.values(), *([self._worker] if self._worker else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._pool.aclose()

    def wake(self) -> None:
        """Something was committed that is to be pushed."""
        self._due.set()

    async def check(self, config: TaskPushNotificationConfig) -> None:
        """Raise InvalidParamsError for a config whose URL may not be called, or that cannot be sent with it."""
        authentication = config.authentication
        for value in (config.token, authentication.scheme, authentication.credentials):
            if not (value.isascii() and value.isprintable()):
                raise InvalidParamsError("push config: a token and credentials are made of printable ASCII")
        try:
            await self._screen.check(config.url)
        except Refused as error:
            raise InvalidParamsError(str(error)) from error

    async def _deliver_forever(self) -> None:
        while True:
            self._due.clear()
            self._just_over.clear()
            try:
                found = await self._rows.due_pushes(_LOOKED_AT)
                begun = [self._begin(due) for due in found]
                if len(found) == _LOOKED_AT and not any(begun) and time.monotonic() - self._ended_at > _STUCK_AFTER:
                    await self._put_aside(found)
                # what is under way is due as well: its end wakes this loop
                at = now() + 1_000_000 if self._under_way else await self._rows.next_push()
            except RetinueError:
                logger.exception("what is to be pushed could not be read")
                at = now() + 1_000_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(0.05, (at - now()) / 1e6)):
                    await self._due.wait()

    async def _put_aside(self, found: Sequence[DuePush]) -> None:
        """Leave alone for a moment what cannot go: it would hide what is due behind it."""
        at = now() + int(1e6 * _ASIDE_FOR)
        waiting = [due for due in found if (due.config.task_id, due.config.id) not in self._under_way]
        await asyncio.gather(*(self._rows.push_later(due, at) for due in waiting))
        self._due.set()

    def _begin(self, due: DuePush) -> bool:
        """Deliver it, unless its config has one under way, or too many others do."""
        key, url = (due.config.task_id, due.config.id), due.config.url
        host = urlsplit(url).netloc
        if (
            key in self._under_way
            or key in self._just_over
            or len(self._under_way) >= _AT_ONCE
            or self._to[url] >= _AT_ONCE_EACH
            or self._to[host] >= _AT_ONCE_HOST
        ):
            return False
        self._to.update((url, host))
        task = self._under_way[key] = asyncio.create_task(self._deliver(due))
        task.add_done_callback(partial(self._over, key, (url, host)))
        return True

    def _over(self, key: tuple[str, str], to: Sequence[str], task: asyncio.Task[None]) -> None:
        del self._under_way[key]
        self._just_over.add(key)  # what is being read may still show it
        self._ended_at = time.monotonic()
        self._to.subtract(to)
        for name in to:
            if not self._to[name]:
                del self._to[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("push %s of task %s: its end could not be stored", key[1], key[0], exc_info=error)
        self._due.set()

    async def _deliver(self, due: DuePush) -> None:
        url = due.config.url
        _, open_until = self._failures.get(url, (0, 0.0))
        if time.monotonic() < open_until:
            await self._rows.push_later(due, now() + int(1e6 * (open_until - time.monotonic())) + 1)
            return
        problem = await self._post(due)
        if problem is None:
            self._failures.pop(url, None)
            await self._rows.push_done(due)
            return
        failures = self._failures.get(url, (0, 0.0))[0] + 1
        if len(self._failures) >= _MOST_URLS:
            self._failures.clear()
        self._failures[url] = (failures, time.monotonic() + _OPEN_FOR if failures >= _OPEN_AFTER else 0.0)
        last = due.tries + 1 >= self._tries
        log = logger.error if last else logger.warning
        log("push %s of task %s failed: %s", due.config.id, due.config.task_id, problem)
        await self._rows.push_failed(
            due, problem, None if last else now() + int(1e6 * backoff(due.tries, self._first_delay))
        )

    async def _post(self, due: DuePush) -> str | None:
        """Send it; what went wrong, or None."""
        try:
            body = json.dumps(MessageToDict(StreamResponse.FromString(due.payload)), ensure_ascii=False).encode()
            async with asyncio.timeout(TIMEOUT):
                request = self._pool.stream("POST", due.config.url, headers=_headers(due.config), content=body)
                async with request as answer:  # its body is not of interest, and may be endless
                    return None if 200 <= answer.status < 300 else f"HTTP {answer.status}"
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s"
        except (Refused, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            logger.exception("push %s of task %s cannot be sent", due.config.id, due.config.task_id)
            return f"{type(error).__name__}: {error}"


def _headers(config: TaskPushNotificationConfig) -> Sequence[tuple[str, str]]:
    headers = [
        ("Content-Type", "application/a2a+json"),
        ("User-Agent", "retinue"),
        ("Host", urlsplit(config.url).netloc),
    ]
    if config.token:
        headers.append(("X-A2A-Notification-Token", config.token))
    if config.authentication.scheme and config.authentication.credentials:
        headers.append(("Authorization", f"{config.authentication.scheme} {config.authentication.credentials}"))
    return headers
