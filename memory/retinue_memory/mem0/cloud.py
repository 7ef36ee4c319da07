"""Mem0Memory: mem0's cloud, through its own client."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

from retinue_memory.background import call_in_thread
from retinue_memory.chat import EmbedderSource
from retinue_memory.database.base import Database
from retinue_memory.errors import ConfigError, MemoryBackendError
from retinue_memory.retry import retry_after

from .calling import Caller
from .importing import check_installed, import_mem0
from .memory import Mem0
from .service import (
    PAGE,
    Added,
    Change,
    Entity,
    Item,
    Progress,
    Refused,
    Service,
    ServiceError,
    moment,
)

T = TypeVar("T")

HOST = "https://api.mem0.ai"
_MAX_PROBLEM_CHARS = 300
_PROGRESS: Mapping[str, Progress] = {"SUCCEEDED": "done", "COMPLETED": "done", "FAILED": "failed"}


class Mem0Memory(Mem0):
    """A memory in mem0's cloud. `Mem0Memory()` takes the key from MEM0_API_KEY.

    One request may take `timeout` seconds. Temporary failures are retried, after a Retry-After of at most 10 s; after 5
    failures in a row nothing is asked for 10 s. `grace` is as in `Service`, the rest as in `Mem0`. Nothing is connected, and
    mem0 not imported, before the first use; it never phones home. Raises ConfigError if there is no key, or no mem0.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        host: str = HOST,
        timeout: float = 10.0,
        infer: bool = True,
        space: str = "default",
        name: str = "mem0",
        database: Database | str | None = None,
        patience: float = 2.0,
        grace: float = 30.0,
    ) -> None:
        key = api_key or os.environ.get("MEM0_API_KEY")
        if not key:
            raise ConfigError("mem0's cloud needs a key: set MEM0_API_KEY, or give api_key", key="api_key")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("expected a key of mem0, found one that holds what no HTTP header can", key="api_key")
        if urlsplit(host).scheme not in ("http", "https") or not urlsplit(host).hostname:
            raise ConfigError(f"expected an address such as {HOST}", key="host", value=host)
        check_installed("mem0")
        service = CloudService(key, host.rstrip("/"), timeout, grace)
        super().__init__(service, space=space, name=name, database=database, infer=infer, patience=patience)

    @classmethod
    def from_config(
        cls,
        entry: Mapping[str, Any],
        *,
        name: str,
        database: Database | None,
        embedder: EmbedderSource,
    ) -> Self:
        """Create the memory of a config entry with the keys of `CloudSettings`. Raises ConfigError."""
        from retinue_memory.settings import check

        from .settings import CloudSettings

        return cls(**check(CloudSettings, entry).arguments(database), space=name, name=name)


class CloudService(Service):
    """Calls mem0's cloud. Nothing that it raises holds the key."""

    name = "mem0"

    def __init__(self, key: str, host: str, timeout: float, grace: float) -> None:
        self.grace = grace
        self._key = key
        self._host = host
        self._timeout = timeout
        self._call = Caller(f"mem0 at {host}")
        self._client: Any = None
        self._constructing: Future[Any] | None = None
        self._http: Any = None

    async def add(
        self,
        messages: Sequence[Mapping[str, str]],
        entity: Entity,
        *,
        metadata: Mapping[str, Any],
        infer: bool,
        at: datetime,
    ) -> Added:
        said = [dict(message) for message in messages]
        when = int(at.timestamp())

        async def add(client: Any) -> Any:
            return await client.add(said, **entity.filter, metadata=dict(metadata), infer=infer, timestamp=when)

        answer = await self._ask("taking in what was said", add, again=False)
        event = answer.get("event_id") if isinstance(answer, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return Added(event if isinstance(event, str) and event else None)

    async def search(self, query: str, entity: Entity, *, top_k: int) -> list[Item]:
        return _items(
            await self._ask("search", lambda client: client.search(query, filters=entity.filter, top_k=top_k))
        )

    async def page(self, entity: Entity, number: int) -> list[Item]:
        def page(client: Any) -> Any:
            return client.get_all(filters=entity.filter, page=number, page_size=PAGE)

        return _items(await self._ask("listing", page, missing={"results": []} if number > 1 else ...))

    async def get(self, id: str) -> Item | None:
        found = await self._ask("reading a memory", lambda client: client.get(id), missing=None)
        return Item.of(found) if found is not None else None

    async def change(self, id: str, *, text: str, metadata: Mapping[str, Any]) -> None:
        await self._ask("changing a memory", lambda client: client.update(id, text=text, metadata=dict(metadata)))

    async def delete(self, id: str) -> None:
        await self._ask("deleting a memory", lambda client: client.delete(id), missing=None)

    async def delete_all(self, entity: Entity) -> None:
        await self._ask("deleting", lambda client: client.delete_all(**entity.filter), missing=None)

    async def history(self, id: str) -> list[Change]:
        steps = _results(await self._ask("reading a history", lambda client: client.history(id), missing=[]))
        changes = [Change(step.get("new_memory"), moment(step.get("created_at"))) for step in steps]
        return sorted(changes, key=lambda change: change.at)

    async def progress(self, event: str) -> Progress:
        async def ask(client: Any) -> Any:
            response = await client.async_client.get(f"/v1/event/{quote(event, safe='')}/")
            response.raise_for_status()
            return response.json()

        answer: Any = await self._ask("asking about an event", ask)
        return _PROGRESS.get(str(answer.get("status")).upper(), "pending")

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def connect(self) -> None:
        await self._call(self._connected, again=True)

    # -- over HTTP ----------------------------------------------------------------------------------------------------

    async def _ask(
        self, doing: str, call: Callable[[Any], Awaitable[Any]], *, again: bool = True, missing: Any = ...
    ) -> Any:
        """Returns the JSON of the answer, or `missing`, if given, for a 404. `again`: repeat it although it may be applied."""

        async def ask() -> Any:
            client = await self._connected()
            try:
                async with asyncio.timeout(self._timeout):
                    return await call(client)
            except TimeoutError:
                problem = f"{self._host} did not answer {doing} within {self._timeout:g} s"
                raise ServiceError(problem, applied=True) from None
            except Exception as error:  # noqa: BLE001 - translated: mem0 raises its own, httpx' and plain ones
                if missing is not ... and _status(error) == 404:
                    return missing
                raise self._translated(doing, error) from None

        return await self._call(ask, again=again)

    async def _connected(self) -> Any:
        """Returns mem0's client. Its constructor blocks on a request without a timeout, so it runs in a thread, which the next
        call waits for if this one times out."""
        if self._client is not None:
            return self._client
        if self._constructing is None:
            self._constructing = self._construct()
        try:
            async with asyncio.timeout(self._timeout):
                self._client = await asyncio.shield(asyncio.wrap_future(self._constructing))
        except TimeoutError:
            problem = (
                f"{self._host} did not answer mem0's first call within {self._timeout:g} s, and is still waited for"
            )
            raise ServiceError(problem, retry=False) from None
        except MemoryBackendError as error:  # mem0 cannot be imported
            self._constructing = None
            raise ServiceError(str(error)) from error
        except Exception as error:  # noqa: BLE001 - translated
            self._constructing = None
            raise self._translated("mem0's first call", error, read_only=True) from None
        return self._client

    def _construct(self) -> Future[Any]:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(timeout=self._timeout)

        def construct() -> Any:
            mem0 = import_mem0()
            # what it logs, it raises; we log that
            logging.getLogger("mem0.client.utils").setLevel(logging.CRITICAL)
            return mem0.AsyncMemoryClient(api_key=self._key, host=self._host, client=self._http)

        return call_in_thread(construct, name="mem0-connecting")

    def _translated(self, doing: str, error: Exception, *, read_only: bool = False) -> ServiceError:
        """Translate an error of mem0 or httpx to one that says what to do, without the key."""
        at = f"{self._host}, {doing}"
        response = _response(error)
        if response is None:
            problem = f"{at}: {_name(error)}: is the host right, and reachable?"
            return ServiceError(problem, applied=not read_only and not _unreached(error))
        status, detail = response.status_code, self._detail(error)
        if status in (401, 403):
            return ServiceError(f"{at}: the key was refused ({status}): check MEM0_API_KEY or api_key", retry=False)
        if status == 429:
            after = retry_after(response.headers.get("Retry-After"))
            problem = f"{at}: too many requests (429){f', again in {after:g} s' if after is not None else ''}"
            return ServiceError(problem, after=after if after is not None else 1.0)
        if status >= 500 or status == 408:
            problem = f"{at}: mem0 itself failed ({status}): it is tried again"
            return ServiceError(problem, applied=not read_only, after=retry_after(response.headers.get("Retry-After")))
        if status == 404:
            return ServiceError(f"{at}: not found (404): {detail}", retry=False)
        return Refused(f"{at}: refused ({status}): {detail}")

    def _detail(self, error: Exception) -> str:
        return str(error).replace(self._key, "***")[:_MAX_PROBLEM_CHARS]


def _items(answer: Any) -> list[Item]:
    return [Item.of(value) for value in _results(answer)]


def _results(answer: Any) -> list[Any]:
    """Unwrap a list, or the list that an object has under "results"."""
    found: Any = cast("Mapping[str, Any]", answer).get("results") if isinstance(answer, Mapping) else answer
    return [*found] if isinstance(found, list) else []


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and its causes: mem0 wraps what its HTTP libraries raise."""
    found: list[BaseException] = []
    while error is not None and len(found) < 10:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _response(error: BaseException) -> Any:
    """Returns the HTTP response of an error, or None if there was none."""
    for one in _chain(error):
        response: Any = getattr(one, "response", None)
        if getattr(response, "status_code", None) is not None:
            return response
    return None


def _status(error: BaseException) -> int | None:
    response = _response(error)
    return None if response is None else response.status_code


def _unreached(error: BaseException) -> bool:
    """Whether the request certainly did not reach the server."""
    import httpx

    never = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
    return any(isinstance(one, never) for one in _chain(error))


def _name(error: BaseException) -> str:
    """The innermost error's name; its text may hold what was sent."""
    return type(_chain(error)[-1]).__name__
