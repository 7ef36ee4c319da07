"""Care for SQLite files that another library keeps and has connected to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from retinue_memory.errors import StoreError

from .base import Connection


def zero_deleted(connections: Iterable[Connection]) -> None:
    """Have SQLite overwrite with zeros what is deleted from now on."""
    for connection in connections:
        connection.execute("PRAGMA secure_delete = ON")


def vacuum(connections: Iterable[Connection]) -> None:
    """Rewrite the files without what was deleted, which takes as much of the disk again. Blocks; raises StoreError."""
    try:
        for connection in connections:
            connection.execute("VACUUM")
    except sqlite3.Error as error:
        raise StoreError(str(error)) from error
