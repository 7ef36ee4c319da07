"""mem0's self-hosted REST server on 127.0.0.1: the mem0 library behind the routes of its `server/main.py`, and faults on demand.

Like the original it is a thin layer; where that has pgvector, it has the library's embedded store, and a hash for an embedder.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from retinue_memory.mem0.library import Library
from retinue_memory.testing import HashEmbedder

LISTED = 1000
IDS = ("user_id", "agent_id", "run_id")


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of what it asks for: an HTTP status; or with none, the connection breaks, before
    the request is worked on or `after`. `seconds`: it is held up first."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    after: bool = False
    seconds: float = 0.0


class Broken(Response):
    """Ends in the middle."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})


class RestServer:
    """Serves `folder`. `key` is an ordinary user's and `admin` an administrator's; None: nobody is asked for one.

    `requests` are those that came, as (method, path, body); `faults` what happens to the next ones, in order, or by method.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: str | None = None,
        admin: str | None = None,
        generate: Callable[[Sequence[Mapping[str, str]]], str] | None = None,
    ) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, Any]] = []
        self.faults: list[Fault] = []
        self.faults_of: dict[str, list[Fault]] = {}
        self._keys = {key: "user", admin: "admin"} if key or admin else {}
        self._generate = generate
        self._released = threading.Event()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """On the port it had before, with what it had kept."""
        self._released.clear()
        self._library = Library(self.folder, HashEmbedder(1024), self._generate)
        self._memory = self._library.memory
        for connection in self._library.connections():
            connection.execute("PRAGMA synchronous = OFF")  # a stand-in's power never fails
        self._lock = threading.Lock()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.005)

    def stop(self) -> None:
        self._released.set()
        self._server.should_exit = True
        self._thread.join()
        self._library.close()

    def count(self, method: str, path: str) -> int:
        return sum(one[:2] == (method, path) for one in self.requests)

    # -- the routes -----------------------------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        one, history = "/memories/{id}", "/memories/{id}/history"
        return Starlette(
            routes=[
                self._route("/memories", "POST", self._add),
                self._route("/memories", "GET", self._list),
                self._route("/memories", "DELETE", self._delete_all, admin=True),
                self._route("/search", "POST", self._search),
                self._route(one, "GET", lambda path, query, body: self._memory.get(path["id"])),
                self._route(one, "PUT", self._update),
                self._route(one, "DELETE", self._delete),
                self._route(history, "GET", lambda path, query, body: self._memory.history(path["id"])),
            ]
        )

    def _route(self, path: str, method: str, work: Callable[[Any, Any, Any], Any], admin: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            body = json.loads(raw) if raw else None
            self.requests.append((method, request.url.path, body))
            if self._keys:
                role = self._keys.get(request.headers.get("x-api-key"))
                if role is None:
                    return JSONResponse({"detail": "Invalid API key."}, 401)
                if admin and role != "admin":
                    return JSONResponse({"detail": "Admin role required."}, 403)
            waiting = self.faults_of.get(method) or self.faults
            fault = waiting.pop(0) if waiting else None
            if fault is not None and fault.seconds:
                await run_in_threadpool(self._released.wait, fault.seconds)
            if fault is not None and fault.status:
                return JSONResponse({"detail": "Upstream provider error."}, fault.status, dict(fault.headers))
            if fault is not None and not fault.after and not fault.seconds:
                return Broken()
            answer = await run_in_threadpool(self._answer, work, request, body)
            return Broken() if fault is not None and fault.after else answer

        return Route(path, endpoint, methods=[method])

    def _answer(self, work: Callable[[Any, Any, Any], Any], request: Request, body: Any) -> Response:
        try:
            with self._lock:
                return JSONResponse(work(request.path_params, request.query_params, body))
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, 404 if "not found" in str(error).lower() else 400)

    def _add(self, path: Any, query: Any, body: Any) -> Any:
        if not any(body.get(key) for key in IDS):
            raise ValueError("At least one identifier (user_id, agent_id, run_id) is required.")
        wanted = {key: body[key] for key in (*IDS, "metadata", "infer", "prompt") if body.get(key) is not None}
        with self._library._writing:  # pyright: ignore[reportPrivateUsage] - its model gives it up meanwhile
            return self._memory.add(
                [{key: one[key] for key in ("role", "content")} for one in body["messages"]], **wanted
            )

    def _list(self, path: Any, query: Any, body: Any) -> Any:
        top_k = int(query.get("top_k", 20))
        if not 0 <= top_k <= LISTED:
            raise ValueError("top_k: 0 to 1000")
        shown = query.get("show_expired") == "true"
        return self._memory.get_all(filters=_ids(query), top_k=top_k, show_expired=shown)

    def _search(self, path: Any, query: Any, body: Any) -> Any:
        wanted = {key: body[key] for key in ("top_k", "threshold", "explain", "show_expired") if key in body}
        return self._memory.search(query=body["query"], filters=body.get("filters") or {}, **wanted)

    def _update(self, path: Any, query: Any, body: Any) -> Any:
        return self._memory.update(path["id"], text=body.get("text"), metadata=body.get("metadata"))

    def _delete(self, path: Any, query: Any, body: Any) -> Any:
        self._memory.delete(path["id"])
        return {"message": "Memory deleted successfully"}

    def _delete_all(self, path: Any, query: Any, body: Any) -> Any:
        self._memory.delete_all(**_ids(query))
        return {"message": "All relevant memories deleted"}


def _ids(query: Mapping[str, str]) -> dict[str, str]:
    return {key: query[key] for key in IDS if query.get(key)}
