"""Files that older versions wrote come through every migration."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from retinue_memory import (
    MemoryFilter,
    MemoryKind,
    Message,
    Scope,
)
from retinue_memory.clock import to_us
from retinue_memory.database.base import Connection
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.errors import StoreError
from retinue_memory.native import rows
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder, turn_of

SAID = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
EMBEDDER = HashEmbedder(32)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file as version 1 wrote it: two users, a duplicate with two sources, one memory without a vector."""
    only_first, file = tmp_path / "first", tmp_path / "old.db"
    only_first.mkdir()
    with as_file(files("retinue_memory.native") / "001_memories.sql") as script:
        shutil.copy(script, only_first)
    database = SQLiteDatabase(file)
    database.migrate("memory", only_first)
    database.write_now(write_as_version_1)
    database.close()
    return file


def write_as_version_1(db: Connection) -> None:
    at = to_us(SAID)
    for seq, (user, role, content, embedded) in enumerate(
        [
            ("alice", "user", "I am from Italy", True),
            ("alice", "assistant", "Italy is lovely", True),
            ("alice", "user", "I have a cat", False),
            ("bob", "user", "I am from Peru", True),
        ],
        1,
    ):
        vector = EMBEDDER.embed([content])[0].tobytes() if embedded else None
        model = (EMBEDDER.name, EMBEDDER.dimensions, vector) if embedded else (None, None, None)
        row = ("", "default", "user", user, f"id{seq}", seq, "RecentMessage", role, "", content)
        row += (rows.content_hash(role, "", content), f"session {seq}", at + seq, at + 10 * seq, *model)  # type: ignore[assignment]
        db.execute(
            "INSERT INTO memories (tenant, space, owner, owner_id, id, version, kind, role, speaker, content, content_hash, "
            f"session_id, created_at, said_at, embedder, dimensions, vector) VALUES ({', '.join('?' * 17)})",
            row,
        )
        for source, turn, position in [(f"m{seq}", f"t{seq}", 0)] + [("again", None, 3)] * (seq == 1):
            db.execute(
                "INSERT INTO memory_sources VALUES ('', 'default', 'user', ?, ?, ?, ?, ?, ?)",
                (user, source, seq, turn, position, at + seq),
            )
    for user, version in (("alice", 3), ("bob", 1)):
        db.execute("INSERT INTO memory_scopes VALUES ('', 'default', 'user', ?, ?, 0)", (user, version))


async def test_what_version_1_wrote_comes_through(old: Path) -> None:
    """Every memory with its times and sources, found by words and vectors; turns and messages taken stay taken."""
    memory = NativeMemory(f"sqlite:///{old}", embedder=EMBEDDER)
    alice = Scope.of(turn_of("alice"))
    page = await memory.browse(alice, MemoryFilter(superseded=True, quarantined=True))
    assert [record.content for record in page.records] == ["I have a cat", "Italy is lovely", "I am from Italy"]
    first = page.records[-1]
    created = SAID + timedelta(microseconds=1)
    assert (first.id, first.kind, first.role, first.session_id) == (
        "id1",
        MemoryKind.RECENT_MESSAGE,
        "user",
        "session 1",
    )
    assert (first.created_at, first.valid_from, first.valid_to) == (created, created, None)
    assert (first.version, first.pinned, first.superseded_by, first.quarantined) == (1, False, None, None)
    assert sorted(first.sources) == ["again", "m1"]
    hits = await memory.search(alice, "where am I from", top_k=3)
    assert hits[0].record == first
    assert "meaning" in hits[0].signals
    await memory.update([Message("user", "something else")], ctx=turn_of("alice", turn="t1"))
    await memory.update([Message("user", "something else", id="again")], ctx=turn_of("alice"))
    await memory.update([Message("user", "I am from Italy", id="m9")], ctx=turn_of("alice"))
    assert len((await memory.browse(alice)).records) == 3
    now = await memory.get(alice, "id1")
    assert now is not None
    assert set(now.sources) == {"again", "m1", "m9"}
    await memory.settle()
    assert [hit.record.content for hit in await memory.search(alice, "cat", top_k=1)] == ["I have a cat"]
    await memory.erase(Scope.of(turn_of("bob")))
    assert [hit.content for hit in await memory.retrieve("from", top_k=1, ctx=turn_of("alice"))] == ["I am from Italy"]
    await memory.aclose()
    assert b"Peru" not in await asyncio.to_thread(old.read_bytes)


async def test_the_scopes_of_the_first_version_keep_their_generations(tmp_path: Path) -> None:
    """A file of a real server: every memory is there, and a write that started before the upgrade still counts."""
    file = tmp_path / "first.db"
    file.write_bytes(gzip.decompress((Path(__file__).parents[1] / "data" / "first.db.gz").read_bytes()))
    with closing(sqlite3.connect(file)) as db:
        (life,) = db.execute("SELECT life FROM memory_scopes WHERE owner_id = 'alice' AND tenant = ''").fetchone()
        (count,) = db.execute("SELECT count(*) FROM memories WHERE owner_id = 'alice' AND tenant = ''").fetchone()
    database = SQLiteDatabase(file)
    memory = NativeMemory(database)
    alice = Scope.of(turn_of("alice"))
    page = await memory.browse(alice, MemoryFilter(superseded=True, quarantined=True))
    assert len(page.records) == count
    assert (await database.read(lambda db: rows.state(db, alice))).generation == life
    hits = await memory.search(alice, "Where do I live now?")
    assert "I live in Oslo." not in [hit.record.content for hit in hits]
    await memory.erase(alice)
    assert await memory.remains(alice) == {}
    await memory.aclose()
    await database.aclose()


def test_a_migrated_file_is_like_a_new_one(old: Path, tmp_path: Path) -> None:
    """The same tables, columns and indexes, whichever way the file came to be."""

    def schema(file: Path) -> list[tuple[str, str]]:
        with closing(sqlite3.connect(file)) as db:
            rows = db.execute("SELECT name, sql FROM sqlite_schema WHERE name LIKE 'memor%' ORDER BY name").fetchall()
        return [(name, sql) for name, sql in rows]

    for file in (old, tmp_path / "new.db"):
        memory = NativeMemory(f"sqlite:///{file}")
        memory.open()
        memory.close()
    assert schema(old) == schema(tmp_path / "new.db")


def test_a_file_of_a_newer_version_is_refused(old: Path) -> None:
    """Nothing is written to it, and the message says what to do."""
    with closing(sqlite3.connect(old)) as db:
        db.execute("UPDATE schema_version SET version = 99")
        db.commit()
    memory = NativeMemory(f"sqlite:///{old}")
    with pytest.raises(StoreError, match=r"newer Retinue .*upgrade"):
        memory.open()
    memory.close()
