"""Addresses of databases."""

from __future__ import annotations

from pathlib import Path

from retinue_memory.errors import StoreError

from .base import Database
from .sqlite import IN_MEMORY, SQLiteDatabase

_SQLITE = "sqlite:///"
IN_MEMORY_URL = f"{_SQLITE}{IN_MEMORY}"


def open_database(url: str) -> Database:
    """The database at `sqlite:///file.db`; nothing is connected or created before its first use.

    The path is relative to the working directory unless it has a fourth slash. Raises StoreError if `url` is not an address.
    """
    return SQLiteDatabase(_path(url))


def check_url(url: str) -> None:
    """Raise StoreError if `url` is not the address of a database."""
    _path(url)


def _path(url: str) -> Path:
    path = url.removeprefix(_SQLITE)
    if not path or path == url:
        raise StoreError("expected sqlite:///file.db, or sqlite:////absolute/file.db")  # not what was found: a password
    return Path(path)
