"""From a name to a memory: `open_memory`, and the one importer of "module:attr" names.

A short name stands for a "module:attr". The built-in ones do as those that installed distributions offer as entry points
of the group `retinue.memory` do, and are made in the same way; their table is here, so that they are found where no
metadata tell of them (a checkout on the path, an older install), and without a look at every distribution that there is.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from .callbacks import MemoryBackend, MemoryModule, as_memory
from .chat import EmbedderSource
from .errors import (
    ConfigError,
    ImportAttributeError,
    ImportFormatError,
    ImportModuleError,
    RetinueError,
)
from .memory import Memory

if TYPE_CHECKING:
    from .database.base import Database

GROUP = "retinue.memory"
"""The group of entry points by which a distribution offers memories, each a short name for a "module:attr"."""
BUILT_IN: Mapping[str, str] = {
    "native": "retinue_memory.native.memory:NativeMemory",
    "mem0": "retinue_memory.mem0.cloud:Mem0Memory",
    "mem0-server": "retinue_memory.mem0.server:Mem0Server",
    "mem0-local": "retinue_memory.mem0.local:Mem0Local",
}


class FromConfig(Protocol):
    """What a backend may offer that wants more than its own keys: a class with this method (the native memory is one).

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
        """The memory of a config entry; a `classmethod`.

        `entry` holds the entry's keys but `backend`. `name` is the memory's name in the config, and so the space of its
        scopes. `database` is the server's own, shared: use it and leave it open; None where a program opens the memory
        without one. `embedder` is one, or a function that finds one and may block (call it off the event loop, at the
        first use); None: find your own, or do without. Connect at the first use, not here. Raises ConfigError, its `key`
        relative to the entry.
        """
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A short name that a config may give as `backend`, the "module:attr" it stands for, and who offers it."""

    name: str
    target: str
    distribution: str | None = None
    """The distribution whose entry point it is; None: built in."""


def backends() -> dict[str, Backend]:
    """All short names, the built-in ones first. Raises ConfigError where two distributions offer the same one."""
    return {name: Backend(name, target) for name, target in BUILT_IN.items()} | {
        name: _one_of(offers) for name, offers in sorted(_offered(tuple(sys.path)).items()) if name not in BUILT_IN
    }


def shadows() -> list[Backend]:
    """What distributions offer under the name of a built-in memory, and is not used."""
    return [one for name, offers in sorted(_offered(tuple(sys.path)).items()) if name in BUILT_IN for one in offers]


@lru_cache(maxsize=1)  # a few milliseconds for a hundred distributions; the path changes with the config's folder
def _offered(path: tuple[str, ...]) -> Mapping[str, tuple[Backend, ...]]:
    """What installed distributions offer, by name; several: more than one target or distribution."""
    from importlib.metadata import entry_points

    offered: dict[str, dict[Backend, None]] = {}
    for point in entry_points(group=GROUP):
        owner = (point.dist.name if point.dist is not None else None) or "an unknown distribution"
        target = point.value.partition("[")[0].strip()
        offered.setdefault(point.name, {})[Backend(point.name, target, owner)] = None
    return {name: tuple(offers) for name, offers in offered.items()}


def _one_of(offers: tuple[Backend, ...]) -> Backend:
    if len(offers) == 1:
        return offers[0]
    name = offers[0].name
    several = " and ".join(sorted(f"{one.distribution} ({one.target})" for one in offers))
    problem = (
        f'several distributions offer a memory {name!r}: {several}: uninstall all but one, or name a "module:attribute"'
    )
    raise ConfigError(problem, key="backend", value=name)


def _backend(name: str) -> Backend:
    """The backend of that name. Raises ConfigError where there is none, or more than one."""
    if ":" in name:
        return Backend(name, name)
    if name in BUILT_IN:
        return Backend(name, BUILT_IN[name])
    offered = _offered(tuple(sys.path))
    if name in offered:
        return _one_of(offered[name])
    known = [*BUILT_IN, *sorted(offered.keys() - BUILT_IN.keys())]
    listed = f'known: {", ".join(known)}, or "module:attribute"'
    raise ConfigError(f"there is no memory {name!r}{nearest(name, known)} ({listed})", key="backend", value=name)


def import_from_string(spec: str) -> Any:
    """The object that "module:attribute" names; the attribute may be dotted.

    Raises ImportFormatError where `spec` is not of that form, ImportModuleError where there is no such module,
    ImportAttributeError where the module has no such attribute, and ConfigError with the cause where the module is
    there and fails while it is imported.
    """
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ImportFormatError(f'{spec!r} is not of the form "module:attribute"', value=spec)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ImportModuleError(f"there is no module {error.name!r} (needed for {spec!r})", value=spec) from None
        problem = f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(problem, value=spec) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = nearest(name, dir(found))
            raise ImportAttributeError(f"{module_name!r} has no attribute {attribute!r}{near}", value=spec) from None
    return found


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: '; did you mean "x"?', or nothing where none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def open_memory(
    config: Mapping[str, Any] | str,
    *,
    name: str = "default",
    database: Database | None = None,
    embedder: EmbedderSource = None,
) -> Memory:
    """The memory that a config entry names: `{"backend": "native", "database": "sqlite:///x.db"}`, or just "native".

    `backend` is a short name (see `backends`), or the "module:attr" of a `Memory`, a `MemoryBackend` or a `MemoryModule`: an
    instance, or a class or function that makes one, called with the entry's other keys, or with more where it offers
    `FromConfig`. Nothing is connected before the first use; the memory may be used from any event loop, and
    `await memory.aclose()` ends it.

    `name` is the memory's name in the config, and so the space of its scopes. `database` is one that the caller shares
    and closes; without it, a memory that needs one opens its own. `embedder` is used in place of the one that the config
    names. Raises ConfigError, whose `key` is relative to the entry.
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
    if callable(getattr(found, "from_config", None)):
        more = {"name": name, "database": database, "embedder": embedder}
        made = _called(backend, {}, found.from_config, entry, **more)
    else:
        made = _made(found, entry, backend)
    if not isinstance(made, Memory | MemoryBackend | MemoryModule):
        problem = f"{backend!r} is a {type(made).__name__}, not a Memory, a MemoryBackend or a MemoryModule"
        raise ConfigError(problem, key="backend", value=backend)
    return as_memory(made, space=name)


def _made(found: Any, options: Mapping[str, Any], backend: str) -> Any:
    if isinstance(found, Memory | MemoryBackend | MemoryModule):
        if options:
            key = next(iter(options))
            raise ConfigError(f"{backend!r} is a ready instance and takes no settings", key=key, value=options[key])
        return found
    return _called(backend, options, found, **options) if callable(found) else found


def _called(backend: str, options: Mapping[str, Any], make: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What `make` gives; a call that it does not take, and whatever it raises, as a ConfigError."""
    try:
        inspect.signature(make).bind(*args, **settings)
    except (TypeError, ValueError) as error:
        key = next(iter(options), "backend")
        raise ConfigError(f"{backend!r} cannot be made from these settings: {error}", key=key, value=backend) from None
    try:
        return make(*args, **settings)
    except RetinueError:
        raise
    except Exception as error:
        problem = f"{backend!r} could not be made: {type(error).__name__}: {error}"
        raise ConfigError(problem, key="backend", value=backend) from error
