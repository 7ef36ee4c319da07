"""The memories of a configuration."""

from __future__ import annotations

import logging
import time
from functools import cache, partial
from typing import Any

from retinue_memory import Embedder, Memory
from retinue_memory.database.base import Database
from retinue_memory.errors import ConfigError, MemoryBackendError
from retinue_memory.registry import open_memory

from .config import Config, MemoryConfig
from .config_errors import Problems
from .delivery.isolation import IsolatedMemory, is_outage
from .models import Models
from .resources import Resources

logger = logging.getLogger(__name__)

_STARTUP_TIMEOUT_S = 5.0


def build_memories(
    config: Config,
    database: Database,
    models: Models,
    resources: Resources,
    problems: Problems,
    *,
    unused: bool = False,
) -> dict[str, Memory]:
    """Create the memories that agents use, all at the same time, and with `unused` the others too.

    A memory that is not `ManagedMemory` stays on its own thread. So does one whose constructor takes longer than a server
    may take to start, or whose service does not answer: the server starts without waiting for it, and a `ManagedMemory`
    takes its place in the returned dict once it is created.
    """
    memories: dict[str, Memory] = {}
    used = {memory for agent in config.agents for memory in config.memories_of(agent)}
    embedder = cache(_find_embedder)
    creating: list[IsolatedMemory] = []
    for name, entry in config.memory.items():
        if unused or name in used:
            options = _options(name, entry, models, problems)
            if options is not None:
                create = partial(open_memory, options, name=name, database=database, embedder=embedder)
                creating.append(IsolatedMemory(name, create, partial(memories.__setitem__, name)))
    deadline = time.monotonic() + _STARTUP_TIMEOUT_S
    for isolated in creating:
        name = isolated.name
        try:
            memory = isolated.wait(max(0.0, deadline - time.monotonic()))
        except (ConfigError, MemoryBackendError, TimeoutError) as error:
            if isinstance(error, ConfigError) and not is_outage(error):
                problems.add(error, "memory", name, error.key or "backend")
                continue
            reason = "its constructor has not returned yet" if isinstance(error, TimeoutError) else error
            logger.warning("memory %s: %s; the server starts without waiting for it", name, reason)
            memories[name] = isolated
        else:
            memories[name] = memory if memory.managed is memory else isolated
        resources.add(f"memory {name}", memories[name].aclose)
    return memories


def _options(name: str, entry: MemoryConfig, models: Models, problems: Problems) -> dict[str, Any] | None:
    """The entry for `open_memory`, its model opened. Returns None if there are problems."""
    settings = entry.check(name, problems)
    if settings is None:
        return None
    options = entry.entry
    if settings.model_name is not None:
        options["model"] = problems.attempt(partial(models.open, settings.model_name), "memory", name, "model")
        return None if options["model"] is None else options
    return options


def _find_embedder() -> Embedder | None:
    from retinue_memory.native.embedder import find_embedder

    return find_embedder()
