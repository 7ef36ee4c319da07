"""What the settings of a memory's config entry may be, checked. Every check raises ConfigError, which names the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .chat import ChatModel
from .database.url import check_url
from .errors import ConfigError, StoreError
from .registry import import_from_string, nearest


def over(defaults: Mapping[str, Any], entry: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The entry's keys over the defaults of all that there are; an unknown one is told with the nearest."""
    for key, value in entry.items():
        if key not in defaults:
            near = nearest(key, defaults) or f" (it has {', '.join(defaults)})"
            raise ConfigError(f"{what} has no setting {key!r}{near}", key=key, value=value)
    return {**defaults, **entry}


def flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError("true or false", key=key, value=value)
    return value


def positive(key: str, value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{what} is a number above 0", key=key, value=value)
    return float(value)


def text(key: str, value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{what} is a text", key=key, value=value)
    return value


def address(key: str, value: object) -> str:
    """The address of a database."""
    try:
        if isinstance(value, str):
            check_url(value)
            return value
    except StoreError as error:
        raise ConfigError(str(error), key=key, value=value) from None
    raise ConfigError("a database is an address such as sqlite:///file.db", key=key, value=value)


def model(key: str, value: object) -> ChatModel:
    """A `ChatModel`, or the one that a "module:attribute" names."""
    found: Any = value
    if isinstance(value, str) and ":" in value and "::" not in value:
        try:
            found = import_from_string(value)
        except ConfigError as error:
            error.key = key
            raise
        found = found() if isinstance(found, type) else found
    if not isinstance(found, ChatModel):
        raise ConfigError('a model is a ChatModel, or the "module:attribute" of one', key=key, value=value)
    return found
