"""What a configuration names, made: memories, models, tools, agents. What cannot be made is told by key and line."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from a2a.server.agent_execution import AgentExecutor

from retinue_agents import Agent
from retinue_agents.models.open_model import check_model, open_model
from retinue_agents.tools import open_tool
from retinue_memory import (
    ChatModel,
    Embedder,
    ManagedMemory,
    Memory,
)
from retinue_memory.database.sqlite import SQLiteDatabase, hold, path_of
from retinue_memory.errors import ConfigError, MemoryBackendError, StoreError
from retinue_memory.registry import import_from_string, open_memory
from retinue_memory.retry import RetryPolicy

from .config import AgentConfig, Config, InvalidConfig
from .delivery.isolation import IsolatedMemory, is_outage
from .delivery.memory_outbox import Outbox, OutboxMemory
from .http.metrics import Metrics
from .runtime.store.sqlite import SQLiteStore

log = logging.getLogger(__name__)

T = TypeVar("T")

STARTUP_TIMEOUT_S = 5.0
"""How long memories' constructors may keep the server from starting (they go on in their threads), and what is closed from
ending."""


class Assembly:
    """The agents of a configuration, by name, and what they share. Nothing is connected or loaded before it is used.

    `deep` also makes memories that no agent uses, and asks LiteLLM whether it knows the providers of its models, for which
    it is imported. Raises InvalidConfig with everything that cannot be made.
    """

    def __init__(self, config: Config, *, deep: bool = False) -> None:
        self.config = config
        self._deep = deep
        self.database = SQLiteDatabase(path_of(config.database))
        self.store = SQLiteStore(self.database)
        self.memories: dict[str, Memory] = {}
        patience = {name: RetryPolicy(entry.write_timeout, entry.write_tries) for name, entry in config.memory.items()}
        self.outbox = Outbox(self.store, self.memories, Metrics(config.memory), patience)
        self.agents: dict[str, Agent | AgentExecutor] = {}
        self._models: list[ChatModel] = []
        self._problems: list[ConfigError] = []
        self._opened = threading.Lock()
        self._held: sqlite3.Connection | None = None
        if config.path is not None:
            _import_from(config.path.parent)
        embedder = cache(_find_embedder)
        used = {memory for agent in config.agents for memory in config.memories_of(agent)}
        self._make_memories([name for name in config.memory if deep or name in used], embedder)
        for name, entry in config.agents.items():
            made = self._executor(name, entry.executor) if entry.executor else self._agent(name, entry)
            if made is not None:
                self.agents[name] = made
        if self._problems:
            raise InvalidConfig(self._problems, config.path)

    def open(self) -> None:
        """Open the database, and bring what is kept in it up to date. Raises StoreError; blocks.

        One process at a time: two would run the same turns.
        """
        with self._opened:
            self._held = self._held or self._hold()
            self.store.migrate()
            for memory in self.memories.values():
                if isinstance(memory, ManagedMemory):
                    memory.open()

    async def aclose(self) -> None:
        """Let memory writes end, then close what the agents used, the database last."""
        for agent in self.agents.values():
            if isinstance(agent, Agent):
                await _end(agent.settle(), f"the memory writes of {agent.name}")
        for model in self._models:
            await _end(model.aclose(), model.name)
        for name, memory in self.memories.items():
            await _end(memory.aclose(), f"memory {name}")
        await self.database.aclose()
        if self._held is not None:
            self._held.close()

    def _hold(self) -> sqlite3.Connection:
        path = self.database.path
        try:
            return hold(path.with_name(f"{path.name}.lock"))
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StoreError(f"{path}: another server uses it: stop that one, or name another database") from error
            raise StoreError(f"{path}: cannot be locked ({error}): make its folder writable") from error

    def _make_memories(self, names: Sequence[str], embedder: Callable[[], Embedder | None]) -> None:
        """All at the same time; what takes too long, or talks to what does not answer, the server starts without."""
        making = [apart for name in names if (apart := self._begin_memory(name, embedder)) is not None]
        until = time.monotonic() + STARTUP_TIMEOUT_S
        for apart in making:
            name = apart.name
            try:
                made = apart.wait(max(0.0, until - time.monotonic()))
            except (ConfigError, MemoryBackendError, TimeoutError) as error:
                if isinstance(error, ConfigError) and not is_outage(error):
                    self._problems.append(self.config.locate(error, "memory", name, error.key or "backend"))
                    continue
                why = "its constructor has not returned yet" if isinstance(error, TimeoutError) else error
                log.warning("memory %s: %s; the server starts without waiting", name, why)
                self.memories[name] = apart
            else:
                self.memories[name] = made if isinstance(made, ManagedMemory) else apart

    def _begin_memory(self, name: str, embedder: Callable[[], Embedder | None]) -> IsolatedMemory | None:
        entry = self.config.memory[name].entry
        if entry["backend"] in ("native", "mem0-local") and isinstance(entry.get("model"), str):
            entry["model"] = self._try(partial(self._open_model, entry["model"]), "memory", name, "model")
            if entry["model"] is None:
                return None
        make = partial(open_memory, entry, name=name, database=self.database, embedder=embedder)
        return IsolatedMemory(name, make, partial(self.memories.__setitem__, name))

    def _agent(self, name: str, entry: AgentConfig) -> Agent | None:
        at = ("agents", name)
        before = len(self._problems)
        model = self._model(name, entry)
        tools = [self._try(partial(open_tool, spec), *at, "tools", index) for index, spec in enumerate(entry.tools)]
        names = self.config.memories_of(name)
        if len(self._problems) > before or model is None or not self.memories.keys() >= set(names):
            return None
        try:
            return Agent(
                model,
                name=name,
                description=entry.description,
                system_prompt=entry.system_prompt,
                memories=[OutboxMemory(memory, self.memories[memory], self.outbox) for memory in names],
                memory_mode=entry.memory_mode,
                memory_timeout=entry.memory_timeout,
                top_k=entry.memory_top_k,
                tools=[tool for tool in tools if tool is not None],
                max_steps=entry.max_steps,
            )
        except ConfigError as error:
            self._problems.append(self.config.locate(error, *at, error.key or "tools"))
            return None

    def _model(self, name: str, entry: AgentConfig) -> ChatModel | None:
        assert entry.model is not None  # noqa: S101 - the schema wants a model or an executor
        at, settings = ("agents", name), entry.settings.given
        if entry.model.startswith("local/") and importlib.util.find_spec("xllamacpp") is None:
            problem = "local models need xllamacpp, which is not installed: pip install 'retinue[local]'"
            self._problems.append(self.config.error(problem, *at, "model"))
            return None
        try:
            model = self._open_model(entry.model, **settings)
        except ConfigError as error:
            place = ("settings", error.key) if error.key in settings else ("model",)
            self._problems.append(self.config.locate(error, *at, *place))
            return None
        except TypeError as error:
            problem = f"{entry.model} does not take these: {error}"
            self._problems.append(self.config.error(problem, *at, "settings"))
            return None
        return model

    def _open_model(self, spec: str, **settings: Any) -> ChatModel:
        model: ChatModel = open_model(spec, **settings)
        if self._deep:
            check_model(spec)
        self._models.append(model)
        return model

    def _executor(self, name: str, spec: str) -> AgentExecutor | None:
        def make() -> AgentExecutor:
            found: Any = import_from_string(spec)
            try:
                made: object = found() if isinstance(found, type) else found
            except Exception as error:
                raise ConfigError(f"{spec!r} cannot be made: {type(error).__name__}: {error}") from error
            if not isinstance(made, AgentExecutor):
                raise ConfigError(f"{spec!r} is a {type(made).__name__}, not an a2a-sdk AgentExecutor")
            return made

        return self._try(make, "agents", name, "executor")

    def _try(self, make: Callable[[], T], *at: str | int) -> T | None:
        try:
            return make()
        except ConfigError as error:
            self._problems.append(self.config.locate(error, *at))
            return None


async def _end(work: Coroutine[Any, Any, None], what: str) -> None:
    """Await what ends something, and go on to the next whatever comes of it."""
    try:
        async with asyncio.timeout(STARTUP_TIMEOUT_S):
            await work
    except TimeoutError:
        log.warning("%s did not end within %g seconds", what, STARTUP_TIMEOUT_S)
    except Exception:
        log.exception("%s did not end well", what)


def _find_embedder() -> Embedder | None:
    from retinue_memory.native.embedder import find_embedder

    return find_embedder()


def _import_from(folder: Path) -> None:
    """Put the folder of the configuration on the import path, so that it can name modules beside it."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
