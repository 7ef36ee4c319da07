"""A lock between processes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from retinue_memory.errors import LockError


class FileLock:
    """A lock on a file, held until `release` or the end of the process. Works on every platform, from any thread.

    The file is an empty SQLite database, and the lock is SQLite's own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Wait up to `timeout_s` for the lock. Returns at once if this object holds it.

        Raises LockError if another holder keeps it, or if the file cannot be created or opened.
        """
        if self._connection is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise LockError(f"{self.path}: {error}") from error
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            connection.close()
            held = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the low byte, without SQLite's extended code
            raise LockError(f"{self.path}: {error}", held=held) from error
        self._connection = connection

    def release(self) -> None:
        """Give the lock up. Does nothing if it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
