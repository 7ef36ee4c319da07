"""The one function in which the parts meet: routes, handlers, lifespan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    pass

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from a2a.server.agent_execution import AgentExecutor
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from .a2a.cards import (
    REST,
    agent_card,
    base_url,
    card_route,
)
from .a2a.executor import A2AExecutor
from .a2a.grpc import serve_grpc
from .a2a.handler import Handler
from .a2a.jsonrpc import jsonrpc
from .a2a.rest import rest_router
from .assembly import Assembly
from .auth.none import NoAuth
from .config import Config, default_config, load_config
from .delivery.push import Pusher
from .delivery.url_policy import UrlPolicy
from .http.admin import api_routes
from .runtime.history import history_from
from .runtime.local import LocalEngine
from .runtime.retention import purge_forever
from .runtime.turn import DueWrite, Progress
from .user_data import UserData


def create_app(config: Config | Path | str | None = None, *, registry: Assembly | None = None) -> Starlette:
    """The server as an ASGI application. `config` may be a file's path; None: the built-in configuration.

    Raises InvalidConfig with everything that is wrong. The database is opened when the application's lifespan begins,
    unless a `registry` that did so is given; one that cannot be used raises StoreError.
    """
    if registry is None:
        if not isinstance(config, Config):
            config = default_config() if config is None else load_config(config)
        registry = Assembly(config)
    config = registry.config
    identity = NoAuth()
    store, outbox, grace = registry.store, registry.outbox, config.server.grace
    pusher = Pusher(store, UrlPolicy(config.push.allow), tries=config.push.tries)
    history = history_from(store)
    executors = {
        name: served if isinstance(served, AgentExecutor) else A2AExecutor(served, history=history)
        for name, served in registry.agents.items()
    }

    def committed(progress: Progress | None, owed: Sequence[DueWrite]) -> None:
        if progress is None or progress.pushes:
            pusher.wake()
        outbox.add(owed)

    limits = config.limits
    engine = LocalEngine(store, executors, committed=committed, most=limits.turns, most_waiting=limits.waiting)
    handlers = {
        name: Handler(
            name, executor, agent_card(name, config.agents[name], ""), engine=engine, store=store, pusher=pusher
        )
        for name, executor in executors.items()
    }

    users = UserData(registry.memories, store=store, engine=engine, outbox=outbox, database=registry.database)

    posts = {name: jsonrpc(handler, identity, grace) for name, handler in handlers.items()}

    def site(name: str, at: str) -> Router:
        """An agent at its base: JSON-RPC (1.0 and 0.3) on the base itself, REST and the card below."""
        return Router(
            [
                Route("/", posts[name].handle_requests, methods=["POST"]),
                Mount(REST, rest_router(handlers[name], identity, grace)),
                card_route(name, config, at=at),
            ],
            redirect_slashes=False,
        )

    async def agents(request: Request) -> Response:
        base = config.server.public_url or base_url(request)
        return JSONResponse([_entry(config, name, base) for name in config.agents])

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        answer = {"error": error.detail} | ({"agents": list(config.agents)} if error.status_code == 404 else {})
        return JSONResponse(answer, error.status_code, headers=error.headers)

    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed unexpectedly; its log says why"}, 500)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        await asyncio.to_thread(registry.open)
        for part in (outbox, pusher, engine):
            await part.start()
        purging = asyncio.create_task(purge_forever(store, config.retention.days))
        grpc = await serve_grpc(handlers[config.default_agent], config.server)
        try:
            yield
        finally:
            purging.cancel()
            await grpc.stop(grace)
            await engine.stop(grace)
            await outbox.stop()
            await pusher.stop()
            await registry.aclose()

    by_path = {f"/agents/{name}/": post for name, post in posts.items()} | {"/": posts[config.default_agent]}
    app = Starlette(
        routes=[
            Route("/healthz", _healthy),
            Route("/metrics", outbox.metrics.show),
            Route("/agents", agents),
            Route("/agents/", agents),
            Mount("/api/v1", api_routes(registry.memories, users)),
            Mount("/agents", _AgentMount({name: site(name, f"/agents/{name}") for name in config.agents})),
            Mount("/", site(config.default_agent, "")),
        ],
        middleware=[Middleware(Shortcut, posts=by_path)],
        exception_handlers={HTTPException: refuse, Exception: fail},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.stop, app.state.hurry = partial(engine.stop, grace), engine.hurry
    return app


class _AgentMount:
    """The agents below /agents/, found by their name whatever their number."""

    def __init__(self, sites: Mapping[str, ASGIApp]) -> None:
        self._sites = sites

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root: str = scope["root_path"]
        name, slash, _ = scope["path"].removeprefix(f"{root}/").partition("/")
        site = self._sites.get(name)
        if site is None:
            raise HTTPException(404, f"there is no agent {name!r}; this server has: {', '.join(self._sites)}")
        path = scope["path"] if slash else f"{scope['path']}/"  # POST /agents/x means /agents/x/
        await site({**scope, "root_path": f"{root}/{name}", "path": path}, receive, send)


async def _healthy(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _entry(config: Config, name: str, base: str) -> dict[str, str | bool]:
    url = f"{base}/agents/{name}/"
    return {
        "name": name,
        "description": config.agents[name].description,
        "url": url,
        "default": name == config.default_agent,
        "card": f"{url}.well-known/agent-card.json",
    }


class Shortcut:
    """Has calls of JSON-RPC found by their path alone, before `app` with its routes is asked."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["root_path"]:
            app = self._posts.get(scope["path"], app)
        await app(scope, receive, send)
