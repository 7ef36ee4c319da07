"""SQLite as a server needs it: one writer thread with group commit, readers on their own connections.

Every write that is waiting goes into one transaction and shares its fsync, each inside a savepoint of its own, so that
one that fails undoes nothing but itself. A write is acknowledged after the commit. Readers never wait for the writer (WAL).

Nothing here is tied to an event loop: `write` and `read` may be awaited from any loop, `write_now` and `read_now` called
from any thread.
"""

from __future__ import annotations

import asyncio
import queue
import re
import sqlite3
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

from retinue_memory.errors import StoreError

from .base import Connection, Operation

T = TypeVar("T")


READERS = 2
"""Reader threads: one less than would help nobody on two cores, and reads are short."""
_MOST_IN_ONE_COMMIT = 512
_BUSY_SECONDS = 10.0
_LOG_SECONDS = 2.0
"""How long writes wait for readers to let go of the log, so that it can be cut."""
_CHECKPOINT_PAGES = 4000
"""How long the log grows until it is copied into the file: 16 MB, in which a page that many commits change is copied once."""
_MIGRATION = re.compile(r"(\d{3})_\w+\.sql")


def named_queries(text: str) -> dict[str, str]:
    """The statements of a `.sql` file by name: each starts at a line `-- name: the_name`; other comments are kept."""
    parts = re.split(r"^-- name: (\w+)[^\n]*\n", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def path_of(url: str) -> Path:
    """The file of a `sqlite:///file.db` address; relative to the working directory unless it has a fourth slash."""
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise StoreError(f"{url!r} is not a SQLite address: write sqlite:///file.db, or sqlite:////absolute/file.db")
    return Path(url.removeprefix("sqlite:///"))


def hold(path: Path, seconds: float = 0.0) -> sqlite3.Connection:
    """A lock between processes on the file `path`, held until the connection is closed or its process ends, on any system.

    It is SQLite's own, on an empty database. Waits up to `seconds`. Raises sqlite3.OperationalError: another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(path, timeout=seconds, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise
    return lock


class SQLiteDatabase:
    """One SQLite file: `await db.write(operation)` and `await db.read(operation)`, where an operation gets the connection.

    Opens at the first use. Raises StoreError where the file cannot be opened, is not a database or is full; what an
    operation itself raises comes back as it is.
    """

    def __init__(self, path: Path | str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        self.path = Path(path)
        self._synchronous = synchronous
        self._lock = threading.Lock()
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._closed = False
        self.scrubbed = False
        """Whether the last `scrub` succeeded; False before the first: what an earlier process left is not known."""

    async def write(self, operation: Operation[T], *, checked: bool = False, owed: bool = False) -> T:
        """Run `operation` in the next commit; its result is returned once that commit is on disk.

        `checked` promises that it raises only before it has written anything. It needs no savepoint then, which costs as
        much as a statement or two; where it breaks the promise, all that share its commit are undone and told.

        `owed` says that it carries out what a row on disk asks for, and takes that row away: if the power fails, both are
        undone, and it is done again. So its commit need not be flushed; it is with the next that must be.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Write(operation, future, loop, checked=checked, owed=owed))
        return await future

    def write_now(self, operation: Operation[T]) -> T:
        """`write` for threads without an event loop."""
        future: Future[T] = Future()
        self._submit(_Write(operation, future, None))
        return future.result()

    async def read(self, operation: Operation[T]) -> T:
        """Run `operation` on a reader's connection, off the event loop. It sees every write acknowledged before."""
        return await asyncio.wrap_future(self._reading().submit(self._read, operation))

    def read_now(self, operation: Operation[T]) -> T:
        """`read` on the calling thread, with a connection of that thread's own."""
        self._reading()
        return self._read(operation)

    async def scrub(self) -> str | None:
        """Leave nothing in the files of what was deleted and committed before: None, or in words what may still hold it.

        `secure_delete` zeroes what a row occupied, but not the copies that SQLite leaves in a page when it moves rows to
        another. So the file is written anew (6 to 30 s a GB, in which writes wait and reads do not, and as much again of the
        disk is needed), and the log cut to nothing. Calls that wait at the same time share the work.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str | None] = loop.create_future()
        self._submit(_Write(_scrub_follows, future, loop, scrub=True))
        return await future

    def migrate(self, component: str, folder: Traversable) -> int:
        """Bring `component` up to the newest `NNN_what_it_does.sql` of `folder`; the version it is at afterwards.

        Each migration is one transaction. Raises StoreError where the file is newer than this program.
        """
        files = sorted(
            (int(found[1]), entry) for entry in folder.iterdir() if (found := _MIGRATION.fullmatch(entry.name))
        )

        def version(db: Connection) -> int:
            db.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"
            )
            row = db.execute("SELECT version FROM schema_version WHERE component = ?", (component,)).fetchone()
            return int(row[0]) if row else 0

        current = self.write_now(version)
        newest = files[-1][0] if files else 0
        if current > newest:
            raise StoreError(
                f"{self.path} was written by a newer Retinue (its {component} tables are version {current}, this "
                f"program knows {newest}): upgrade Retinue, or use another file"
            )
        for number, entry in files:
            if number > current:
                self.write_now(partial(_apply, entry.read_text(encoding="utf-8"), component, number))
        return newest

    async def aclose(self) -> None:
        """Finish the waiting writes, then close every connection."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """`aclose` for threads without an event loop. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            writer, readers = self._writer, self._readers
        if readers is not None:
            readers.shutdown(wait=True)
        if writer is not None:
            self._writes.put(None)
            writer.join()
        for connection in self._connections:
            connection.close()

    # -- the rim ------------------------------------------------------------------------------------------------------

    def _submit(self, write: _Write) -> None:
        with self._lock:
            self._refuse_if_closed()
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_forever, name="sqlite-writer", daemon=True)
                self._writer.start()
            self._writes.put(write)

    def _reading(self) -> ThreadPoolExecutor:
        with self._lock:
            self._refuse_if_closed()
            if self._readers is None:
                self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")
            return self._readers

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed")

    def _read(self, operation: Operation[T]) -> T:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
            return operation(connection)
        except Exception as error:
            _let_go(error)
            if isinstance(error, sqlite3.Error):
                raise self._explain(error) from error
            raise

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchone()
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        with self._lock:
            self._connections.append(connection)
        return connection

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            self._connections.remove(connection)
        connection.close()

    def _scrub(self) -> str | None:
        """On a connection of its own: on one with a statement half read, the file cannot be written anew."""
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            connection.execute("VACUUM")
            connection.execute(f"PRAGMA busy_timeout = {_LOG_SECONDS * 1000:.0f}")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return f"{self.path.name}-wal, which a reader holds open: end it and erase again" if busy else None
        except (sqlite3.Error, OSError) as error:
            return f"unused space in {self.path.name} ({error}): {_advice(error)}, and erase again"
        finally:
            if connection is not None:
                self._disconnect(connection)

    def _explain(self, error: Exception) -> StoreError:
        return StoreError(f"{self.path}: {error}. {_advice(error)}")

    def _write_forever(self) -> None:
        connection: sqlite3.Connection | None = None
        running, flushed = True, True
        while running:
            batch: list[_Write] = []
            write = self._writes.get()
            while write is not None:
                batch.append(write)
                if len(batch) >= _MOST_IN_ONE_COMMIT or self._writes.empty():
                    break
                write = self._writes.get()
            running = write is not None
            try:
                if batch:
                    connection = connection or self._connect()
                    if flushed != (must := not all(write.owed for write in batch)):
                        connection.execute(f"PRAGMA synchronous = {self._synchronous if must else 'NORMAL'}")
                        flushed = must
                    _commit(connection, batch)
            except (sqlite3.Error, OSError) as error:
                if connection is not None and connection.in_transaction:
                    connection.execute("ROLLBACK")
                explained = self._explain(error)
                for write in batch:
                    write.error = write.error or explained
            scrubs = [write for write in batch if write.scrub and write.error is None]
            _acknowledge([write for write in batch if write not in scrubs])
            if scrubs:
                left = self._scrub()
                self.scrubbed = left is None
                for write in scrubs:
                    write.result = left
                _acknowledge(scrubs)


@dataclass(slots=True, eq=False)
class _Write:
    """An operation that waits for its commit, and who waits for it: a future of `loop`, or of no loop."""

    operation: Operation[Any]
    future: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None
    checked: bool = False
    """Raises before it writes, or not at all."""
    owed: bool = False
    """Is done again if its commit is lost with the power."""
    scrub: bool = False
    """Wants `_scrub` after the commit."""
    result: Any = None
    error: Exception | None = None

    def settle(self) -> None:
        if self.future.done():
            return  # whoever waited was cancelled
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


def _let_go(error: Exception) -> None:
    """Drop what the frames of a failed operation hold: a statement half read pins the log for as long as the error is kept."""
    traceback.clear_frames(error.__traceback__)


def _scrub_follows(_: Connection) -> None:
    """Nothing to commit: what is to be scrubbed was committed before."""


def _commit(connection: sqlite3.Connection, batch: list[_Write]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if len(batch) == 1:
        return _commit_one(connection, batch[0])
    for write in batch:
        if write.checked:
            _run_checked(connection, write)
            continue
        connection.execute("SAVEPOINT one")
        try:
            write.result = write.operation(connection)
        except sqlite3.OperationalError:
            raise  # the disk, not the operation: the whole group is undone and told
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            _let_go(error)
            connection.execute("ROLLBACK TO one")
            write.error = error
        connection.execute("RELEASE one")
    connection.execute("COMMIT")


def _run_checked(connection: sqlite3.Connection, write: _Write) -> None:
    changes = connection.total_changes
    try:
        write.result = write.operation(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:
        _let_go(error)
        write.error = error
        if connection.total_changes != changes:
            raise sqlite3.InternalError(f"a write failed half way ({error})") from error


def _commit_one(connection: sqlite3.Connection, write: _Write) -> None:
    """The same without a savepoint: where one fails, nothing else has to stay."""
    try:
        write.result = write.operation(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
        _let_go(error)
        connection.execute("ROLLBACK")
        write.error = error
    else:
        connection.execute("COMMIT")


def _acknowledge(batch: list[_Write]) -> None:
    """Tell those who wait; a loop is woken once, however many of its writes are done."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        if loop is None:
            _settle(writes)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_settle, writes)


def _settle(writes: list[_Write]) -> None:
    for write in writes:
        write.settle()


def _apply(script: str, component: str, number: int, db: Connection) -> None:
    row = db.execute("SELECT version FROM schema_version WHERE component = ?", (component,)).fetchone()
    if row is not None and row[0] >= number:
        return  # somebody else was quicker: several open the same file at once
    for statement in _statements(script):
        db.execute(statement)
    db.execute("INSERT OR REPLACE INTO schema_version (component, version) VALUES (?, ?)", (component, number))


def _statements(script: str) -> list[str]:
    """The statements of a script, split where SQLite itself says that one is complete (`executescript` would commit)."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found


def _advice(error: Exception) -> str:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return "The file is left as it is: restore a backup, or name another file"
    if "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        return "Make the file and its folder writable, or name another file"
    if "unable to open" in text or isinstance(error, OSError):
        return "Check that the folder exists and may be written"
    if "locked" in text:
        return "Another process holds the file: stop it, or name another file"
    if "full" in text:
        return "Free space on the disk"
    return "Check the file and the disk"
