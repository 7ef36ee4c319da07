"""`build`: the one function in which a server is put together from a configuration."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette

from retinue_memory import Memory
from retinue_memory.database.url import open_database
from retinue_memory.retry import RetryPolicy

from .a2a.cards import agent_card
from .a2a.grpc_port import GrpcPort, grpc_port
from .a2a.handler import Handler
from .agents import AgentBuilder
from .app import asgi_app
from .auth.call_context import CallContextBuilder
from .auth.none import NoAuth
from .config import Config, default_config, load_config
from .delivery.memory_outbox import Outbox
from .delivery.push import Pusher
from .delivery.url_policy import UrlPolicy
from .http.metrics import Metrics
from .memories import build_memories
from .models import Models
from .resources import Resources
from .runtime.engine import Engine
from .runtime.executor import TurnExecutor
from .runtime.history import history_from
from .runtime.local import LocalEngine
from .runtime.retention import purge_forever
from .runtime.store.store import Store
from .runtime.turn import DueWrite, Progress
from .user_data import UserData


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
    agents: Callable[[AgentBuilder], Mapping[str, TurnExecutor]] = AgentBuilder.build,
) -> Server:
    """Put a server together. Nothing is connected, opened or loaded before it starts or is used.

    `deep` also creates memories that no agent uses, and imports LiteLLM to check that it knows the models' providers.
    `agents` returns an executor for each agent of the configuration. Raises InvalidConfig with everything that cannot be
    created.
    """
    if config.path is not None:
        _import_from(config.path.parent)
    problems, resources = config.problems(), Resources()

    database = open_database(config.database)
    resources.add("database", database.aclose)
    store = Store.over(database)

    models = Models(resources, deep=deep)
    memories = build_memories(config, database, models, resources, problems, unused=deep)
    policies = {name: RetryPolicy(entry.write_timeout, entry.write_tries) for name, entry in config.memory.items()}
    metrics = Metrics(config.memory)
    outbox = Outbox(store.memory_outbox, memories, metrics, policies)
    pusher = Pusher(store.push, UrlPolicy(config.push.allow), tries=config.push.tries)

    builder = AgentBuilder(
        config,
        models=models,
        memories=memories,
        outbox=outbox,
        history=history_from(store.tasks),
        resources=resources,
        problems=problems,
    )
    executors = agents(builder)
    problems.raise_any()

    def committed(progress: Progress | None, due: Sequence[DueWrite]) -> None:
        if progress is None or progress.pushes:
            pusher.wake()
        outbox.add(due)

    limits = config.limits
    engine = LocalEngine(
        store.turns, store.tasks, executors, committed=committed, max_turns=limits.turns, max_waiting=limits.waiting
    )
    handlers = {
        name: Handler(
            name, executor, agent_card(name, config.agents[name], ""), engine, store.tasks, store.push, pusher
        )
        for name, executor in executors.items()
    }
    users = UserData(memories, store, engine, outbox)
    contexts = CallContextBuilder(NoAuth())
    grpc = grpc_port(handlers[config.default_agent], contexts, config.server)
    server = Server(config, store, memories, outbox, pusher, engine, grpc, resources)
    server.app = asgi_app(
        config, handlers, contexts, memories=memories, users=users, metrics=metrics, lifespan=server.lifespan
    )
    return server


@dataclass(eq=False)
class Server:
    """Everything of one configuration. `app` is its ASGI application, whose lifespan starts and stops it."""

    config: Config
    store: Store
    memories: Mapping[str, Memory]
    outbox: Outbox
    pusher: Pusher
    engine: Engine
    grpc: GrpcPort
    resources: Resources
    app: Starlette = field(init=False)

    def __post_init__(self) -> None:
        self._opening = threading.Lock()
        self._purging: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Open the database and migrate it, if that is not done yet. Raises StoreError, also if another server uses it.

        Blocks. `start` does it too; call it before to fail early.
        """
        with self._opening:
            self.store.database.acquire_server_lock()
            self.store.migrate()
            for memory in self.memories.values():
                if (managed := memory.managed) is not None:
                    managed.open()

    async def start(self) -> None:
        """Open the database and continue what earlier processes left: turns, memory writes, push notifications."""
        await asyncio.to_thread(self.open)
        for part in (self.outbox, self.pusher, self.engine):
            await part.start()
        self._purging = asyncio.create_task(purge_forever(self.store.tasks, self.config.retention.days))
        await self.grpc.start()

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
        await self.grpc.stop(grace)
        await self.drain(grace)
        await self.outbox.stop()
        await self.pusher.stop()
        await self.resources.aclose()

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop(self.config.server.grace)


def _import_from(folder: Path) -> None:
    """Put the folder of the configuration on the import path, so that it can name modules beside it."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
