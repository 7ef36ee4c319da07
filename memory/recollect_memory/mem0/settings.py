"""What a config entry of any of the three may say, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recollect_memory.errors import ConfigError, StoreError
from recollect_memory.sqlite import Database, path_of

COMMON: Mapping[str, Any] = {"database": None, "infer": True, "patience": 2.0}
"""`database`: where what mem0 has not confirmed is kept; `infer` and `patience` as `Mem0` takes them."""


def settings_of(
    entry: Mapping[str, Any], own: Mapping[str, Any], *, what: str, database: Database | None
) -> dict[str, Any]:
    """The entry's keys over the defaults `own` and `COMMON`; those of `COMMON` checked. `database`: one that the caller
    shares, used where the entry names none. Raises ConfigError, which names the key and the nearest known one."""
    from recollect_memory.registry import nearest

    known = {**COMMON, **own}
    for key, value in entry.items():
        if key not in known:
            near = nearest(key, known) or f" (it has {', '.join(known)})"
            raise ConfigError(f"{what} has no setting {key!r}{near}", key=key, value=value)
    settings = {**known, **entry}
    flag("infer", settings["infer"])
    positive("patience", settings["patience"], "a number of seconds")
    settings["database"] = _database(settings["database"]) or database
    return settings


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


def _database(address: object) -> str | None:
    if address is None:
        return None
    try:
        if isinstance(address, str):
            path_of(address)
            return address
    except StoreError as error:
        raise ConfigError(str(error), key="database", value=address) from None
    raise ConfigError("a database is an address such as sqlite:///file.db", key="database", value=address)
