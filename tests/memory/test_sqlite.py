"""The SQLite writer and its readers, migrations, addresses and file locks."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from retinue_memory.database.base import Connection, Operation
from retinue_memory.database.file_lock import FileLock
from retinue_memory.database.migrations import named_queries
from retinue_memory.database.sqlite import READER_THREADS, SQLiteDatabase
from retinue_memory.database.url import IN_MEMORY_URL, open_database
from retinue_memory.errors import LockError, StoreError


def create(db: Connection) -> None:
    db.execute("CREATE TABLE t (x INTEGER UNIQUE) STRICT")


def insert(value: int, db: Connection) -> int:
    db.execute("INSERT INTO t VALUES (?)", (value,))
    return value


async def values(database: SQLiteDatabase) -> list[int]:
    return [x for (x,) in await database.read(lambda db: db.execute("SELECT x FROM t ORDER BY x").fetchall())]


async def test_writes_of_one_commit_fail_separately(database: SQLiteDatabase) -> None:
    """Each write gets its own result or error; the others are committed."""
    await database.write(create)
    numbers = [1, 2, 2, 3, 1, 4]
    done = await asyncio.gather(*(database.write(partial(insert, n)) for n in numbers), return_exceptions=True)
    assert [type(one) for one in done] == [int, int, sqlite3.IntegrityError, int, sqlite3.IntegrityError, int]
    assert await values(database) == [1, 2, 3, 4]


async def test_a_write_that_fails_midway_leaves_nothing(database: SQLiteDatabase) -> None:
    """It is undone, and its exception passed on."""
    await database.write(create)

    def half(db: Connection) -> None:
        insert(1, db)
        raise KeyError("midway")

    with pytest.raises(KeyError, match="midway"):
        await database.write(half)
    assert await values(database) == []


async def test_a_checked_write_that_refuses_leaves_the_others_alone(database: SQLiteDatabase) -> None:
    """It raises before it writes, so it needs no savepoint."""
    await database.write(create)

    def refuse(db: Connection) -> int:
        raise KeyError("refused")

    writes: list[Operation[int]] = [partial(insert, 1), refuse, partial(insert, 2)]
    done = await asyncio.gather(*(database.write(one, checked=True) for one in writes), return_exceptions=True)
    assert [type(one) for one in done] == [int, KeyError, int]
    assert await values(database) == [1, 2]


async def test_a_checked_write_that_breaks_its_promise_undoes_its_commit(database: SQLiteDatabase) -> None:
    """No write of that commit is acknowledged; later writes succeed."""
    await database.write(create)

    def half(db: Connection) -> int:
        insert(3, db)
        raise KeyError("midway")

    writes: list[Operation[int]] = [partial(insert, 1), half, partial(insert, 2)]
    done = await asyncio.gather(*(database.write(one, checked=True) for one in writes), return_exceptions=True)
    kept = await values(database)
    assert 3 not in kept
    assert [one for one in done if isinstance(one, int)] == kept
    await database.write(partial(insert, 4), checked=True)
    assert await values(database) == [*kept, 4]


def flushed(db: Connection) -> tuple[int, int]:
    """Insert the next number. Returns it and the `synchronous` mode of its commit: 2 is FULL, 1 NORMAL."""
    ((mode,),) = db.execute("PRAGMA synchronous").fetchall()
    return insert(db.execute("SELECT coalesce(max(x), 0) + 1 FROM t").fetchone()[0], db), mode


async def test_only_commits_that_need_no_flush_are_not_flushed(tmp_path: Path) -> None:
    """A commit is flushed if one of its writes needs it. All writes are readable at once."""
    database = SQLiteDatabase(tmp_path / "x.db")
    await database.write(create)
    assert (await database.write(flushed))[1] == 2
    assert (await database.write(flushed, flush=False))[1] == 1
    assert (await database.write(flushed, flush=False))[1] == 1
    assert (await database.write(flushed))[1] == 2
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        entered.set()
        assert go_on.wait(20)

    holding = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(entered.wait, 20)
    together = [asyncio.create_task(database.write(flushed, flush=flush)) for flush in (False, True, False)]
    await asyncio.sleep(0)
    go_on.set()
    await holding
    assert [mode for _, mode in await asyncio.gather(*together)] == [2, 2, 2]
    assert await values(database) == list(range(1, 8))
    await database.aclose()


async def test_a_read_sees_what_was_acknowledged(database: SQLiteDatabase) -> None:
    """Every write acknowledged before, on every event loop and thread."""
    await database.write(create)
    for number in range(20):
        await database.write(partial(insert, number))
        assert (await values(database))[-1] == number
        assert await asyncio.to_thread(database.read_now, lambda db: db.execute("SELECT max(x) FROM t").fetchone()) == (
            number,
        )


async def test_a_read_is_one_snapshot(database: SQLiteDatabase) -> None:
    """Its statements see nothing of what is written between them; the next read does."""
    await database.write(create)
    entered, go_on = threading.Event(), threading.Event()

    def count_twice(db: Connection) -> tuple[int, int]:
        first = db.execute("SELECT count(*) FROM t").fetchone()[0]
        entered.set()
        assert go_on.wait(20)
        return first, db.execute("SELECT count(*) FROM t").fetchone()[0]

    async def read_on_a_thread(operation: Operation[tuple[int, int]]) -> tuple[int, int]:
        return await asyncio.to_thread(database.read_now, operation)

    reads: list[Callable[[Operation[tuple[int, int]]], Awaitable[tuple[int, int]]]] = [database.read, read_on_a_thread]
    for number, read in enumerate(reads):
        reading = asyncio.ensure_future(read(count_twice))
        assert await asyncio.to_thread(entered.wait, 20)
        await database.write(partial(insert, number))
        go_on.set()
        assert await reading == (number, number)
        assert len(await values(database)) == number + 1
        entered.clear()
        go_on.clear()


async def test_a_read_that_fails_leaves_its_connection_usable(database: SQLiteDatabase) -> None:
    """Also if it fails between two rows. SQLite's errors become StoreError; others are passed on."""
    await database.write(create)
    await asyncio.gather(*(database.write(partial(insert, number)) for number in range(5)))

    def fail(db: Connection) -> None:
        for (x,) in db.execute("SELECT x FROM t"):
            raise KeyError(x)

    for _ in range(READER_THREADS + 1):
        with pytest.raises(KeyError):
            await database.read(fail)
        with pytest.raises(StoreError, match="no such table"):
            await database.read(lambda db: db.execute("SELECT x FROM nowhere"))
        assert len(await values(database)) == 5


async def test_a_database_in_memory_is_read_as_any_other() -> None:
    """On the event loop and on threads. It has no file to scrub or to lock."""
    database = open_database(IN_MEMORY_URL)
    database.acquire_server_lock()
    await database.write(create)
    await asyncio.gather(*(database.write(partial(insert, number)) for number in range(5)))

    def count(db: Connection) -> int:
        return int(db.execute("SELECT count(*) FROM t").fetchone()[0])

    assert (await database.read(count), await asyncio.to_thread(database.read_now, count)) == (5, 5)
    assert await database.scrub() is None
    await database.aclose()


HOLD = """
import sys
from pathlib import Path
from retinue_memory.database.file_lock import FileLock
FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    """The error says whether another holder has it. A killed holder releases it."""
    lock = FileLock(tmp_path / "folder" / "x.lock")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockError, match="locked") as refused:
            lock.acquire()
        assert refused.value.held
        holder.kill()
        holder.wait(20)
    lock.acquire(timeout_s=20)
    lock.acquire()
    other = FileLock(lock.path)
    with pytest.raises(LockError) as refused:
        other.acquire()
    assert refused.value.held
    lock.release()
    other.acquire()
    other.release()
    other.release()
    with pytest.raises(LockError, match=r"unable to open|Not a directory|File exists") as refused:
        FileLock(lock.path / "x.lock").acquire()
    assert not refused.value.held


async def test_migrations_run_once_and_whole(database: SQLiteDatabase, tmp_path: Path) -> None:
    """In order, each in one transaction. A failing one leaves the version before it; a newer file is refused."""
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "queries.sql").write_text("-- name: x\nSELECT 1", encoding="utf-8")
    (folder / "001_first.sql").write_text("CREATE TABLE t (x INTEGER);\nINSERT INTO t VALUES (1);\n", encoding="utf-8")
    for _ in range(2):
        assert await asyncio.to_thread(database.migrate, "part", folder) == 1
    (folder / "002_second.sql").write_text(
        "INSERT INTO t VALUES (2);\nINSERT INTO nowhere VALUES (3);\n", encoding="utf-8"
    )
    with pytest.raises(StoreError, match="nowhere"):
        await asyncio.to_thread(database.migrate, "part", folder)
    assert await values(database) == [1]
    (folder / "002_second.sql").write_text("INSERT INTO t VALUES (2);\n", encoding="utf-8")
    assert await asyncio.to_thread(database.migrate, "part", folder) == 2
    assert await values(database) == [1, 2]
    (folder / "002_second.sql").unlink()
    with pytest.raises(StoreError, match="newer Retinue"):
        await asyncio.to_thread(database.migrate, "part", folder)


async def test_closing_finishes_what_waits(tmp_path: Path) -> None:
    """Writes submitted before are on disk; later ones are refused."""
    database = SQLiteDatabase(tmp_path / "x.db")
    await database.write(create)
    waiting = [asyncio.ensure_future(database.write(partial(insert, n))) for n in range(50)]
    await asyncio.sleep(0)
    await database.aclose()
    assert await asyncio.gather(*waiting) == list(range(50))
    with pytest.raises(StoreError, match="closed"):
        await database.write(create)
    again = SQLiteDatabase(tmp_path / "x.db")
    assert await values(again) == list(range(50))
    await again.aclose()


def test_named_queries_and_addresses() -> None:
    """Statements by name; the file of an address."""
    text = "-- about the file\n-- name: one\nSELECT 1\n\n-- name: two (of two)\n-- why\nSELECT 2\n"
    assert named_queries(text) == {"one": "SELECT 1", "two": "-- why\nSELECT 2"}
    for url, path in (("sqlite:///a/b.db", Path("a/b.db")), ("sqlite:////a/b.db", Path("/a/b.db"))):
        database = open_database(url)
        assert isinstance(database, SQLiteDatabase)
        assert database.path == path
    for bad in ("", "x.db", "sqlite://x.db", "sqlite:///", "postgresql://host/db"):
        with pytest.raises(StoreError, match="sqlite:///"):
            open_database(bad)


def fill(seed: int, db: Connection) -> None:
    """Insert rows of seven names in an order that makes SQLite split pages and move rows."""
    rng = random.Random(seed)
    db.execute(f"CREATE TABLE t{seed} (k TEXT, v TEXT, UNIQUE (v, k))")
    for number in range(500):
        name = rng.choice(["heron", *"abcdef"])
        db.execute(
            f"INSERT INTO t{seed} VALUES (?, ?)", (f"{name} {number}", f"{name} tells" + "x" * rng.randrange(60))
        )
    db.execute(f"DELETE FROM t{seed} WHERE k LIKE 'heron%'")


async def test_scrubbing_leaves_no_copy_behind(database: SQLiteDatabase) -> None:
    """SQLite zeroes the place of a deleted row, but not the copies it left when it moved the row to another page: with 3.40,
    three of these eight tables have some. Only a rewritten file has none."""
    for seed in range(8):
        await database.write(partial(fill, seed))
    assert await database.scrub() is None
    assert [file.name for file in database.path.parent.glob("test.db*") if b"heron" in file.read_bytes()] == []
    assert await database.read(lambda db: db.execute("SELECT count(*) > 400 FROM t7").fetchone()) == (1,)


async def test_scrubbing_amid_writes_loses_nothing(database: SQLiteDatabase) -> None:
    """Concurrent scrubs all return; concurrent writes are stored; deleted rows are in no file."""
    await database.write(create)
    await asyncio.gather(*(database.write(partial(insert, 7_000_000_000_000 + number)) for number in range(300)))
    await database.write(lambda db: db.execute("DELETE FROM t WHERE x > 7000000000100"))
    assert not database.scrubbed
    writes = [database.write(partial(insert, number)) for number in range(100)]
    left, *_ = await asyncio.gather(database.scrub(), *writes, database.scrub(), database.scrub())
    assert left is None
    assert database.scrubbed
    assert await values(database) == [*range(100), *range(7_000_000_000_000, 7_000_000_000_101)]
    held = b"".join(file.read_bytes() for file in database.path.parent.glob("test.db*"))
    assert (7_000_000_000_050).to_bytes(6, "big") in held
    assert (7_000_000_000_200).to_bytes(6, "big") not in held


def test_scrubbing_says_what_it_could_not_do(tmp_path: Path) -> None:
    """It describes what may still hold deleted rows, and what to do."""
    database = SQLiteDatabase(tmp_path / "x.db")
    database.write_now(create)
    with sqlite3.connect(tmp_path / "x.db", isolation_level=None) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM t").fetchone()
        database.write_now(partial(insert, 1))
        left = asyncio.run(database.scrub())
    other.close()
    assert left is not None
    assert "x.db-wal" in left
    assert not database.scrubbed
    assert asyncio.run(database.scrub()) is None
    database.close()
