"""The settings of the native memory in a config entry, checked and made into what `NativeMemory` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recollect_memory.contract import ChatModel, Embedder
from recollect_memory.errors import ConfigError, StoreError
from recollect_memory.sqlite import path_of

from . import guard
from .consolidation import Consolidation
from .embedding import find_embedder

DEFAULT_DATABASE = "sqlite:///var/recollect.db"
_SETTINGS: Mapping[str, Any] = {
    "database": DEFAULT_DATABASE,
    "embedder": "minilm",
    "cache_mb": 256,
    "max_memories": 100_000,
    "fade_days": None,
    "redact": guard.DEFAULT,
    "mode": "verbatim",
    "model": None,
    "instructions": "",
    "categories": (),
}


def settings_of(entry: Mapping[str, Any], embedder: Embedder | Callable[[], Embedder | None] | None) -> dict[str, Any]:
    """From the keys `database`, `embedder` ("minilm" or off), `cache_mb`, `max_memories`, `fade_days`, `redact` (a list),
    `mode` ("verbatim" or "llm"), and for the latter `model` (a `ChatModel` or its "module:attr"), `instructions` and
    `categories`. Raises ConfigError, which names the key."""
    from recollect_memory.registry import nearest

    for key, value in entry.items():
        if key not in _SETTINGS:
            near = nearest(key, _SETTINGS) or f" (it has {', '.join(_SETTINGS)})"
            raise ConfigError(f"the native memory has no setting {key!r}{near}", key=key, value=value)
    settings = {**_SETTINGS, **entry}
    fade = settings["fade_days"]
    return {
        "database": _database(settings["database"]),
        "embedder": _embedder(settings["embedder"], embedder),
        "cache_mb": _positive("cache_mb", settings["cache_mb"], "a size in megabytes"),
        "max_memories": _count("max_memories", settings["max_memories"]),
        "fade_days": None if fade in (None, False) else _positive("fade_days", fade, "a number of days"),
        "redact": _names("redact", settings["redact"]),
        "consolidation": _consolidation(settings),
    }


def _consolidation(settings: Mapping[str, Any]) -> Consolidation | None:
    if settings["mode"] not in ("verbatim", "llm"):
        raise ConfigError('a mode is "verbatim" or "llm"', key="mode", value=settings["mode"])
    if settings["mode"] == "verbatim":
        return None
    if not isinstance(settings["instructions"], str):
        raise ConfigError("instructions are a text", key="instructions", value=settings["instructions"])
    categories = tuple(_names("categories", settings["categories"]))
    return Consolidation(_model(settings["model"]), settings["instructions"], categories)


def _model(setting: object) -> ChatModel:
    from recollect_memory.registry import import_from_string

    model: Any = setting
    if isinstance(setting, str) and ":" in setting and "::" not in setting:
        try:
            model = import_from_string(setting)
        except ConfigError as error:
            error.key = "model"
            raise
        model = model() if isinstance(model, type) else model
    if not isinstance(model, ChatModel):
        problem = 'the mode "llm" needs a model: a ChatModel, or the "module:attribute" of one'
        raise ConfigError(problem, key="model", value=setting)
    return model


def _database(address: object) -> str:
    try:
        if isinstance(address, str):
            path_of(address)
            return address
    except StoreError as error:
        raise ConfigError(str(error), key="database", value=address) from None
    raise ConfigError("a database is an address such as sqlite:///file.db", key="database", value=address)


def _embedder(
    setting: object, given: Embedder | Callable[[], Embedder | None] | None
) -> Embedder | Callable[[], Embedder | None] | None:
    if setting in (False, None, "off", "none"):
        return None
    if setting != "minilm":
        raise ConfigError('an embedder is "minilm", or off', key="embedder", value=setting)
    return given or find_embedder


def _names(key: str, setting: object) -> Sequence[str]:
    if setting in (False, None):
        return ()
    if not isinstance(setting, list | tuple) or not all(isinstance(name, str) for name in setting):  # pyright: ignore[reportUnknownVariableType]
        raise ConfigError("a list of names", key=key, value=setting)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(setting)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _positive(key: str, setting: object, what: str) -> float:
    if isinstance(setting, bool) or not isinstance(setting, int | float) or not setting > 0:
        raise ConfigError(f"{what} is a number above 0", key=key, value=setting)
    return float(setting)


def _count(key: str, setting: object) -> int:
    if isinstance(setting, bool) or not isinstance(setting, int) or setting < 1:
        raise ConfigError("how many is a whole number, at least 1", key=key, value=setting)
    return setting
