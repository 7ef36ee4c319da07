"""/api/v1: what people do with memories, and with all that is kept of a user, over HTTP.

Every call names whose memory it is, by `user` or `session`, but those about writes that failed; `space` is the memory's name
in the config. An error is `{"error": "..."}` with 400, 404 or 503; nothing in it tells of another user.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast
from urllib.parse import unquote

from a2a.utils.errors import A2AError, InvalidParamsError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from retinue_memory import (
    ManagedMemory,
    Memory,
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryRecord,
    Scope,
)
from retinue_memory.errors import RetinueError
from retinue_server.auth.owners import checked_id
from retinue_server.user_data import ImportFailed, UserData

from .body import StrictRequest, loads

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
_LARGEST_PAGE = 500


class Missing(Exception):
    """There is no such memory, as far as this caller can know."""


class RawPathRouter(Router):
    """Finds a route by the path as it was sent: a "/" that is quoted is part of an id."""

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if raw := scope.get("raw_path"):
            scope = {**scope, "path": raw.decode("ascii", "replace")}
        await super().__call__(scope, receive, send)


def api_routes(memories: Mapping[str, Memory], users: UserData) -> Router:
    api = _Api(memories, users)
    routes = [
        Route("/memories", _answering(api.browse), methods=["GET"]),
        Route("/memories", _answering(api.add), methods=["POST"]),
        Route("/memories/search", _answering(api.search), methods=["GET"]),
        Route("/memories/forget", _answering(api.forget), methods=["POST"]),
        Route("/memories/{id}", _answering(api.get), methods=["GET"]),
        Route("/memories/{id}", _answering(api.change), methods=["PATCH"]),
        Route("/memories/{id}", _answering(api.delete), methods=["DELETE"]),
        Route("/profile", _answering(api.profile), methods=["GET"]),
        Route("/failed-writes", _answering(api.failed_writes), methods=["GET"]),
        Route("/failed-writes/retry", _answering(api.retry_writes), methods=["POST"]),
        Route("/users/{user}", _answering(api.remains), methods=["GET"]),
        Route("/users/{user}", _answering(api.erase), methods=["DELETE"]),
        Route("/users/{user}/export", _answering(api.export), methods=["GET"]),
        Route("/users/{user}/import", _answering(api.import_), methods=["POST"]),
    ]
    return RawPathRouter(routes, redirect_slashes=False)


class _Api:
    def __init__(self, memories: Mapping[str, Memory], users: UserData) -> None:
        self._memories = memories
        self._users = users

    async def browse(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        limit = _number(request, "limit", 50, _LARGEST_PAGE)
        page = await memory.browse(scope, _filter(request), limit=limit, cursor=request.query_params.get("cursor"))
        return _json({"memories": [record_json(record) for record in page.records], "next": page.next})

    async def search(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        top_k = _number(request, "top_k", 10, _LARGEST_PAGE)
        budget = _number(request, "budget", 0, 1_000_000) or None
        hits = await memory.search(scope, _text(request, "q"), _filter(request), top_k=top_k, budget=budget)
        return _json({"memories": [hit_json(hit) for hit in hits]})

    async def get(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        history = await memory.history(scope, _in_path(request, "id"))
        if not history:
            raise Missing
        return _json(record_json(history[-1]) | {"history": [record_json(record) for record in history[:-1]]})

    async def add(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        body = await _body(request, {"content", "kind"})
        kind = _kind(body.get("kind", MemoryKind.ENTITY))
        return _json(record_json(await memory.add(scope, _content(body), kind=kind)), 201)

    async def change(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        body = await _body(request, {"content", "pinned"})
        id_, record = _in_path(request, "id"), None
        if "pinned" in body:
            if not isinstance(body["pinned"], bool):
                raise InvalidParamsError("pinned: must be true or false")
            record = await memory.pin(scope, id_, body["pinned"])
        if "content" in body:
            record = await memory.edit(scope, id_, _content(body))
        if record is None:
            raise Missing
        return _json(record_json(record))

    async def delete(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        id_ = _in_path(request, "id")
        if await memory.get(scope, id_) is None:
            raise Missing
        return _json(_receipt(await memory.forget(scope, ids=[id_])))

    async def forget(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        body = await _body(request, {"ids", "query", "since", "until"})
        ids, query = _ids(body.get("ids", [])), body.get("query")
        if not isinstance(query, str | None):
            raise InvalidParamsError("query: must be a text")
        since, until = (_moment(name, body.get(name)) for name in ("since", "until"))
        if not (ids or query or since or until):
            raise InvalidParamsError("say what to forget: ids, query, since or until")
        return _json(_receipt(await memory.forget(scope, ids=ids, query=query, since=since, until=until)))

    async def profile(self, request: Request) -> Response:
        memory, scope = self._scope(request)
        profile = await memory.profile(scope)
        parts = {name: getattr(profile, name) for name in ("facts", "preferences", "focus", "summaries")}
        return _json({name: [record_json(record) for record in records] for name, records in parts.items()})

    async def failed_writes(self, request: Request) -> Response:
        return _json({"writes": await self._users.failed_writes(_number(request, "limit", 50, _LARGEST_PAGE))})

    async def retry_writes(self, request: Request) -> Response:
        return _json({"retried": await self._users.retry_writes()})

    async def erase(self, request: Request) -> Response:
        tenant, user = _user(request)
        receipt = await self._users.erase(tenant, user, tasks=_flag(request, "tasks"))
        if failed := receipt["failed"]:
            return _json(receipt | {"error": f"not erased, erase again: {', '.join(failed)}"}, 503)
        return _json(receipt)

    async def remains(self, request: Request) -> Response:
        tenant, user = _user(request)
        remains, unknown = await self._users.remains(tenant, user), self._users.unmanaged
        return _json({"user": user, "tenant": tenant, "remains": remains, "unknown": unknown})

    async def export(self, request: Request) -> Response:
        tenant, user = _user(request)

        async def lines() -> AsyncIterator[bytes]:
            async for value in self._users.export(tenant, user):
                yield json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n"  # the same twice

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def import_(self, request: Request) -> Response:
        tenant, user = _user(request)
        return _json({"new": await self._users.import_(tenant, user, _lines(request))})

    def _scope(self, request: Request) -> tuple[ManagedMemory, Scope]:
        """The memory that is asked, and whose part of it."""
        query = request.query_params
        space = query.get("space", "default")
        memory = self._memories.get(space)
        if not isinstance(memory, ManagedMemory):
            managed = [name for name, one in self._memories.items() if isinstance(one, ManagedMemory)]
            raise InvalidParamsError(f"space: no memory {space!r} can be managed here; there is: {', '.join(managed)}")
        named = [name for name in ("user", "session") if query.get(name)]
        if len(named) != 1:
            raise InvalidParamsError("say whose memory it is: user, or session")
        tenant, id_ = query.get("tenant", ""), query[named[0]]
        checked_id(tenant, "tenant")
        checked_id(id_, named[0])
        return memory, Scope(tenant, space, "user" if named[0] == "user" else "session", id_)


def record_json(record: MemoryRecord) -> dict[str, Any]:
    values = asdict(record) | {"sources": list(record.sources)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def hit_json(hit: MemoryHit) -> dict[str, Any]:
    return record_json(hit.record) | {"score": hit.score, "signals": dict(hit.signals)}


def _answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors as answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Missing:
            return _json({"error": "there is no such memory"}, 404)
        except ImportFailed as error:
            return _json({"error": str(error)}, 400)
        except A2AError as error:
            return _json({"error": error.message}, 400)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        except RetinueError as error:
            logger.error("%s %s failed: %s", request.method, request.url.path, error)
            return _json({"error": "the memory cannot be reached now; the server's log says why"}, 503)

    return answer


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    return JSONResponse(value, status)


def _receipt(receipt: Any) -> dict[str, Any]:
    return {"at": receipt.at.isoformat(), "deleted": dict(receipt.deleted), "left": list(receipt.left)}


def _user(request: Request) -> tuple[str, str]:
    tenant = checked_id(request.query_params.get("tenant", ""), "tenant")
    return tenant, checked_id(_in_path(request, "user"), "user")


def _in_path(request: Request, name: str) -> str:
    return unquote(request.path_params[name])


def _filter(request: Request) -> MemoryFilter:
    query = request.query_params
    return MemoryFilter(
        kinds=frozenset(_kind(kind) for kind in query.getlist("kind")),
        since=_moment("since", query.get("since")),
        until=_moment("until", query.get("until")),
        as_of=_moment("as_of", query.get("as_of")),
        superseded=_flag(request, "superseded"),
        quarantined=_flag(request, "quarantined"),
    )


def _ids(value: object) -> list[str]:
    ids = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(one, str) for one in ids):
        raise InvalidParamsError("ids: must be a list of ids")
    return [str(one) for one in ids]


def _kind(value: object) -> MemoryKind:
    try:
        return MemoryKind(str(value))
    except ValueError:
        raise InvalidParamsError(f"kind: must be one of {', '.join(MemoryKind)}") from None


def _moment(name: str, value: object) -> datetime | None:
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidParamsError(f"{name}: must be a time like 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.astimezone()


def _number(request: Request, name: str, default: int, most: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given) <= most:
        raise InvalidParamsError(f"{name}: must be a whole number from 1 to {most}")
    return int(given)


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false").lower()
    if given not in ("true", "false"):
        raise InvalidParamsError(f"{name}: must be true or false")
    return given == "true"


def _text(request: Request, name: str) -> str:
    given = request.query_params.get(name, "")
    if not given.strip():
        raise InvalidParamsError(f"{name}: is missing")
    return given


def _content(body: Mapping[str, Any]) -> str:
    content = body.get("content")
    if not isinstance(content, str) or not content.strip():
        raise InvalidParamsError("content: must be a text")
    return content


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    body = _object(await StrictRequest(request.scope, request.receive).json(), "the body")
    unknown = set(body) - known
    if unknown:
        raise InvalidParamsError(f"{sorted(unknown)[0]}: unknown; there is: {', '.join(sorted(known))}")
    return body


async def _lines(request: Request) -> AsyncIterator[Mapping[str, Any]]:
    """The JSON values of a body of JSON Lines, as it comes in."""
    pending = b""
    async for chunk in request.stream():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _line(line)
    if pending.strip():
        yield _line(pending)


def _line(line: bytes) -> Mapping[str, Any]:
    return _object(loads(line), "a line")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidParamsError(f"{what} must be a JSON object")
    return cast("dict[str, Any]", value)
