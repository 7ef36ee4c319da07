"""SQLite as a server needs it: one writer thread with group commit, readers on their own connections.

All waiting writes go into one transaction and share its fsync, each inside a savepoint of its own, so that one that fails
undoes nothing but itself. A write is acknowledged after the commit. Readers never wait for the writer (WAL).

Nothing here belongs to an event loop: `write` and `read` may be awaited on any loop, `write_now` and `read_now` called from
any thread.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

from retinue_memory.errors import LockError, StoreError

from . import migrations
from .base import Connection, Operation
from .file_lock import FileLock

T = TypeVar("T")

IN_MEMORY = ":memory:"
READER_THREADS = 2  # more gain nothing on two cores; one would make short reads wait for long ones
_MAX_WRITES_PER_COMMIT = 512
_BUSY_TIMEOUT_S = 10.0
_CHECKPOINT_TIMEOUT_S = 2.0
_CHECKPOINT_PAGES = 4000  # 16 MB of log: a page that many commits change is copied into the file once


class SQLiteDatabase:
    """One SQLite file, opened at the first use. Implements `Database`.

    Raises StoreError if the file cannot be opened, is not a database, or the disk is full. The path `:memory:` is a database
    in the memory of this process, which has one connection: its reads wait for its writes.
    """

    def __init__(self, path: Path | str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        self.path = Path(path)
        self.scrubbed = False
        self._file = _File(self.path, synchronous)
        self._in_memory = str(path) == IN_MEMORY
        self._server_lock = FileLock(self.path.with_name(f"{self.path.name}.lock"))
        self._lock = threading.Lock()
        self._writer: _Writer | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._closed = False

    async def write(self, operation: Operation[T], *, checked: bool = False, flush: bool = True) -> T:
        """As `Database.write`. A `checked` operation that breaks its promise undoes all writes of its commit.

        Omitting a savepoint saves as much as one or two statements.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Write(operation, future, loop, checked=checked, flush=flush))
        return await future

    def write_now(self, operation: Operation[T]) -> T:
        future: Future[T] = Future()
        self._submit(_Write(operation, future, None))
        return future.result()

    async def read(self, operation: Operation[T]) -> T:
        if self._in_memory:
            return await self.write(operation)
        return await asyncio.wrap_future(self._reader_pool().submit(self._read, operation))

    def read_now(self, operation: Operation[T]) -> T:
        """Run `operation` on the calling thread, on a connection of that thread."""
        if self._in_memory:
            return self.write_now(operation)
        self._reader_pool()
        return self._read(operation)

    async def scrub(self) -> str | None:
        """As `Database.scrub`. Concurrent calls share the work.

        `secure_delete` zeroes the place of a deleted row, but not the copies that SQLite leaves in a page when it moves rows to
        another. So the file is rewritten and the log truncated: 6 to 30 s a GB, during which writes wait and reads do not, and
        as much again of the disk.
        """
        if self._in_memory:
            return None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str | None] = loop.create_future()
        self._submit(_Write(_no_operation, future, loop, scrub=True))
        return await future

    def migrate(self, component: str, folder: Traversable) -> int:
        return migrations.migrate(self, component, folder, name=str(self.path))

    def acquire_server_lock(self) -> None:
        """As `Database.acquire_server_lock`: one server at a time, for two would run the same turns."""
        if self._in_memory:
            return
        try:
            self._server_lock.acquire()
        except LockError as error:
            if error.held:
                raise StoreError(
                    f"{self.path}: another server uses it: stop that server, or configure another database"
                ) from error
            raise StoreError(f"{self.path}: cannot be locked ({error}): make its folder writable") from error

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `Database.close`. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            writer, readers = self._writer, self._readers
        if readers is not None:
            readers.shutdown(wait=True)
        if writer is not None:
            writer.stop()
        self._file.close()
        self._server_lock.release()

    def _submit(self, write: _Write) -> None:
        with self._lock:
            self._refuse_if_closed()
            if self._writer is None:
                self._writer = _Writer(self._file, self._scrub)
            self._writer.put(write)

    def _reader_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            self._refuse_if_closed()
            if self._readers is None:
                self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="sqlite-reader")
            return self._readers

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed")

    def _read(self, operation: Operation[T]) -> T:
        """Run `operation` in a read transaction, which costs 1.3 us."""
        connection: sqlite3.Connection | None = None
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._file.connect()
            connection.execute("BEGIN")
            return operation(connection)
        except Exception as error:
            _release_frames(error)
            if isinstance(error, sqlite3.Error):
                raise self._file.explain(error) from error
            raise
        finally:
            if connection is not None and connection.in_transaction:
                connection.execute("COMMIT")

    def _scrub(self) -> str | None:
        left = self._file.scrub()
        self.scrubbed = left is None
        return left


class _File:
    """The file and all connections to it."""

    def __init__(self, path: Path, synchronous: Literal["FULL", "NORMAL"]) -> None:
        self.path = path
        self.synchronous = synchronous
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []

    def connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute(f"PRAGMA synchronous = {self.synchronous}")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchone()
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        with self._lock:
            self._connections.append(connection)
        return connection

    def scrub(self) -> str | None:
        """Rewrite the file and truncate its log. Returns a description of what may still hold deleted rows, or None.

        On a connection of its own: VACUUM fails on one with an unfinished statement.
        """
        connection: sqlite3.Connection | None = None
        try:
            connection = self.connect()
            connection.execute("VACUUM")
            connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_TIMEOUT_S * 1000:.0f}")
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return f"{self.path.name}-wal, which a reader holds open: end it and erase again" if busy else None
        except (sqlite3.Error, OSError) as error:
            return f"unused space in {self.path.name} ({error}): {_advice(error)}, and erase again"
        finally:
            if connection is not None:
                self._disconnect(connection)

    def explain(self, error: Exception) -> StoreError:
        return StoreError(f"{self.path}: {error}. {_advice(error)}")

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _disconnect(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            self._connections.remove(connection)
        connection.close()


@dataclass(slots=True, eq=False)
class _Write:
    """An operation that waits for its commit, and the future of its caller, which belongs to `loop` or to no loop."""

    operation: Operation[Any]
    future: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None
    checked: bool = False
    flush: bool = True
    scrub: bool = False
    """Whether it waits for a scrub that follows the commit."""
    result: Any = None
    error: Exception | None = None

    def resolve(self) -> None:
        if self.future.done():
            return  # the caller was cancelled
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class _Writer:
    """The thread that commits writes, as many at once as are waiting."""

    def __init__(self, file: _File, scrub: Callable[[], str | None]) -> None:
        self._file = file
        self._scrub = scrub
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._flushes = True
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def put(self, write: _Write) -> None:
        self._waiting.put(write)

    def stop(self) -> None:
        """Finish the waiting writes and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch: list[_Write] = []
            write = self._waiting.get()
            while write is not None:
                batch.append(write)
                if len(batch) >= _MAX_WRITES_PER_COMMIT or self._waiting.empty():
                    break
                write = self._waiting.get()
            running = write is not None
            if not batch:
                continue
            try:
                self._commit(batch)
            except (sqlite3.Error, OSError) as error:
                if self._connection is not None and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                explained = self._file.explain(error)
                for write in batch:
                    write.error = write.error or explained
            scrubs = [write for write in batch if write.scrub and write.error is None]
            _acknowledge([write for write in batch if write not in scrubs])
            if scrubs:
                left = self._scrub()
                for write in scrubs:
                    write.result = left
                _acknowledge(scrubs)

    def _commit(self, batch: list[_Write]) -> None:
        connection = self._connection = self._connection or self._file.connect()
        if self._flushes != (flush := any(write.flush for write in batch)):
            connection.execute(f"PRAGMA synchronous = {self._file.synchronous if flush else 'NORMAL'}")
            self._flushes = flush
        connection.execute("BEGIN IMMEDIATE")
        if len(batch) == 1:
            return _commit_one(connection, batch[0])
        for write in batch:
            if write.checked:
                _run_checked(connection, write)
            else:
                _run_in_savepoint(connection, write)
        connection.execute("COMMIT")


def _commit_one(connection: sqlite3.Connection, write: _Write) -> None:
    """Run a write that shares its commit with no other, so it needs no savepoint."""
    try:
        write.result = write.operation(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:  # noqa: BLE001 - passed on to the caller
        _release_frames(error)
        connection.execute("ROLLBACK")
        write.error = error
    else:
        connection.execute("COMMIT")


def _run_in_savepoint(connection: sqlite3.Connection, write: _Write) -> None:
    connection.execute("SAVEPOINT one")
    try:
        write.result = write.operation(connection)
    except sqlite3.OperationalError:
        raise  # the disk failed, not the operation: the whole commit is undone
    except Exception as error:  # noqa: BLE001 - passed on to the caller
        _release_frames(error)
        connection.execute("ROLLBACK TO one")
        write.error = error
    connection.execute("RELEASE one")


def _run_checked(connection: sqlite3.Connection, write: _Write) -> None:
    changes = connection.total_changes
    try:
        write.result = write.operation(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:
        _release_frames(error)
        write.error = error
        if connection.total_changes != changes:
            raise sqlite3.InternalError(f"a checked write failed after its first change ({error})") from error


def _release_frames(error: Exception) -> None:
    """Drop the locals of a failed operation: an unfinished statement among them would pin the log as long as the error lives."""
    traceback.clear_frames(error.__traceback__)


def _no_operation(_: Connection) -> None:
    """Write nothing: a scrub works on what was committed before."""


def _acknowledge(batch: list[_Write]) -> None:
    """Resolve the futures, waking each event loop once however many of its writes are done."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        if loop is None:
            _resolve(writes)
        else:
            with suppress(RuntimeError):  # the loop is closed, its callers are gone
                loop.call_soon_threadsafe(_resolve, writes)


def _resolve(writes: list[_Write]) -> None:
    for write in writes:
        write.resolve()


def _advice(error: Exception) -> str:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return "The file is left as it is: restore a backup, or configure another file"
    if "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        return "Make the file and its folder writable, or configure another file"
    if "unable to open" in text or isinstance(error, OSError):
        return "Check that the folder exists and is writable"
    if "locked" in text:
        return "Another process holds the file: stop it, or configure another file"
    if "full" in text:
        return "Free space on the disk"
    return "Check the file and the disk"
