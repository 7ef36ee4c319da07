"""From names to memories: `open_memory`.

A short name stands for a "module:attribute". Installed distributions offer short names as entry points of the group
`retinue.memory`. The built-in names are a table here: they work without installed metadata (a checkout on the path), and
without looking at every installed distribution.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from .callbacks import MemoryBackend, MemoryModule, as_memory
from .chat import EmbedderSource
from .errors import ConfigError, RetinueError
from .importer import import_from_string, nearest
from .memory import Memory

if TYPE_CHECKING:
    from .database.base import Database

GROUP = "retinue.memory"
"""The entry point group: each entry point is a short name for a "module:attribute"."""
BUILT_IN: Mapping[str, str] = {
    "native": "retinue_memory.native.memory:NativeMemory",
    "mem0": "retinue_memory.mem0.cloud:Mem0Memory",
    "mem0-server": "retinue_memory.mem0.server:Mem0Server",
    "mem0-local": "retinue_memory.mem0.local:Mem0Local",
}


class FromConfig(Protocol):
    """The hook of a backend class that needs more than the keys of its entry.

    A class or function without it is called with the entry's keys as keyword arguments.
    """

    def from_config(
        self,
        entry: Mapping[str, Any],
        *,
        name: str,
        database: Database | None,
        embedder: EmbedderSource,
    ) -> Memory | MemoryBackend | MemoryModule:
        """Create the memory of a config entry; a `classmethod`.

        `entry` holds the entry's keys without `backend`. `name` is the memory's name in the config and the space of its
        scopes. `database` is the server's, shared: use it and leave it open; None in a program without a server.
        `embedder` is an embedder or a function that finds one and may block: call it at the first use, off the event loop.
        If it is None, find your own or do without. Connect at the first use, not here. Raises ConfigError with a `key` of
        the entry.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A short name for `backend` in a config, and the "module:attribute" that it stands for."""

    name: str
    target: str
    distribution: str | None = None
    """The distribution that offers it. None if it is built in."""


def backends() -> dict[str, Backend]:
    """All short names, the built-in ones first. Raises ConfigError if two distributions offer the same one."""
    return {name: Backend(name, target) for name, target in BUILT_IN.items()} | {
        name: _only(offers) for name, offers in sorted(_offered(tuple(sys.path)).items()) if name not in BUILT_IN
    }


def shadows() -> list[Backend]:
    """Offers of distributions that are unused, because a built-in backend has their name."""
    return [offer for name, offers in sorted(_offered(tuple(sys.path)).items()) if name in BUILT_IN for offer in offers]


@lru_cache(maxsize=1)  # a few milliseconds for a hundred distributions; the path changes with the config's folder
def _offered(path: tuple[str, ...]) -> Mapping[str, tuple[Backend, ...]]:
    """The offers of installed distributions by name; several if their targets or distributions differ."""
    from importlib.metadata import entry_points

    offered: dict[str, dict[Backend, None]] = {}
    for point in entry_points(group=GROUP):
        distribution = (point.dist.name if point.dist is not None else None) or "an unknown distribution"
        target = point.value.partition("[")[0].strip()
        offered.setdefault(point.name, {})[Backend(point.name, target, distribution)] = None
    return {name: tuple(offers) for name, offers in offered.items()}


def _only(offers: tuple[Backend, ...]) -> Backend:
    if len(offers) == 1:
        return offers[0]
    name = offers[0].name
    several = " and ".join(sorted(f"{offer.distribution} ({offer.target})" for offer in offers))
    problem = (
        f'several distributions offer a memory {name!r}: {several}: uninstall all but one, or name a "module:attribute"'
    )
    raise ConfigError(problem, key="backend", value=name)


def _backend(name: str) -> Backend:
    """The backend of a name. Raises ConfigError if there is none or more than one."""
    if ":" in name:
        return Backend(name, name)
    if name in BUILT_IN:
        return Backend(name, BUILT_IN[name])
    offered = _offered(tuple(sys.path))
    if name in offered:
        return _only(offered[name])
    known = [*BUILT_IN, *sorted(offered.keys() - BUILT_IN.keys())]
    listed = f'known: {", ".join(known)}, or "module:attribute"'
    raise ConfigError(f"there is no memory {name!r}{nearest(name, known)} ({listed})", key="backend", value=name)


def open_memory(
    config: Mapping[str, Any] | str,
    *,
    name: str = "default",
    database: Database | None = None,
    embedder: EmbedderSource = None,
) -> Memory:
    """Open the memory of a config entry: `{"backend": "native", "database": "sqlite:///x.db"}`, or just "native".

    `backend` is a short name (see `backends`) or the "module:attribute" of a `Memory`, a `MemoryBackend` or a
    `MemoryModule`: an instance, or a class or function that returns one. It is called with the entry's other keys, or
    through `FromConfig`. If it has a pydantic model as its attribute `Settings`, the keys are validated by that first.
    Nothing is connected before the first use; the memory may be used from any event loop; close it with
    `await memory.aclose()`.

    `name` is the memory's name in the config and the space of its scopes. `database` is shared and closed by the caller;
    without one, a memory that needs a database opens its own. `embedder` replaces the built-in one. Raises ConfigError with
    a `key` of the entry.
    """
    entry = {"backend": config} if isinstance(config, str) else dict(config)
    backend = entry.pop("backend", "native")
    if not isinstance(backend, str):
        raise ConfigError("a memory's backend is a name", key="backend", value=backend)
    chosen = _backend(backend)
    try:
        found = import_from_string(chosen.target)
    except ConfigError as error:
        error.key = "backend"
        if chosen.distribution is not None:
            error.problem += f" (the memory {backend!r} of the distribution {chosen.distribution})"
        raise
    if (model := getattr(found, "Settings", None)) is not None:
        from .settings import check

        entry = dict(check(model, entry))
    if callable(getattr(found, "from_config", None)):
        more = {"name": name, "database": database, "embedder": embedder}
        memory = _call(backend, {}, found.from_config, entry, **more)
    else:
        memory = _instance(found, entry, backend)
    if not isinstance(memory, Memory | MemoryBackend | MemoryModule):
        problem = f"{backend!r} is a {type(memory).__name__}, not a Memory, a MemoryBackend or a MemoryModule"
        raise ConfigError(problem, key="backend", value=backend)
    return as_memory(memory, space=name)


def _instance(found: Any, options: Mapping[str, Any], backend: str) -> Any:
    if isinstance(found, Memory | MemoryBackend | MemoryModule):
        if options:
            key = next(iter(options))
            raise ConfigError(f"{backend!r} is an instance and takes no settings", key=key, value=options[key])
        return found
    return _call(backend, options, found, **options) if callable(found) else found


def _call(backend: str, options: Mapping[str, Any], create: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Call `create`. Raises ConfigError if it does not take these arguments, or raises anything itself."""
    try:
        inspect.signature(create).bind(*args, **settings)
    except (TypeError, ValueError) as error:
        key = next(iter(options), "backend")
        problem = f"{backend!r} cannot be created from these settings: {error}"
        raise ConfigError(problem, key=key, value=backend) from None
    try:
        return create(*args, **settings)
    except RetinueError:
        raise
    except Exception as error:
        problem = f"{backend!r} could not be created: {type(error).__name__}: {error}"
        raise ConfigError(problem, key="backend", value=backend) from error
