"""What is erased or forgotten is gone: from every table and cache, and from the bytes of the files."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinue_memory import Embedder, Message, Scope
from retinue_memory.database.base import Connection
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.errors import MemoryBackendError
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder, turn_of

MARK = "Zebrafish"
"""In everything that the erased user says or is called, and in nothing else."""
VICTIM = Scope.of(turn_of(f"{MARK}-user"))


class Dense(Embedder):
    """A vector without zeros for every text, so that any piece of one is one of a kind; counts what it was asked."""

    name, dimensions = "dense-64", 64

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.asked += texts
        rows = [np.random.default_rng(list(hashlib.sha256(text.encode()).digest())).normal(size=64) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            yield file.name, file.read_bytes()


def traces(path: Path, texts: Iterable[str], marks: Iterable[str] = (MARK,)) -> list[str]:
    """Where the files still hold one of the marks, in UTF-8 or UTF-16, or a piece of a text's vector."""
    wanted = [(mark, mark.encode(code)) for mark in marks for code in ("utf-8", "utf-16-le", "utf-16-be")]
    for text, vector in zip(texts, Dense().embed(list(texts)), strict=True):
        wanted += [(f"vector of {text}", vector[start : start + 4].tobytes()) for start in (0, 30, 60)]
    return [f"{name}: {what}" for name, data in files(path) for what, piece in wanted if piece in data]


def cached(word: str) -> Counter[str]:
    """The functions of this process that have cached a text with this word, and how many such caches each has."""
    gc.collect()
    return Counter(
        cache.__name__
        for cache in gc.get_objects()
        if isinstance(cache, functools._lru_cache_wrapper)  # pyright: ignore[reportPrivateUsage]
        and any(isinstance(held, str) and word in held.casefold() for held in gc.get_referents(cache))
    )


async def fill(memory: NativeMemory, seed: int = 1, turns: int = 150) -> list[str]:
    """Seven users, one of them the victim, talk at the same time, edit and forget; all that the victim ever said."""
    rng, said = random.Random(seed), list[str]()
    users = [f"user {n}" for n in range(6)] + [VICTIM.id]
    for turn in range(turns):
        user = users[turn] if turn < len(users) else rng.choice(users)
        name = MARK if user == VICTIM.id else "Somebody"
        text = f"{name} tells thing {turn} " + "and more " * rng.randrange(60)
        said += [text] if user == VICTIM.id else []
        session = f"{name} session {turn % 5}"
        message = Message("user", text, id=f"{name} message {turn}", name=name)
        await memory.update([message], ctx=turn_of(user, session=session, turn=f"{name} turn {turn}"))
        if rng.random() < 0.3:
            scope = Scope.of(turn_of(user))
            records = (await memory.browse(scope, limit=5)).records
            new = f"{name} corrected in {turn} " + "at length " * rng.randrange(90)
            said += [new] if user == VICTIM.id else []
            await memory.edit(scope, rng.choice(records).id, new)
    return said


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_of_an_erased_user_is_left_in_the_files(database: SQLiteDatabase, seed: int) -> None:
    """Words, names, ids, earlier versions and vectors, after pages were split, filled and freed by many."""
    memory = NativeMemory(database, embedder=Dense())
    said = await fill(memory, seed)
    others = [record async for record in memory.export(Scope.of(turn_of("user 3")))]
    assert len(traces(database.path, said)) > len(said)
    before = await memory.remains(VICTIM)
    receipt = await memory.erase(VICTIM)
    assert traces(database.path, said) == []
    assert await memory.remains(VICTIM) == {}
    assert {table: count for table, count in receipt.deleted.items() if count} == {
        table: count for table, count in before.items() if table != "index"
    }
    assert set(before) == {"memories", "memory_sources", "memory_revisions", "memory_scopes", "index"} - (
        set() if "index" in before else {"index"}
    )
    assert receipt.scope == VICTIM.key
    assert [record async for record in memory.export(Scope.of(turn_of("user 3")))] == others
    assert await memory.retrieve("what was told", ctx=turn_of(VICTIM.id)) == []
    assert traces(database.path, said) == []
    await memory.aclose()


async def test_nothing_of_a_forgotten_memory_is_left_in_the_files(database: SQLiteDatabase) -> None:
    """Forgetting is as hard as erasing; what was not meant is still there."""
    memory = NativeMemory(database, embedder=Dense())
    await fill(memory, turns=60)
    secret = "My Xylophone has the number 555"
    await memory.update([Message("user", secret, id="Xylophone message")], ctx=turn_of(VICTIM.id))
    count = (await memory.remains(VICTIM))["memories"]
    hits = await memory.search(VICTIM, "Xylophone number", top_k=20)
    (hit,) = [hit for hit in hits if hit.record.content == secret]
    await memory.edit(VICTIM, hit.record.id, "My flute has the number 556")
    assert len(traces(database.path, [], ["Xylophone"])) > 0, "the history has it"
    receipt = await memory.forget(VICTIM, query="xylophone")
    assert receipt.deleted == {"memories": 1, "memory_sources": 1, "memory_revisions": 1}
    assert traces(database.path, [secret, "My flute has the number 556"], ["Xylophone", "xylophone", "flute"]) == []
    assert (await memory.remains(VICTIM))["memories"] == count - 1
    await memory.aclose()


async def test_the_caches_let_go(database: SQLiteDatabase) -> None:
    """The index, the recent vectors and the words that were met: nothing is kept of what was erased, or was asked."""
    embedder = Dense()
    memory = NativeMemory(database, embedder=embedder)
    text, query = f"My {MARK} is blue", f"what colour is my {MARK}"
    await memory.update([Message("user", text)], ctx=turn_of(VICTIM.id))
    await memory.retrieve(query, ctx=turn_of(VICTIM.id))
    assert VICTIM in memory.indexes.scopes()
    assert cached(MARK.casefold())
    await memory.erase(VICTIM)
    assert VICTIM not in memory.indexes.scopes()
    assert cached(MARK.casefold()) == Counter()
    asked = len(embedder.asked)
    await memory.update([Message("user", text)], ctx=turn_of("somebody else"))
    await memory.retrieve(query, ctx=turn_of("somebody else"))
    assert len(embedder.asked) == asked + 2, "one of the vectors had been kept"
    await memory.aclose()


async def test_memories_share_no_caches(tmp_path: Path) -> None:
    """Each memory of a process caches what it reads by itself; an erasure clears the caches of its memory, and no other's."""
    word = "wolpertinger"
    one, two = (NativeMemory(f"sqlite:///{tmp_path}/{name}.db") for name in ("one", "two"))
    for memory in (one, two):
        await memory.update([Message("user", f"The {word} is mine")], ctx=turn_of("alice"))
        await memory.retrieve(f"whose is the {word}", ctx=turn_of("alice"))
    both = cached(word)
    assert set(both.values()) == {2}
    await one.erase(Scope.of(turn_of("alice")))
    assert cached(word) == Counter(dict.fromkeys(both, 1))
    await two.erase(Scope.of(turn_of("somebody else")))
    assert cached(word) == Counter()
    for memory in (one, two):
        await memory.aclose()


async def test_what_is_not_there_is_erased_too(database: SQLiteDatabase) -> None:
    """Erasing twice, or somebody unknown: a receipt of nothing."""
    memory = NativeMemory(database)
    for _ in range(2):
        receipt = await memory.erase(VICTIM)
        assert set(receipt.deleted.values()) == {0}
    assert await memory.remains(VICTIM) == {}
    await memory.aclose()


async def test_an_erased_user_may_begin_anew(database: SQLiteDatabase) -> None:
    """A new life: what is said now is remembered, and what was said before is not."""
    memory = NativeMemory(database, embedder=HashEmbedder())
    for number in range(3):
        await memory.update([Message("user", f"I own hat {number}", id="m")], ctx=turn_of("alice", turn="t"))
        (hit,) = await memory.retrieve("hat", ctx=turn_of("alice"))
        assert hit.content == f"I own hat {number}"
        await memory.erase(Scope.of(turn_of("alice")))
    await memory.aclose()


# -- readers and the log ------------------------------------------------------------------------------------------------


async def test_a_reader_of_another_process_is_named_and_waited_out(database: SQLiteDatabase) -> None:
    """Who still reads the old state keeps the log: the receipt says so, and erasing again, when they are done, cleans it."""
    memory = NativeMemory(database, embedder=Dense())
    said = await fill(memory, turns=40)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM memories").fetchone()
    receipt = await memory.erase(VICTIM)
    assert receipt.deleted["memories"] > 0
    assert f"{database.path.name}-wal" in receipt.left[0]
    assert await memory.retrieve("tells", ctx=turn_of(VICTIM.id)) == []
    other.close()
    again = await memory.erase(VICTIM)
    assert not any(database.path.name in left for left in again.left)
    assert traces(database.path, said) == []
    await memory.aclose()


async def test_what_failed_half_way_pins_nothing(database: SQLiteDatabase) -> None:
    """A read or a write that failed with a statement half read, and whose error somebody keeps, does not hold the log."""
    memory = NativeMemory(database, embedder=Dense())
    said = await fill(memory, turns=40)

    def fail(db: Connection) -> None:
        rows = db.execute("SELECT * FROM memories")
        rows.fetchone()
        raise KeyError("midway")

    kept: list[object] = []
    for run in (database.write, database.read):
        with pytest.raises(KeyError) as raised:
            await run(fail)
        kept.append(raised)
    receipt = await memory.erase(VICTIM)
    assert not any(database.path.name in left for left in receipt.left)
    assert traces(database.path, said) == []
    assert len(kept) == 2
    await memory.aclose()


async def test_an_export_that_nobody_reads_on_pins_nothing(database: SQLiteDatabase) -> None:
    """An export stopped half-way holds no reader; an erased one ends."""
    memory = NativeMemory(database, embedder=Dense())
    for number in range(250):
        await memory.update([Message("user", f"{MARK} {number}")], ctx=turn_of(VICTIM.id))
    export = memory.export(VICTIM)
    begun = [await anext(export) for _ in range(5)]
    assert begun[-1]["content"] == f"{MARK} 3"
    await memory.erase(VICTIM)
    assert traces(database.path, []) == []
    assert len([value async for value in export]) < 100, "more than the page that was read before"
    await memory.aclose()


# -- an erasure wins ----------------------------------------------------------------------------------------------------


class Held(Dense):
    """Embeds documents when it is let; tells that it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.may = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str]) -> Any:
        self.reached.set()
        assert self.may.wait(30)
        return super().embed(texts)


async def test_an_erasure_wins_at_any_moment(database: SQLiteDatabase) -> None:
    """However far what began before it has got, not even the scope itself is there afterwards."""
    memory = NativeMemory(database)
    await memory.retrieve("anything", ctx=turn_of(VICTIM.id))
    for steps in range(1, 25):
        under_way: list[asyncio.Task[Any]] = [
            asyncio.create_task(memory.update([Message("user", f"A late {MARK}")], ctx=turn_of(VICTIM.id))),
            asyncio.create_task(memory.add(VICTIM, f"Another {MARK}")),
        ]
        for _ in range(steps):
            await asyncio.sleep(0)
        await memory.erase(VICTIM)
        await asyncio.gather(*under_way, return_exceptions=True)
        assert await memory.remains(VICTIM) == {}, steps
    await memory.aclose()


@pytest.mark.parametrize("known", [True, False])
async def test_an_erasure_wins_over_an_update_under_way(database: SQLiteDatabase, known: bool) -> None:
    """What began before the erasure is not there after it, whether or not there was anything before."""
    if known:
        before = NativeMemory(database)
        await before.update([Message("user", "I was here")], ctx=turn_of(VICTIM.id))
        await before.aclose()
    held = Held()
    memory = NativeMemory(database, embedder=held)
    text = f"A late {MARK}"
    under_way = asyncio.create_task(memory.update([Message("user", text)], ctx=turn_of(VICTIM.id)))
    adding = asyncio.create_task(memory.add(VICTIM, f"Another {MARK}"))
    assert await asyncio.to_thread(held.reached.wait, 30)
    async with asyncio.timeout(30):
        while not (await memory.remains(VICTIM)).get("memory_scopes"):  # which is what the updates do first
            pass
    await memory.erase(VICTIM)
    held.may.set()
    await under_way
    with pytest.raises(MemoryBackendError, match="erased"):
        await adding
    assert await memory.remains(VICTIM) == {}
    assert await memory.retrieve(MARK, ctx=turn_of(VICTIM.id)) == []
    await memory.erase(VICTIM)
    assert traces(database.path, [text]) == []
    asked = len(held.asked)
    await memory.update([Message("user", text)], ctx=turn_of("somebody else"))
    assert len(held.asked) == asked + 1, "the vector of the dropped text had been kept"
    await memory.aclose()


async def test_an_erasure_in_another_process_wins_too(tmp_path: Path) -> None:
    """Two memories over one file: the one that did not erase drops its update, and its warm index finds nothing more."""
    url, held = f"sqlite:///{tmp_path}/shared.db", Held()
    one, two = NativeMemory(url, embedder=held), NativeMemory(url, embedder=Dense())
    held.may.set()
    await one.update([Message("user", "I row boats")], ctx=turn_of("alice"))
    assert len(await one.retrieve("boats", ctx=turn_of("alice"))) == 1
    held.may.clear()
    held.reached.clear()
    under_way = asyncio.create_task(one.update([Message("user", "I sail boats")], ctx=turn_of("alice")))
    assert await asyncio.to_thread(held.reached.wait, 30)
    await two.erase(Scope.of(turn_of("alice")))
    held.may.set()
    await under_way
    for memory in (one, two):
        assert await memory.retrieve("boats", ctx=turn_of("alice")) == []
        assert await memory.remains(Scope.of(turn_of("alice"))) == {}
    await two.update([Message("user", "I fly kites")], ctx=turn_of("alice"))
    assert [hit.content for hit in await one.retrieve("boats kites", ctx=turn_of("alice"))] == ["I fly kites"]
    await one.aclose()
    await two.aclose()


async def test_erasing_amid_a_crowd(database: SQLiteDatabase) -> None:
    """Many write, ask and erase at once: after the last erasure nothing is there, and others have lost nothing."""
    memory = NativeMemory(database, embedder=Dense())

    async def write(number: int) -> None:
        await memory.update([Message("user", f"{MARK} {number}")], ctx=turn_of(VICTIM.id))
        await memory.update(
            [Message("user", f"Mister {'ABCDEFGH'[number % 8]}{'aeiou'[number // 8]}m rang")], ctx=turn_of("bystander")
        )
        await memory.retrieve("number", ctx=turn_of(VICTIM.id))
        if number % 10 == 5:
            await memory.erase(VICTIM)

    await asyncio.gather(*(write(number) for number in range(40)))
    await memory.erase(VICTIM)
    assert await memory.remains(VICTIM) == {}
    assert traces(database.path, [f"{MARK} {number}" for number in range(40)]) == []
    found = await memory.retrieve("who rang", top_k=99, ctx=turn_of("bystander"))
    assert len(found) == 40
    await memory.aclose()
