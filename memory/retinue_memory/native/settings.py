"""The settings of the native memory in a config entry, checked and made into what `NativeMemory` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue_memory.chat import EmbedderSource
from retinue_memory.errors import ConfigError
from retinue_memory.settings import (
    address,
    model,
    over,
    positive,
)

from . import redaction
from .consolidation import Consolidation
from .embedder import find_embedder

DEFAULT_DATABASE = "sqlite:///var/retinue.db"
_SETTINGS: Mapping[str, Any] = {
    "database": DEFAULT_DATABASE,
    "embedder": "minilm",
    "cache_mb": 256,
    "max_memories": 100_000,
    "fade_days": None,
    "redact": redaction.DEFAULT,
    "mode": "verbatim",
    "model": None,
    "instructions": "",
    "categories": (),
}


def settings_of(entry: Mapping[str, Any], embedder: EmbedderSource) -> dict[str, Any]:
    """From the keys `database`, `embedder` ("minilm" or off), `cache_mb`, `max_memories`, `fade_days`, `redact` (a list),
    `mode` ("verbatim" or "llm"), and for the latter `model` (a `ChatModel` or its "module:attr"), `instructions` and
    `categories`. Raises ConfigError, which names the key."""
    settings = over(_SETTINGS, entry, "the native memory")
    fade = settings["fade_days"]
    return {
        "database": address("database", settings["database"]),
        "embedder": _embedder(settings["embedder"], embedder),
        "cache_mb": positive("cache_mb", settings["cache_mb"], "a size in megabytes"),
        "max_memories": _count("max_memories", settings["max_memories"]),
        "fade_days": None if fade in (None, False) else positive("fade_days", fade, "a number of days"),
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
    if settings["model"] is None:
        raise ConfigError('the mode "llm" needs a model: a ChatModel, or the "module:attribute" of one', key="model")
    return Consolidation(model("model", settings["model"]), settings["instructions"], categories)


def _embedder(setting: object, given: EmbedderSource) -> EmbedderSource:
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


def _count(key: str, setting: object) -> int:
    if isinstance(setting, bool) or not isinstance(setting, int) or setting < 1:
        raise ConfigError("how many is a whole number, at least 1", key=key, value=setting)
    return setting
