"""Mem0Server: mem0's self-hosted REST server over HTTP, without mem0 on this side.

The shapes are those of `server/main.py` in mem0's repository (2.x): what is added is searchable when it answers, entity ids
are in `filters` for a search and in the query string elsewhere, and one listing has at most 1,000 memories.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote, urlsplit

from retinue_memory.chat import EmbedderSource
from retinue_memory.database.base import Database
from retinue_memory.errors import ConfigError
from retinue_memory.retry import retry_after

from .calling import Caller
from .memory import Mem0
from .service import (
    PAGE,
    TURN,
    Added,
    Change,
    Entity,
    Item,
    Refused,
    Service,
    ServiceError,
    TooMany,
    history_of,
)

if TYPE_CHECKING:
    import httpx

LISTED = 1000
"""The most memories that the server lists; it has no pages."""
_MAX_QUERY_CHARS = 1000
_ADVICE = {401: "set api_key to a key of that server", 403: "use a key that may do this"}
_SLOW = {502: "its model or its vector store failed", 503: "it is not ready", 504: "it did not answer its proxy"}


class Mem0Server(Mem0):
    """A memory on a mem0 server at `url`, for example "http://127.0.0.1:8888".

    `api_key` is sent as X-API-Key; None if the server needs none. A call may take `timeout` seconds, one in which the server's
    model extracts facts `add_timeout`. A call that ended without an answer is looked for during `grace` seconds before it is
    repeated. The rest is as in `Mem0`.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 10.0,
        add_timeout: float = 60.0,
        grace: float = 30.0,
        infer: bool = True,
        space: str = "default",
        name: str = "mem0-server",
        database: Database | str | None = None,
        patience: float = 2.0,
    ) -> None:
        service = ServerService(url, api_key, timeout=timeout, add_timeout=add_timeout, grace=grace)
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
        """Create the memory of a config entry with the keys of `ServerSettings`. Raises ConfigError."""
        from retinue_memory.settings import check

        from .settings import ServerSettings

        return cls(**check(ServerSettings, entry).arguments(database), space=name, name=name)


class ServerService(Service):
    """Calls a mem0 server. Nothing that is raised or logged holds the key, or the password that may be part of the address."""

    name = "mem0-server"
    elsewhere = "the server's history and last messages, which no call of it deletes; its backups and logs"
    knows_sessions = True

    def __init__(self, url: str, api_key: str | None, *, timeout: float, add_timeout: float, grace: float) -> None:
        self._at, self._login = _address(url)
        self.grace = grace
        self._headers = {} if api_key is None else {"X-API-Key": _key(api_key)}
        self._timeout = timeout
        self._add_timeout = add_timeout
        self._call = Caller(f"mem0 at {self._at}", longest_wait_s=timeout)
        self._http: httpx.AsyncClient | None = None

    async def add(
        self,
        messages: Sequence[Mapping[str, str]],
        entity: Entity,
        *,
        metadata: Mapping[str, Any],
        infer: bool,
        at: datetime,
    ) -> Added:
        body = {
            "messages": [dict(message) for message in messages],
            "metadata": {**metadata, "created_at": at.isoformat()},
            "infer": infer,
            **entity.filter,
        }
        await self._ask("POST", "/memories", json=body, again=False, seconds=self._add_timeout)
        return Added()

    async def search(self, query: str, entity: Entity, *, top_k: int) -> list[Item]:
        body = {"query": query, "filters": entity.filter, "top_k": top_k, "threshold": 0.0}
        return _items(await self._ask("POST", "/search", json=body))[:top_k]

    async def page(self, entity: Entity, number: int) -> list[Item]:
        if number * PAGE > LISTED:
            raise TooMany(f"{self._at} lists no more than {LISTED} memories of one user", LISTED)
        return (await self._listed(entity, number * PAGE))[(number - 1) * PAGE :]

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item] | None:
        """Search for the turn's id and words if the server has more memories than it lists."""
        listed = await self._listed(entity, LISTED)
        if len(listed) < LISTED:
            return listed
        body = {"query": said[:_MAX_QUERY_CHARS] or turn, "filters": {**entity.filter, TURN: turn}, "top_k": PAGE}
        return _items(await self._ask("POST", "/search", json={**body, "threshold": 0.0}))

    async def get(self, id: str) -> Item | None:
        if not _is_id(id):
            return None
        found = await self._ask("GET", _path(id), missing=None)
        return None if found is None else Item.of(found)

    async def change(self, id: str, *, text: str, metadata: Mapping[str, Any]) -> None:
        await self._ask("PUT", _path(id), json={"text": text, "metadata": dict(metadata)})

    async def delete(self, id: str) -> None:
        if _is_id(id):
            await self._ask("DELETE", _path(id), missing=None)

    async def delete_all(self, entity: Entity) -> None:
        """Delete in one call if the key may (mem0 wants an administrator's), else one by one; a session's always one by one,
        since one call would also delete a user's memories of that session."""
        if entity.field == "user_id":
            try:
                await self._ask("DELETE", "/memories", params=entity.filter)
                return
            except Answered as answer:
                if answer.status != 403:
                    raise
        gone = set[str]()
        while own := {item.id for item in await self._listed(entity, LISTED) if item.belongs_to(entity)} - gone:
            for id in own:
                await self.delete(id)
            gone |= own

    async def history(self, id: str) -> list[Change]:
        if not _is_id(id):
            return []
        rows: Any = await self._ask("GET", f"{_path(id)}/history", missing=[])
        return history_of(rows)

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # -- over HTTP ----------------------------------------------------------------------------------------------------

    async def _listed(self, entity: Entity, most: int) -> list[Item]:
        params = {**entity.filter, "top_k": str(most), "show_expired": "true"}
        return _items(await self._ask("GET", "/memories", params=params))

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        again: bool = True,
        missing: Any = ...,
        seconds: float | None = None,
    ) -> Any:
        """Returns the JSON of the answer, or `missing`, if given, for a 404. `again`: repeat it although it may be applied."""

        async def ask() -> Any:
            return await self._ask_once(method, path, json, params, seconds or self._timeout)

        try:
            return await self._call(ask, again=again)
        except Answered as answer:
            if answer.status == 404 and missing is not ...:
                return missing
            raise

    async def _ask_once(
        self, method: str, path: str, json: Any, params: Mapping[str, str] | None, seconds: float
    ) -> Any:
        import httpx

        if self._http is None:
            self._http = httpx.AsyncClient(base_url=self._at, headers=self._headers, auth=self._login)
        doing = f"{method} {path.split('/')[1]} at {self._at}"
        try:
            async with asyncio.timeout(seconds):
                timeout = httpx.Timeout(seconds, connect=min(seconds, self._timeout))
                response = await self._http.request(method, path, json=json, params=params, timeout=timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            problem = f"{doing}: not reached ({type(error).__name__}): is the mem0 server running, and its url right?"
            raise ServiceError(problem) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ServiceError(f"{doing}: no answer within {seconds:g} s", applied=True) from None
        except httpx.HTTPError as error:
            raise ServiceError(f"{doing}: the connection broke ({type(error).__name__})", applied=True) from None
        if response.is_success:
            try:
                return response.json()
            except ValueError:
                raise ServiceError(f"{doing}: the answer is no JSON: is it a mem0 server?", applied=True) from None
        raise _refusal(doing, response)


class Answered(ServiceError):
    """The server answered with an error; `status` is the HTTP status."""

    status = 0


def _refusal(doing: str, response: httpx.Response) -> ServiceError:
    status, said = response.status_code, _detail(response)
    after = retry_after(response.headers.get("Retry-After"))
    if status in (400, 413, 422):
        return Refused(f"{doing}: not taken ({status}{said})")
    if status == 429:
        error = Answered(f"{doing}: too many requests (429{said})", after=after)
    elif status >= 500:
        why = _SLOW.get(status, "it failed")
        error = Answered(f"{doing}: {why} ({status}{said}): see the server's log", applied=after is None, after=after)
    else:
        advice = _ADVICE.get(status, "is it a mem0 server of version 2, and its url right?")
        error = Answered(f"{doing}: refused ({status}{said}): {advice}", retry=False)
    error.status = status
    return error


def _detail(response: httpx.Response) -> str:
    """The server's explanation, shortened. A validation error is left out, since it repeats what was sent."""
    try:
        detail: Any = response.json().get("detail")
    except (ValueError, AttributeError):
        return ""
    return f", {detail[:120]}" if isinstance(detail, str) else ""


def _items(answer: Any) -> list[Item]:
    rows: Any = answer.get("results") if isinstance(answer, Mapping) else answer  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(rows, list):
        raise ServiceError("mem0's answer holds no list of memories: is it a mem0 server of version 2?", retry=False)
    return [Item.of(row) for row in rows]  # pyright: ignore[reportUnknownVariableType]


def _is_id(id: str) -> bool:
    """Whether it is a UUID, as mem0's ids are; the server fails for anything else."""
    try:
        uuid.UUID(id)
    except ValueError:
        return False
    return True


def _path(id: str) -> str:
    return f"/memories/{quote(id, safe='')}"


def _address(url: str) -> tuple[str, tuple[str, str] | None]:
    """Split an address into the one without credentials, and these."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError('an address such as "http://127.0.0.1:8888"', key="url")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = f"{parts.scheme}://{host}" + (f":{port}" if port else "") + parts.path.rstrip("/")
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return base, login


def _key(key: str) -> str:
    """Check that a key fits in a header: an error of the HTTP library would show it."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError("a key is a word of printable ASCII characters", key="api_key")
    return key
