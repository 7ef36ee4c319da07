"""One push notification over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from urllib.parse import urlsplit

import httpcore
from a2a.types import StreamResponse, TaskPushNotificationConfig
from google.protobuf.json_format import MessageToDict

from retinue_server.runtime.turn import DuePush

from .url_policy import TIMEOUT_S, PolicyBackend, Refused, UrlPolicy

log = logging.getLogger(__name__)

_KEEPALIVE_S = 30


class PushFailed(Exception):
    """The receiver did not take a push; the message says why."""


class PushSender:
    """Posts pushes (spec 1.0, section 4.3) to URLs that the policy allows, over connections that are kept."""

    def __init__(self, policy: UrlPolicy, *, max_connections: int) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=max_connections, keepalive_expiry=_KEEPALIVE_S, network_backend=PolicyBackend(policy)
        )

    async def send(self, push: DuePush) -> None:
        """Post one push, and ignore the body of the answer, which may be endless. Raises PushFailed."""
        try:
            body = json.dumps(MessageToDict(StreamResponse.FromString(push.payload)), ensure_ascii=False).encode()
            async with asyncio.timeout(TIMEOUT_S):
                request = self._pool.stream("POST", push.config.url, headers=_headers(push.config), content=body)
                async with request as answer:
                    status: int = answer.status
        except TimeoutError:
            raise PushFailed(f"no answer within {TIMEOUT_S:g} s") from None
        except (Refused, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise PushFailed(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            log.exception("push %s of task %s cannot be sent", push.config.id, push.config.task_id)
            raise PushFailed(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise PushFailed(f"HTTP {status}")

    async def aclose(self) -> None:
        await self._pool.aclose()


def _headers(config: TaskPushNotificationConfig) -> list[tuple[str, str]]:
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
