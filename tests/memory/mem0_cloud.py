"""A stand-in for mem0's cloud on 127.0.0.1, written from the description of its API, with faults on demand.

Over real HTTP and with the habits that matter here: a token, entity ids that are trimmed and of which "*" means everybody, an
`add` that is only PENDING, listings and searches that want filters, a search that always finds something.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

KEY = "m0-a-key-for-tests"
ENTITIES = ("user_id", "agent_id", "app_id", "run_id")


@dataclass(frozen=True)
class Fault:
    """What happens to one request: an HTTP status in place of the answer, or no answer at all (`drop`), before the request is
    worked on or `after`. `stall`: it is held up until the server is told to go on."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    drop: bool = False
    after: bool = False
    stall: bool = False


@dataclass(frozen=True)
class Call:
    """A request that came. `operation` is "ping", "add", "search", "page", "get", "change", "delete", "delete_all", "history" or
    "event"."""

    operation: str
    authorization: str
    params: Mapping[str, str]
    body: Any


class Cut(Response):
    """An answer that ends before it is whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})


class Cloud:
    """The server. `indexing`: while it is not set, what is added stays PENDING and is not found. `go_on` lets go what stalls.

    `faults[operation]` are those of the next such requests; `failing` events to come end FAILED; `calls` are what came. While it
    is `leaking`, it finds and lists what is others'.
    """

    def __init__(self) -> None:
        self.indexing, self.go_on = threading.Event(), threading.Event()
        self.indexing.set()
        self.faults: dict[str, list[Fault]] = {}
        self.failing = 0
        self.leaking = False
        self.calls: list[Call] = []
        self.memories: dict[str, dict[str, Any]] = {}
        self._history: dict[str, list[dict[str, Any]]] = {}
        self._events: dict[str, str] = {}
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)  # said outright, or asyncio leaves it Nagle's delays
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), log_level="critical", timeout_graceful_shutdown=1, lifespan="off")
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @contextmanager
    def running(self) -> Generator[Cloud]:
        self._thread.start()
        try:
            eventually(lambda: self._server.started)
            yield self
        finally:
            self.go_on.set()
            self._server.should_exit = True
            self._thread.join(10)
            self._socket.close()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def count(self, operation: str) -> int:
        return sum(call.operation == operation for call in self.calls)

    def texts(self) -> list[str]:
        """What is remembered, in the order in which it was added."""
        return [memory["memory"] for memory in self.memories.values()]

    def keep(self, text: str, **entity: str) -> None:
        """Remember something that nobody added through us."""
        self._keep(text, {"entity": entity, "metadata": None})

    # -- the API ------------------------------------------------------------------------------------------------------

    def _app(self) -> Starlette:
        routes: list[tuple[str, str, str, Callable[[Request, Any], Response]]] = [
            ("ping", "GET", "/v1/ping/", self._ping),
            ("add", "POST", "/v3/memories/add/", self._add),
            ("search", "POST", "/v3/memories/search/", self._search),
            ("page", "POST", "/v3/memories/", self._page),
            ("history", "GET", "/v1/memories/{id}/history/", self._steps),
            ("get", "GET", "/v1/memories/{id}/", self._get),
            ("change", "PUT", "/v1/memories/{id}/", self._change),
            ("delete", "DELETE", "/v1/memories/{id}/", self._delete),
            ("delete_all", "DELETE", "/v1/memories/", self._delete_all),
            ("event", "GET", "/v1/event/{id}/", self._event),
        ]
        return Starlette(
            routes=[
                Route(path, self._operation(name, answer), methods=[method]) for name, method, path, answer in routes
            ]
        )

    def _operation(self, name: str, answer: Callable[[Request, Any], Response]) -> Callable[[Request], Any]:
        async def operate(request: Request) -> Response:
            sent = await request.body()
            body = json.loads(sent) if sent else None
            self.calls.append(Call(name, request.headers.get("authorization", ""), dict(request.query_params), body))
            fault = self.faults[name].pop(0) if self.faults.get(name) else None
            if fault is not None and fault.stall:
                while not self.go_on.is_set():  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.005)
            if fault is not None and not fault.after and (fault.drop or fault.status):
                return Cut() if fault.drop else _problem(fault.status, "as told", fault.headers)
            if request.headers.get("authorization") != f"Token {KEY}":
                return _problem(401, "Invalid token.")
            if self.indexing.is_set():
                self._index()
            done = answer(request, body)
            if fault is not None and fault.after:
                return Cut() if fault.drop else _problem(fault.status, "as told", fault.headers)
            return done

        return operate

    def _ping(self, request: Request, _: Any) -> Response:
        return JSONResponse({"status": "ok", "org_id": "o", "project_id": "p", "user_email": "team@example.com"})

    def _add(self, request: Request, body: Any) -> Response:
        entity = _entity(body)
        if not entity or not body.get("messages"):
            return _problem(400, "One of the filters: app_id, user_id, agent_id, run_id is required!")
        event = str(uuid.uuid4())
        self._events[event] = "PENDING"
        self._waiting.append((event, body | {"entity": entity}))
        return JSONResponse({"message": "Memory processing has been queued", "status": "PENDING", "event_id": event})

    def _index(self) -> None:
        while self._waiting:
            event, body = self._waiting.pop(0)
            if self.failing:
                self.failing -= 1
                self._events[event] = "FAILED"
                continue
            for message in body["messages"]:
                infer = body.get("infer", True)
                if infer and (message["role"] != "user" or self._has(body["entity"], message["content"])):
                    continue
                self._keep(message["content"], body)
            self._events[event] = "SUCCEEDED"

    def _has(self, entity: Mapping[str, str], text: str) -> bool:
        return any(memory["memory"] == text and _matches(memory, entity) for memory in self.memories.values())

    def _keep(self, text: str, body: Mapping[str, Any]) -> None:
        id, now = str(uuid.uuid4()), datetime.now(UTC).isoformat()
        said = datetime.fromtimestamp(body["timestamp"], UTC).isoformat() if "timestamp" in body else now
        self.memories[id] = {
            "id": id,
            "memory": text,
            **dict.fromkeys(ENTITIES),
            **body["entity"],
            "metadata": body.get("metadata"),
            "categories": ["misc"],
            "created_at": said,
            "updated_at": now,
        }
        self._history[id] = [_step(id, None, text, "ADD")]

    def _search(self, request: Request, body: Any) -> Response:
        if not (filters := _entity(body.get("filters"))) or not body.get("query"):
            return _problem(400, "Filters are required and cannot be empty.")
        asked = _words(body["query"])
        found = [
            memory | {"score": max(0.05, len(asked & _words(memory["memory"])) / max(1, len(asked)))}
            for memory in self.memories.values()
            if self.leaking or _matches(memory, filters)
        ]
        found.sort(key=lambda memory: -memory["score"])
        return JSONResponse({"results": found[: body.get("top_k", 10)]})

    def _page(self, request: Request, body: Any) -> Response:
        if not (filters := _entity(body and body.get("filters"))):
            return _problem(400, "Filters are required and cannot be empty.")
        number, size = (
            int(request.query_params.get(key, default)) for key, default in (("page", 1), ("page_size", 100))
        )
        found = [memory for memory in self.memories.values() if self.leaking or _matches(memory, filters)][::-1]
        page = found[(number - 1) * size : number * size]
        if number > 1 and not page:
            return _problem(404, "Invalid page.")
        return JSONResponse({"count": len(found), "next": None, "previous": None, "results": page})

    def _get(self, request: Request, _: Any) -> Response:
        found = self.memories.get(request.path_params["id"])
        return JSONResponse(found) if found is not None else _problem(404, "Memory not found!")

    def _change(self, request: Request, body: Any) -> Response:
        memory = self.memories.get(request.path_params["id"])
        if memory is None:
            return _problem(404, "Memory not found!")
        self._history[memory["id"]].append(_step(memory["id"], memory["memory"], body["text"], "UPDATE"))
        memory |= {"memory": body["text"], "metadata": body["metadata"], "updated_at": datetime.now(UTC).isoformat()}
        return JSONResponse(memory)

    def _delete(self, request: Request, _: Any) -> Response:
        found = self.memories.pop(request.path_params["id"], None)
        return _problem(404, "Memory not found!") if found is None else Response(status_code=204, content=b"")

    def _delete_all(self, request: Request, _: Any) -> Response:
        if not (filters := _entity(request.query_params)):
            return _problem(400, "One of the filters is required!")
        for id in [id for id, memory in self.memories.items() if _matches(memory, filters)]:
            del self.memories[id]
        return JSONResponse({"message": "Memories deleted successfully!"})

    def _steps(self, request: Request, _: Any) -> Response:
        return JSONResponse(self._history.get(request.path_params["id"], []))

    def _event(self, request: Request, _: Any) -> Response:
        id = request.path_params["id"]
        if id not in self._events:
            return _problem(404, "Not found.")
        return JSONResponse({"id": id, "event_type": "ADD", "status": self._events[id]})


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it does. Raises AssertionError where it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


async def eventually_so(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """The same, without holding up the loop."""
    await asyncio.to_thread(eventually, holds, seconds)


def _entity(value: Any) -> dict[str, str]:
    return {name: str(value[name]).strip() for name in ENTITIES if value and value.get(name)}


def _matches(memory: Mapping[str, Any], filters: Mapping[str, str]) -> bool:
    return all(memory[name] is not None if id == "*" else memory[name] == id for name, id in filters.items())


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _step(id: str, old: str | None, new: str, event: str) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat()
    return {"memory_id": id, "old_memory": old, "new_memory": new, "event": event, "created_at": at, "updated_at": at}


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)
