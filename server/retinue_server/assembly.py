"""`build`: the one function in which a server is put together from a configuration."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from a2a.server.agent_execution import AgentExecutor
from starlette.applications import Starlette

from retinue_memory import Memory
from retinue_memory.database.sqlite import SQLiteDatabase, hold, path_of
from retinue_memory.errors import StoreError

from .a2a.cards import agent_card
from .a2a.handler import Handler
from .agents import AgentBuilder
from .app import asgi_app
from .auth.none import NoAuth
from .config import Config, default_config, load_config
from .delivery.memory_outbox import Outbox, RetryPolicy
from .delivery.push import Pusher
from .delivery.url_policy import UrlPolicy
from .http.metrics import Metrics
from .memories import build_memories
from .models import Models
from .resources import Resources
from .runtime.engine import Engine
from .runtime.history import history_from
from .runtime.local import LocalEngine
from .runtime.retention import purge_forever
from .runtime.store.sqlite import SQLiteStore
from .runtime.turn import DueWrite, Progress
from .user_data import UserData

if TYPE_CHECKING:
    import grpc.aio


def create_app(config: Config | Path | str | None = None) -> Starlette:
    """The server as an ASGI application. `config` may be the path of a file; None: the built-in configuration.

    Raises InvalidConfig with everything that is wrong. The database is opened in the application's lifespan, which fails
    with StoreError if it cannot be used.
    """
    if not isinstance(config, Config):
        config = default_config() if config is None else load_config(config)
    return build(config).app


def build(
    config: Config,
    *,
    deep: bool = False,
    agents: Callable[[AgentBuilder], Mapping[str, AgentExecutor]] = AgentBuilder.build,
) -> Server:
    """Put a server together. Nothing is connected, opened or loaded before it starts or is used.

    `deep` also creates memories that no agent uses, and imports LiteLLM to check that it knows the models' providers.
    `agents` returns an executor for each agent of the configuration. Raises InvalidConfig with everything that cannot be
    created.
    """
    if config.path is not None:
        _import_from(config.path.parent)
    problems, resources = config.problems(), Resources()

    database = SQLiteDatabase(path_of(config.database))
    resources.add("database", database.aclose)
    store = SQLiteStore(database)

    models = Models(resources, deep=deep)
    memories = build_memories(config, database, models, resources, problems, unused=deep)
    policies = {name: RetryPolicy(entry.write_timeout, entry.write_tries) for name, entry in config.memory.items()}
    metrics = Metrics(config.memory)
    outbox = Outbox(store, memories, metrics, policies)
    pusher = Pusher(store, UrlPolicy(config.push.allow), tries=config.push.tries)

    builder = AgentBuilder(
        config,
        models=models,
        memories=memories,
        outbox=outbox,
        history=history_from(store),
        resources=resources,
        problems=problems,
    )
    executors = agents(builder)
    problems.raise_any()

    def committed(progress: Progress | None, due: Sequence[DueWrite]) -> None:
        if progress is None or progress.pushes:
            pusher.wake()
        outbox.owe(due)

    limits = config.limits
    engine = LocalEngine(store, executors, committed=committed, most=limits.turns, most_waiting=limits.waiting)
    handlers = {
        name: Handler(
            name, executor, agent_card(name, config.agents[name], ""), engine=engine, store=store, pusher=pusher
        )
        for name, executor in executors.items()
    }
    users = UserData(memories, store=store, engine=engine, outbox=outbox, database=database)
    server = Server(
        config, database, store, memories, outbox, pusher, engine, handlers[config.default_agent], resources
    )
    server.app = asgi_app(
        config, handlers, NoAuth(), memories=memories, users=users, metrics=metrics, lifespan=server.lifespan
    )
    return server


@dataclass(eq=False)
class Server:
    """Everything of one configuration. `app` is its ASGI application, whose lifespan starts and stops it."""

    config: Config
    database: SQLiteDatabase
    store: SQLiteStore
    memories: Mapping[str, Memory]
    outbox: Outbox
    pusher: Pusher
    engine: Engine
    default_handler: Handler
    resources: Resources
    app: Starlette = field(init=False)

    def __post_init__(self) -> None:
        self._opening = threading.Lock()
        self._server_lock: sqlite3.Connection | None = None
        self._purging: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None

    def open(self) -> None:
        """Open the database and migrate it, if that is not done yet. Raises StoreError, also if another server uses it.

        Blocks. `start` does it too; call it before to fail early.
        """
        with self._opening:
            self._server_lock = self._server_lock or self._lock()
            self.store.migrate()
            for memory in self.memories.values():
                if (managed := memory.managed) is not None:
                    managed.open()

    async def start(self) -> None:
        """Open the database and continue what earlier processes left: turns, memory writes, push notifications."""
        await asyncio.to_thread(self.open)
        for part in (self.outbox, self.pusher, self.engine):
            await part.start()
        self._purging = asyncio.create_task(purge_forever(self.store, self.config.retention.days))
        if self.config.server.grpc_port is not None:
            from .a2a.grpc import serve  # imports grpc, which is an extra

            self._grpc = await serve(self.default_handler, self.config.server)

    async def drain(self, grace: float) -> None:
        """Accept no more messages, and let running turns finish for up to `grace` seconds; the rest resumes at the next start."""
        await self.engine.stop(grace)

    def hurry(self) -> None:
        """End the grace of `drain` and `stop` now. Call it on the event loop."""
        self.engine.hurry()

    async def stop(self, grace: float) -> None:
        """Drain, then stop all background work and close everything, the database last."""
        if self._purging is not None:
            self._purging.cancel()
        if self._grpc is not None:
            await self._grpc.stop(grace)
        await self.drain(grace)
        await self.outbox.stop()
        await self.pusher.stop()
        await self.resources.aclose()
        if self._server_lock is not None:
            self._server_lock.close()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop(self.config.server.grace)

    def _lock(self) -> sqlite3.Connection:
        path = self.database.path
        try:
            return hold(path.with_name(f"{path.name}.lock"))
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreError(f"{path}: another server uses it: stop that one, or name another database") from error
            raise StoreError(f"{path}: cannot be locked ({error}): make its folder writable") from error


def _import_from(folder: Path) -> None:
    """Put the folder of the configuration on the import path, so that it can name modules beside it."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
