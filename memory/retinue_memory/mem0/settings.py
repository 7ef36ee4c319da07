"""What a config entry of any of the three may say, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue_memory.database.base import Database
from retinue_memory.settings import (
    address,
    flag,
    over,
    positive,
)

COMMON: Mapping[str, Any] = {"database": None, "infer": True, "patience": 2.0}
"""`database`: where what mem0 has not confirmed is kept; `infer` and `patience` as `Mem0` takes them."""


def settings_of(
    entry: Mapping[str, Any], own: Mapping[str, Any], *, what: str, database: Database | None
) -> dict[str, Any]:
    """The entry's keys over the defaults `own` and `COMMON`; those of `COMMON` checked. `database`: one that the caller
    shares, used where the entry names none. Raises ConfigError, which names the key and the nearest known one."""
    settings = over({**COMMON, **own}, entry, what)
    flag("infer", settings["infer"])
    positive("patience", settings["patience"], "a number of seconds")
    named = settings["database"]
    settings["database"] = database if named is None else address("database", named)
    return settings
