"""From a name to a memory: `open_memory`, and the one importer of "module:attr" names.

Built-in memories are entries of a table like any other: a short name that stands for a "module:attr".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from .backend import MemoryBackend, MemoryModule, as_memory
from .contract import Embedder, Memory
from .errors import ConfigError, ImportAttributeError, ImportFormatError, ImportModuleError, RecollectError

if TYPE_CHECKING:
    from .sqlite import Database

BUILT_IN: Mapping[str, str] = {
    "native": "recollect_memory.native.memory:NativeMemory",
    "mem0": "recollect_memory.mem0.cloud:Mem0Memory",
    "mem0-server": "recollect_memory.mem0.server:Mem0Server",
    "mem0-local": "recollect_memory.mem0.local:Mem0Local",
}


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
    embedder: Embedder | Callable[[], Embedder | None] | None = None,
) -> Memory:
    """The memory that a config entry names: `{"backend": "native", "database": "sqlite:///x.db"}`, or just "native".

    `backend` is a short name, or the "module:attr" of a `Memory`, a `MemoryBackend` or a `MemoryModule`: an instance, or a class
    or function that makes one, called with the entry's other keys. Nothing is connected before the first use; the
    memory may be used from any event loop, and `await memory.aclose()` ends it.

    `name` is the memory's name in the config, and so the space of its scopes. `database` is one that the caller shares
    and closes; without it, a memory that needs one opens its own. `embedder` is used in place of the one that the config
    names. Raises ConfigError, whose `key` is relative to the entry.
    """
    entry = {"backend": config} if isinstance(config, str) else dict(config)
    backend = entry.pop("backend", "native")
    if not isinstance(backend, str):
        raise ConfigError("a memory's backend is a name", key="backend", value=backend)
    if backend not in BUILT_IN and ":" not in backend:
        names = ", ".join(sorted(BUILT_IN))
        problem = f'there is no memory {backend!r}{nearest(backend, BUILT_IN)} (known: {names}, or "module:attribute")'
        raise ConfigError(problem, key="backend", value=backend)
    try:
        found = import_from_string(BUILT_IN.get(backend, backend))
    except ConfigError as error:
        error.key = "backend"
        raise
    from_config = getattr(found, "from_config", None)
    if callable(from_config):  # a memory that wants more than its keys: the native one, and any that offers the same
        made: Any = from_config(entry, name=name, database=database, embedder=embedder)
    else:
        made = _make(found, entry, backend)
    if not isinstance(made, Memory | MemoryBackend | MemoryModule):
        problem = f"{backend!r} is a {type(made).__name__}, not a Memory, a MemoryBackend or a MemoryModule"
        raise ConfigError(problem, key="backend", value=backend)
    return as_memory(made, space=name)


def _make(found: Any, options: Mapping[str, Any], backend: str) -> Any:
    if isinstance(found, Memory | MemoryBackend | MemoryModule):
        if options:
            key = next(iter(options))
            raise ConfigError(f"{backend!r} is a ready instance and takes no settings", key=key, value=options[key])
        return found
    if not callable(found):
        return found
    try:
        inspect.signature(found).bind(**options)
    except (TypeError, ValueError) as error:
        key = next(iter(options), "backend")
        raise ConfigError(f"{backend!r} cannot be made from these settings: {error}", key=key, value=backend) from None
    try:
        return found(**options)
    except RecollectError:
        raise
    except Exception as error:
        problem = f"{backend!r} could not be made: {type(error).__name__}: {error}"
        raise ConfigError(problem, key="backend", value=backend) from error
