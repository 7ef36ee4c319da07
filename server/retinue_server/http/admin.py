"""The admin API below /api/v1: what people do with memories, and with everything that is stored of a user.

`user` or `session` names the owner of the memories, `space` the memory of the config (default: "default"). An error is
`{"error": "..."}` with 400, 404 or 503, and reveals nothing of other users.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from a2a.utils.errors import A2AError, InvalidParamsError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from retinue_memory import ManagedMemory, Memory, MemoryHit, MemoryKind, MemoryRecord, Receipt, Scope
from retinue_memory.errors import RetinueError
from retinue_server.auth.owners import checked_id
from retinue_server.user_data import ImportFailed, UserData

from .parameters import (
    body_lines,
    body_object,
    content,
    flag,
    id_list,
    memory_kind,
    moment,
    optional_text,
    path_text,
    path_user,
    query_filter,
    query_flag,
    query_number,
    query_text,
)

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
_MAX_PAGE_SIZE = 500


class MemoryNotFound(Exception):
    """The caller has no such memory."""


class RawPathRouter(Router):
    """Matches the path as it was sent, so that a quoted "/" is part of an id."""

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if raw := scope.get("raw_path"):
            scope = {**scope, "path": raw.decode("ascii", "replace")}
        await super().__call__(scope, receive, send)


def api_routes(memories: Mapping[str, Memory], users: UserData) -> Router:
    memory_api, user_api = _MemoryApi(memories), _UserApi(users)
    routes = [
        _route("GET", "/memories", memory_api.browse),
        _route("POST", "/memories", memory_api.add),
        _route("GET", "/memories/search", memory_api.search),
        _route("POST", "/memories/forget", memory_api.forget),
        _route("GET", "/memories/{id}", memory_api.get),
        _route("PATCH", "/memories/{id}", memory_api.change),
        _route("DELETE", "/memories/{id}", memory_api.delete),
        _route("GET", "/profile", memory_api.profile),
        _route("GET", "/failed-writes", user_api.failed_writes),
        _route("POST", "/failed-writes/retry", user_api.retry_writes),
        _route("GET", "/users/{user}", user_api.remains),
        _route("DELETE", "/users/{user}", user_api.erase),
        _route("GET", "/users/{user}/export", user_api.export),
        _route("POST", "/users/{user}/import", user_api.import_),
    ]
    return RawPathRouter(routes, redirect_slashes=False)


class _MemoryApi:
    """Endpoints about the memories of one scope."""

    def __init__(self, memories: Mapping[str, Memory]) -> None:
        self._memories = memories

    async def browse(self, request: Request) -> Response:
        memory, scope = self._target(request)
        limit = query_number(request, "limit", 50, _MAX_PAGE_SIZE)
        page = await memory.browse(scope, query_filter(request), limit=limit, cursor=request.query_params.get("cursor"))
        return JSONResponse({"memories": [record_json(record) for record in page.records], "next": page.next})

    async def search(self, request: Request) -> Response:
        memory, scope = self._target(request)
        top_k = query_number(request, "top_k", 10, _MAX_PAGE_SIZE)
        budget = query_number(request, "budget", 0, 1_000_000) or None
        hits = await memory.search(scope, query_text(request, "q"), query_filter(request), top_k=top_k, budget=budget)
        return JSONResponse({"memories": [hit_json(hit) for hit in hits]})

    async def get(self, request: Request) -> Response:
        memory, scope = self._target(request)
        history = await memory.history(scope, path_text(request, "id"))
        if not history:
            raise MemoryNotFound
        *earlier, current = map(record_json, history)
        return JSONResponse(current | {"history": earlier})

    async def add(self, request: Request) -> Response:
        memory, scope = self._target(request)
        body = await body_object(request, {"content", "kind"})
        kind = memory_kind(body.get("kind", MemoryKind.ENTITY))
        return JSONResponse(record_json(await memory.add(scope, content(body), kind=kind)), 201)

    async def change(self, request: Request) -> Response:
        memory, scope = self._target(request)
        body = await body_object(request, {"content", "pinned"})
        id_, record = path_text(request, "id"), None
        if "pinned" in body:
            record = await memory.pin(scope, id_, flag(body, "pinned"))
        if "content" in body:
            record = await memory.edit(scope, id_, content(body))
        if record is None:
            raise MemoryNotFound
        return JSONResponse(record_json(record))

    async def delete(self, request: Request) -> Response:
        memory, scope = self._target(request)
        id_ = path_text(request, "id")
        if await memory.get(scope, id_) is None:
            raise MemoryNotFound
        return JSONResponse(_receipt_json(await memory.forget(scope, ids=[id_])))

    async def forget(self, request: Request) -> Response:
        memory, scope = self._target(request)
        body = await body_object(request, {"ids", "query", "since", "until"})
        ids, query = id_list(body, "ids"), optional_text(body, "query")
        since, until = (moment(name, body.get(name)) for name in ("since", "until"))
        if not (ids or query or since or until):
            raise InvalidParamsError("say what to forget: ids, query, since or until")
        return JSONResponse(_receipt_json(await memory.forget(scope, ids=ids, query=query, since=since, until=until)))

    async def profile(self, request: Request) -> Response:
        memory, scope = self._target(request)
        profile = await memory.profile(scope)
        parts = {
            "facts": profile.facts,
            "preferences": profile.preferences,
            "focus": profile.focus,
            "summaries": profile.summaries,
        }
        return JSONResponse({name: [record_json(record) for record in records] for name, records in parts.items()})

    def _target(self, request: Request) -> tuple[ManagedMemory, Scope]:
        """The memory that the query names, and the scope in it."""
        query = request.query_params
        space = query.get("space", "default")
        named = self._memories.get(space)
        memory = named.managed if named is not None else None
        if memory is None:
            managed = [name for name, one in self._memories.items() if one.managed is not None]
            raise InvalidParamsError(f"space: no memory {space!r} can be managed here; there is: {', '.join(managed)}")
        tenant = checked_id(query.get("tenant", ""), "tenant")
        user, session = query.get("user"), query.get("session")
        if user and not session:
            return memory, Scope(tenant, space, "user", checked_id(user, "user"))
        if session and not user:
            return memory, Scope(tenant, space, "session", checked_id(session, "session"))
        raise InvalidParamsError("say whose memory it is: user, or session")


class _UserApi:
    """Endpoints about everything that is stored of a user, and about failed memory writes of all users."""

    def __init__(self, users: UserData) -> None:
        self._users = users

    async def failed_writes(self, request: Request) -> Response:
        limit = query_number(request, "limit", 50, _MAX_PAGE_SIZE)
        return JSONResponse({"writes": await self._users.failed_writes(limit)})

    async def retry_writes(self, request: Request) -> Response:
        return JSONResponse({"retried": await self._users.retry_writes()})

    async def erase(self, request: Request) -> Response:
        tenant, user = path_user(request)
        receipt = await self._users.erase(tenant, user, tasks=query_flag(request, "tasks"))
        if failed := receipt["failed"]:
            return JSONResponse(receipt | {"error": f"not erased, erase again: {', '.join(failed)}"}, 503)
        return JSONResponse(receipt)

    async def remains(self, request: Request) -> Response:
        tenant, user = path_user(request)
        remains, unknown = await self._users.remains(tenant, user), self._users.unmanaged
        return JSONResponse({"user": user, "tenant": tenant, "remains": remains, "unknown": unknown})

    async def export(self, request: Request) -> Response:
        tenant, user = path_user(request)

        async def lines() -> AsyncIterator[bytes]:
            async for value in self._users.export(tenant, user):
                # sorted: two exports of the same data are the same bytes
                yield json.dumps(value, ensure_ascii=False, sort_keys=True).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def import_(self, request: Request) -> Response:
        tenant, user = path_user(request)
        return JSONResponse({"new": await self._users.import_(tenant, user, body_lines(request))})


def record_json(record: MemoryRecord) -> dict[str, Any]:
    values = asdict(record) | {"sources": list(record.sources)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def hit_json(hit: MemoryHit) -> dict[str, Any]:
    return record_json(hit.record) | {"score": hit.score, "signals": dict(hit.signals)}


def _receipt_json(receipt: Receipt) -> dict[str, Any]:
    return {"at": receipt.at.isoformat(), "deleted": dict(receipt.deleted), "left": list(receipt.left)}


def _route(method: str, path: str, endpoint: Endpoint) -> Route:
    """A route whose endpoint's errors become responses."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except MemoryNotFound:
            return JSONResponse({"error": "there is no such memory"}, 404)
        except A2AError as error:
            return JSONResponse({"error": error.message}, 400)
        except (ImportFailed, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except RetinueError as error:
            logger.error("%s %s failed: %s", request.method, request.url.path, error)
            return JSONResponse({"error": "the memory cannot be reached now; the server's log says why"}, 503)

    return Route(path, answer, methods=[method])
