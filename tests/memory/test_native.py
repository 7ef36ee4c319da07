"""The built-in memory, through the contract."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue_memory import (
    Embedder,
    InvocationContext,
    Memory,
    Message,
    Scope,
)
from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import named_queries
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.errors import MemoryBackendError, ModelError, StoreError
from retinue_memory.native.embedder import MiniLM, Reader, Reading
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder, ManagedConformance, turn_of


async def contents(memory: Memory, query: str, ctx: InvocationContext, top_k: int = 10) -> list[str]:
    return [hit.content for hit in await memory.retrieve(query, top_k=top_k, ctx=ctx)]


class TestByWords(ManagedConformance):
    @pytest.fixture
    def memory(self, native: NativeMemory) -> NativeMemory:
        return native


class TestWithHashEmbedder(ManagedConformance):
    @pytest.fixture
    async def memory(self, database: SQLiteDatabase) -> AsyncIterator[NativeMemory]:
        memory = NativeMemory(database, embedder=HashEmbedder())
        yield memory
        await memory.aclose()


class TestWithMiniLM(ManagedConformance):
    @pytest.fixture
    async def memory(self, database: SQLiteDatabase, minilm: MiniLM) -> AsyncIterator[NativeMemory]:
        memory = NativeMemory(database, embedder=lambda: minilm)
        yield memory
        await memory.aclose()


class TestWithAlmostNoCache(ManagedConformance):
    """The cache is only a cache: with room for one index at a time, nothing changes."""

    @pytest.fixture
    async def memory(self, database: SQLiteDatabase) -> AsyncIterator[NativeMemory]:
        memory = NativeMemory(database, embedder=HashEmbedder(), cache_mb=0.001)
        yield memory
        await memory.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        "Your capital is Rome.",
        "The capital of Italy is Rome.",
        "You told me that you are from Italy, so your capital is Rome.",
        "I am sorry, but I do not know which country you are from.",
    ],
)
async def test_what_the_user_stated_outranks_what_was_asked_and_answered_about_it(
    database: SQLiteDatabase, minilm: MiniLM, answer: str
) -> None:
    """Asking the same thing again and again does not bury the fact that answers it."""
    memory = NativeMemory(database, embedder=minilm)
    try:
        await memory.update(
            [Message("user", "I am from Italy"), Message("assistant", "Italy is a lovely country.")],
            ctx=turn_of(session="first"),
        )
        for fact in ("I have a cat named Tom", "I work as a nurse"):
            await memory.update([Message("user", fact), Message("assistant", "Thank you.")], ctx=turn_of(session=fact))
        question = "What's the capital of my country?"
        for number in range(4):
            ctx = turn_of(session=f"context {number}")
            assert await contents(memory, question, ctx, top_k=1) == ["I am from Italy"]
            await memory.update([Message("user", question), Message("assistant", answer)], ctx=ctx)
    finally:
        await memory.aclose()


async def test_meaning_is_found_without_a_common_word(database: SQLiteDatabase, minilm: MiniLM) -> None:
    """The vectors find what no word of the query says."""
    memory = NativeMemory(database, embedder=minilm)
    for text in ("My dog is called Rex", "I drive to the office by car", "We ate pasta on the terrace"):
        await memory.update([Message("user", text)], ctx=turn_of())
    assert await contents(memory, "the pet's name", turn_of(), top_k=1) == ["My dog is called Rex"]
    await memory.aclose()


async def test_what_the_assistant_said_is_found_when_it_is_asked_for(native: NativeMemory) -> None:
    """The prior for the user's words is off for "what did you recommend"."""
    turn = [Message("user", "I want a good book to read"), Message("assistant", "Read Middlemarch, a good long book.")]
    await native.update(turn, ctx=turn_of())
    assert (await contents(native, "book?", turn_of()))[0] == "I want a good book to read"
    asked = "Which long book did you recommend to read?"
    assert (await contents(native, asked, turn_of()))[0] == "Read Middlemarch, a good long book."


async def test_only_what_was_said_becomes_a_memory(native: NativeMemory) -> None:
    """Instructions, tool results and recalled memories are not remembered."""
    await native.update([Message("user", "I grow tomatoes")], ctx=turn_of())
    recalled = await native.retrieve("tomatoes", ctx=turn_of())
    other = [
        Message("system", "tomatoes: be brief"),
        Message("tool", "tomatoes cost 2", tool_call_id="c1"),
        Message("user", "tomatoes again", metadata=recalled[0].metadata),
    ]
    await native.update([*recalled, *other], ctx=turn_of())
    assert await contents(native, "tomatoes", turn_of()) == ["I grow tomatoes"]


async def test_a_duplicate_keeps_every_source_and_is_fresh_again(native: NativeMemory) -> None:
    """What is told again is one memory with two sources, as recent as its last telling."""
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC)
    await native.update([Message("user", "I like tea", id="m1", created_at=old)], ctx=turn_of())
    await native.update([Message("user", "tea is grown in Assam", id="m2", created_at=old)], ctx=turn_of())
    await native.update([Message("user", "I  like\ntea", id="m3", created_at=new)], ctx=turn_of(session="s2"))
    first, second = await native.retrieve("tea", ctx=turn_of())
    assert first.content == "I like tea"
    assert first.metadata["memory"]["sources"] == ["m1", "m3"]
    assert first.created_at == old
    assert second.metadata["memory"]["sources"] == ["m2"]


async def test_a_message_is_taken_once_by_its_id(native: NativeMemory) -> None:
    """Without a turn id, the message id keeps a repetition away; the same id in another scope is another message."""
    for user in ("alice", "alice", "bob"):
        ctx = InvocationContext("s", user)
        await native.update([Message("user", "I swim", id="m1")], ctx=ctx)
    (hit,) = await native.retrieve("swim", ctx=turn_of("alice"))
    assert hit.metadata["memory"]["sources"] == ["m1"]
    assert await contents(native, "swim", turn_of("bob")) == ["I swim"]


async def test_a_longer_repetition_of_a_turn_adds_what_is_new(native: NativeMemory) -> None:
    """A turn that was written without its answer is completed by writing it again with one."""
    ctx = turn_of(turn="t1")
    await native.update([Message("user", "I ski")], ctx=ctx)
    await native.update([Message("user", "I ski"), Message("assistant", "Skiing is fun")], ctx=ctx)
    assert sorted(await contents(native, "ski", ctx)) == ["I ski", "Skiing is fun"]


async def test_memories_survive_and_are_shared_between_processes(tmp_path: Path) -> None:
    """Two memories over one file, as two processes have it: each finds what the other wrote, warm index or not."""
    url = f"sqlite:///{tmp_path}/deep/er/shared.db"
    one, two = NativeMemory(url), NativeMemory(url)
    await one.update([Message("user", "I play chess")], ctx=turn_of())
    assert await contents(two, "chess", turn_of()) == ["I play chess"]
    await one.update([Message("user", "I play go")], ctx=turn_of())
    assert sorted(await contents(two, "play", turn_of())) == ["I play chess", "I play go"]
    await one.aclose()
    await two.aclose()
    three = NativeMemory(url)
    assert sorted(await contents(three, "play", turn_of())) == ["I play chess", "I play go"]
    await three.aclose()


def test_any_event_loop_may_use_it(tmp_path: Path) -> None:
    """Opened outside any loop, used from one after the other."""
    memory = NativeMemory(f"sqlite:///{tmp_path}/loops.db")
    asyncio.run(memory.update([Message("user", "I paint")], ctx=turn_of()))
    assert asyncio.run(contents(memory, "paint", turn_of())) == ["I paint"]
    asyncio.run(memory.aclose())
    with pytest.raises(MemoryBackendError, match="closed"):
        asyncio.run(contents(memory, "paint", turn_of()))


async def test_spaces_are_apart_in_one_database(database: SQLiteDatabase) -> None:
    """Two memories of the config share the file, not what they know."""
    work, home = NativeMemory(database, space="work"), NativeMemory(database, space="home")
    await work.update([Message("user", "The safe opens with 1234")], ctx=turn_of())
    assert await contents(home, "safe", turn_of()) == []
    await work.aclose()
    await home.aclose()
    assert await database.read(lambda db: db.execute("SELECT count(*) FROM memories").fetchone()) == (1,)


async def test_rows_that_are_taken_away_leave_the_index(database: SQLiteDatabase) -> None:
    """A new epoch of a scope makes every index of it start over."""
    memory = NativeMemory(database)
    await memory.update([Message("user", "I row boats"), Message("user", "I sail boats")], ctx=turn_of())
    assert len(await contents(memory, "boats", turn_of())) == 2

    def take_away(db: Connection) -> None:
        db.execute("DELETE FROM memories WHERE content = 'I row boats'")
        db.execute("UPDATE memory_scopes SET epoch = epoch + 1, version = version + 1")

    await database.write(take_away)
    assert await contents(memory, "boats", turn_of()) == ["I sail boats"]
    await memory.aclose()


async def test_opening_early_opens_the_database_only(tmp_path: Path) -> None:
    """A server may find out at its start that the file is good; the embedder is looked for at the first use, once."""
    asked: list[int] = []

    def find() -> HashEmbedder:
        asked.append(1)
        return HashEmbedder()

    memory = NativeMemory(f"sqlite:///{tmp_path}/x.db", embedder=find)
    memory.open()
    memory.open()
    assert (tmp_path / "x.db").exists()
    assert asked == []
    await asyncio.gather(*(memory.update([Message("user", f"I hum {i}")], ctx=turn_of()) for i in range(8)))
    assert asked == [1]
    await memory.aclose()
    with pytest.raises(MemoryBackendError, match="closed"):
        memory.open()


async def test_who_only_asks_leaves_nothing_behind(database: SQLiteDatabase) -> None:
    """Any number of scopes that nothing was written to: the cache stays within its bound."""
    memory = NativeMemory(database, cache_mb=0.1)
    for number in range(200):
        assert await contents(memory, "anything", turn_of(None, session=f"s{number}")) == []
    assert len(list(memory.indexes.scopes())) <= 25
    await memory.aclose()


async def test_no_embedder_is_said_once(database: SQLiteDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """Words alone are a lesser memory: one warning, not one a turn."""
    memory = NativeMemory(database, embedder=lambda: None)
    for _ in range(3):
        await memory.update([Message("user", "I knit")], ctx=turn_of())
        await memory.retrieve("knit", ctx=turn_of())
    await memory.aclose()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "by their words alone" in said[0].getMessage()


class Broken(Embedder):
    """Fails as embedders do: by the contract, or not."""

    name = "broken"
    dimensions = 8

    def __init__(self, error: Exception) -> None:
        self.error = error

    def embed(self, texts: Sequence[str]) -> Any:
        raise self.error


class Together(Reader):
    """Reads one call at a time, the first only when it is told to, and no call that holds a poisoned text."""

    name, dimensions, token_width = "together", 64, 0

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.asked: list[list[str]] = []

    def read(self, texts: Sequence[str]) -> list[Reading]:
        self.asked.append(list(texts))
        self.began.set()
        assert self.go_on.wait(20)
        if any("poison" in text for text in texts):
            raise ModelError("too much")
        return [Reading(vector, vector) for vector in HashEmbedder().embed(texts)]


async def test_what_waits_for_the_embedder_is_read_together(
    database: SQLiteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """In one pass, each gets its own; whose text it cannot read is found by its words, and takes nothing from the others."""
    embedder = Together()
    memory = NativeMemory(database, embedder=embedder)
    said = {"ann": "I dive", "bob": "I drank the poison", "cid": "I row"}
    embedder.go_on.set()
    for user in ("dan", *said):  # from here on, nothing but the embedder is waited for
        await memory.update([Message("user", f"I am {user}")], ctx=turn_of(user))
    embedder.go_on.clear()
    embedder.began.clear()
    embedder.asked.clear()
    first = asyncio.create_task(memory.update([Message("user", "I was first")], ctx=turn_of("dan")))
    assert await asyncio.to_thread(embedder.began.wait, 20)
    others = [
        asyncio.create_task(memory.update([Message("user", text)], ctx=turn_of(user))) for user, text in said.items()
    ]
    await asyncio.sleep(0)
    embedder.go_on.set()
    await asyncio.gather(first, *others)
    assert embedder.asked[:2] == [["I was first"], [*said.values()]]
    assert set(map(tuple, embedder.asked[2:])) == {(text,) for text in said.values()}
    assert caplog.text.count("the embedder failed on 1 texts") == 1
    for user, text in said.items():
        assert (await contents(memory, text, turn_of(user)))[0] == text
    rows = await database.read(lambda db: db.execute("SELECT owner_id FROM memories WHERE vector IS NULL").fetchall())
    assert rows == [("bob",)]
    await memory.aclose()


@pytest.mark.parametrize("error", [ModelError("out of memory"), ValueError("bug")])
async def test_a_failing_embedder_loses_nothing(
    database: SQLiteDatabase, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What it could not embed is stored and found by its words; the log says so."""
    memory = NativeMemory(database, embedder=Broken(error))
    await memory.update([Message("user", "I fence")], ctx=turn_of())
    assert await contents(memory, "fence", turn_of()) == ["I fence"]
    assert "embedder failed" in caplog.text
    await memory.aclose()


class Held(HashEmbedder):
    """Holds each call that has `held` in it until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go_on = threading.Event(), threading.Event()
        self.calls: list[int] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(len(texts))
        if any("held" in text for text in texts):
            self.began.set()
            assert self.go_on.wait(20)
        return super().embed(texts)


async def test_an_embedder_that_hangs_holds_up_nobody_else(database: SQLiteDatabase) -> None:
    """Neither the event loop nor another's write and recall wait for it."""
    embedder = Held()
    memory = NativeMemory(database, embedder=embedder)
    writing = asyncio.create_task(memory.update([Message("user", "I was held up")], ctx=turn_of("alice")))
    assert await asyncio.to_thread(embedder.began.wait, 20)
    await memory.update([Message("user", "I dive")], ctx=turn_of("bob"))
    assert await contents(memory, "Do I dive?", turn_of("bob")) == ["I dive"]
    assert not writing.done()
    embedder.go_on.set()
    await writing
    assert await contents(memory, "held up", turn_of("alice")) == ["I was held up"]
    await memory.aclose()


async def test_what_is_embedded_at_length_lets_questions_through(database: SQLiteDatabase) -> None:
    """A write of many messages is embedded a few at a time, so that an embedder with one thread answers in between."""
    embedder = Held()
    memory = NativeMemory(database, embedder=embedder)
    embedder.go_on.set()
    await memory.update([Message("user", f"I met number {number}") for number in range(100)], ctx=turn_of())
    assert max(embedder.calls) <= 16
    assert sum(embedder.calls) == 100
    await memory.aclose()


async def test_long_texts_are_read_off_the_event_loop(database: SQLiteDatabase) -> None:
    """A novel that somebody pastes is taken and found like a line, and the loop goes on meanwhile."""
    memory = NativeMemory(database, embedder=HashEmbedder())
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    told = f"My hives stand by the mill. {'Honey and wax and smoke. ' * 16_000}"
    pauses: list[float] = []
    began = last = time.perf_counter()
    working = asyncio.create_task(memory.update([Message("user", told)], ctx=turn_of()))
    while not working.done():
        await asyncio.sleep(0)
        pauses.append(time.perf_counter() - last)
        last += pauses[-1]
    assert max(pauses) < (last - began) / 2  # read on the loop, it would be most of the time
    assert told in await contents(memory, "Where do my hives stand?", turn_of())
    await memory.aclose()


async def test_vectors_of_another_model_are_never_compared(database: SQLiteDatabase) -> None:
    """A changed embedder finds the old rows by their words, the new ones by both."""
    before = NativeMemory(database, embedder=HashEmbedder(32))
    await before.update([Message("user", "I collect stamps")], ctx=turn_of())
    await before.aclose()
    after = NativeMemory(database, embedder=HashEmbedder(64))
    await after.update([Message("user", "I collect coins")], ctx=turn_of())
    assert sorted(await contents(after, "collect", turn_of())) == ["I collect coins", "I collect stamps"]
    await after.aclose()


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Corrupt: a StoreError that names the file and the way out."""
    file = tmp_path / "notes.db"
    file.write_bytes(b"these are my notes\n" * 400)
    before = file.read_bytes()
    memory = NativeMemory(f"sqlite:///{file}")
    for call in (memory.retrieve("x", ctx=turn_of()), memory.update([Message("user", "x")], ctx=turn_of())):
        with pytest.raises(StoreError, match=r"notes\.db.*restore a backup"):
            await call
    await memory.aclose()
    assert file.read_bytes() == before


async def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    """Not writable (the file says so itself, since root may write to any): a StoreError, nothing changed."""
    file = tmp_path / "old.db"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE kept (x)")
    db.close()
    content = bytearray(file.read_bytes())
    content[18] = 9  # a write format of the future: SQLite may read the file, and must not write to it
    file.write_bytes(content)
    memory = NativeMemory(f"sqlite:///{file}")
    with pytest.raises(StoreError, match="writable"):
        await memory.update([Message("user", "x")], ctx=turn_of())
    await memory.aclose()
    assert file.read_bytes() == bytes(content)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """The path leads through a file: a StoreError that names it."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    memory = NativeMemory(f"sqlite:///{tmp_path}/file/x.db")
    with pytest.raises(StoreError, match="folder"):
        await memory.update([Message("user", "x")], ctx=turn_of())
    await memory.aclose()


# -- laws ---------------------------------------------------------------------------------------------------------------

USERS = ["alice", "bob", "al%ce"]
TENANTS = ["", "t"]
SAID = st.tuples(st.sampled_from(USERS), st.sampled_from(TENANTS), st.text(st.characters(codec="utf-8"), max_size=30))
PATIENT = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@PATIENT
@given(said=st.lists(SAID, max_size=12))
def test_law_isolation_idempotency_and_nothing_lost(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str, str]]
) -> None:
    """Whatever is said by whom, every turn told twice: each scope holds its own texts, once, and no other's."""

    async def play() -> None:
        memory = NativeMemory(f"sqlite:///{tmp_path_factory.mktemp('law')}/x.db", embedder=HashEmbedder())
        for number, (user, tenant, text) in enumerate(said):
            for _ in range(2):
                ctx = turn_of(user, tenant=tenant, turn=f"turn {number}")
                await memory.update([Message("user", text, id=f"m{number}")], ctx=ctx)
        for user in USERS:
            for tenant in TENANTS:
                own = {
                    " ".join(unicodedata.normalize("NFC", text.replace("\0", "\ufffd")).split())
                    for who, where, text in said
                    if (who, where) == (user, tenant) and text.strip()
                }
                hits = await memory.retrieve("anything", top_k=99, ctx=turn_of(user, tenant=tenant))
                found = [" ".join(unicodedata.normalize("NFC", hit.content).split()) for hit in hits]
                assert sorted(found) == sorted(own)
        await memory.aclose()

    asyncio.run(play())


ODD_IDS = [
    "a",
    "A",
    "a ",
    " a",
    "%",
    "_",
    "*",
    "a%",
    "a/b",
    "a%2Fb",
    "\u0430",
    "e\u0301",
    "\u00e9",
    "' OR 1=1 --",
    "null",
    "0",
    "\u200b",
]
IDS = st.sampled_from(ODD_IDS) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=4
)
CONTEXTS = st.builds(InvocationContext, session_id=IDS, user_id=st.none() | IDS, tenant=st.just("") | IDS)


def test_law_no_scope_reads_another(tmp_path: Path) -> None:
    """Whatever the ids hold, look-alikes, wildcards and SQL included: what one scope was told, only that scope finds."""
    memory = NativeMemory(f"sqlite:///{tmp_path}/x.db", cache_mb=0.05)
    told: dict[Scope, str] = {}

    @settings(max_examples=150, deadline=None)
    @given(writer=CONTEXTS, reader=CONTEXTS)
    def hold(writer: InvocationContext, reader: InvocationContext) -> None:
        secret = told.setdefault(Scope.of(writer), f"the code is {len(told)}")
        asyncio.run(memory.update([Message("user", secret)], ctx=writer))
        known = told.get(Scope.of(reader))
        found = asyncio.run(contents(memory, "what is the code", reader))
        assert found == ([] if known is None else [known])

    hold()
    memory.close()


def test_every_statement_names_the_whole_scope() -> None:
    """No row is read or changed by an id alone."""
    for name, statement in named_queries((files("retinue_memory.native") / "rows.sql").read_text("utf-8")).items():
        for part in re.split(r"\) OR EXISTS \(", statement):
            for column in ("tenant", "space", "owner", "owner_id"):
                assert f":{column}" in part, (name, column)


def test_created_at_round_trips(tmp_path: Path) -> None:
    """A time comes back as the moment it was, in UTC, whatever zone it was told in."""

    async def play() -> None:
        memory = NativeMemory(f"sqlite:///{tmp_path}/t.db")
        for number, zone in enumerate((UTC, None)):
            told = datetime(2024, 2, 29, 12, 30, 1, 234567, tzinfo=zone) + timedelta(hours=number)
            await memory.update([Message("user", f"leap {number}", created_at=told)], ctx=turn_of(f"u{number}"))
            (hit,) = await memory.retrieve("leap", ctx=turn_of(f"u{number}"))
            assert hit.created_at == told.replace(tzinfo=UTC)
        await memory.aclose()

    asyncio.run(play())
