"""Mem0Memory over real HTTP, against a stand-in for mem0's cloud."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import retinue_memory
from retinue_memory import (
    InvocationContext,
    MemoryFilter,
    MemoryKind,
    Message,
    Recall,
    Scope,
    open_memory,
)
from retinue_memory.errors import ConfigError, MemoryBackendError
from retinue_memory.mem0 import Mem0Memory
from retinue_memory.mem0.calling import Caller
from retinue_memory.mem0.service import Entity, ServiceError
from retinue_memory.testing import ManagedConformance, MemoryConformance, turn_of

from .mem0_cloud import KEY, Cloud, Fault, eventually_so


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud().running() as cloud:
        yield cloud


@pytest.fixture
async def memory(cloud: Cloud) -> AsyncIterator[Mem0Memory]:
    memory = Mem0Memory(KEY, host=cloud.url)
    yield memory
    await memory.aclose()


class TestMem0Memory(ManagedConformance):
    """Everything that holds of any memory."""

    imports_exactly = False


class TestMem0MemoryWordForWord(MemoryConformance):
    """Where mem0's model draws no facts."""

    @pytest.fixture
    async def memory(self, cloud: Cloud) -> AsyncIterator[Mem0Memory]:
        memory = Mem0Memory(KEY, host=cloud.url, infer=False)
        yield memory
        await memory.aclose()


class TestMem0MemoryNeverIndexed(MemoryConformance):
    """As long as mem0 has made nothing searchable."""

    @pytest.fixture
    async def memory(self, cloud: Cloud) -> AsyncIterator[Mem0Memory]:
        cloud.indexing.clear()
        memory = Mem0Memory(KEY, host=cloud.url)
        yield memory
        await memory.aclose()


ALICE = Scope.of(turn_of())
DAY = datetime(2024, 1, 1, tzinfo=UTC)


async def found(memory: Mem0Memory, query: str, ctx: InvocationContext | None = None, top_k: int = 10) -> list[str]:
    return [message.content for message in await memory.retrieve(query, top_k=top_k, ctx=ctx or turn_of())]


def said(*texts: str) -> list[Message]:
    return [Message("user", text) for text in texts]


# -- until it is searchable -------------------------------------------------------------------------------------------


async def test_what_mem0_has_not_indexed_is_found_all_the_same(cloud: Cloud, memory: Mem0Memory) -> None:
    """A question in other words finds what was just said, while mem0 is working on it; when it has done so the memory is
    mem0's, and there once. `wait_indexed` waits for that, for one user or for all."""
    cloud.indexing.clear()
    await memory.update(said("I am from Italy"), ctx=turn_of())
    (hit,) = await memory.retrieve("What's the capital of my country?", ctx=turn_of())
    assert hit.content == "I am from Italy"
    assert hit.metadata["memory"]["kind"] == "RecentMessage"
    assert not await memory.wait_indexed(turn_of(), timeout=0.3)
    assert not await memory.wait_indexed(timeout=0.3)
    assert await memory.wait_indexed(turn_of("bob"), timeout=0.3)
    assert cloud.texts() == []
    cloud.indexing.set()
    assert await memory.wait_indexed(turn_of())
    (hit,) = await memory.retrieve("What's the capital of my country?", ctx=turn_of())
    assert hit.metadata["memory"]["id"] in cloud.memories
    assert hit.metadata["memory"]["backend"] == "mem0"


async def test_what_waits_neither_is_pushed_out_nor_pushes_out(cloud: Cloud, memory: Mem0Memory) -> None:
    """Of the places of an answer, half are for what mem0 does not have yet, and half for what it has."""
    for number in range(8):
        await memory.update(said(f"Tea number {number} is green"), ctx=turn_of())
    assert await memory.wait_indexed()
    cloud.indexing.clear()
    for number in range(8):
        await memory.update(said(f"Tea number 1{number} is black"), ctx=turn_of())
    texts = await found(memory, "which tea is black or green", top_k=4)
    assert len(texts) == 4
    assert sum("black" in text for text in texts) == 2


async def test_what_waits_is_found_where_mem0_cannot_be_searched(cloud: Cloud, memory: Mem0Memory) -> None:
    """What the user just said does not depend on mem0: not when it fails, and not when it takes longer than a recall waits. That
    mem0 failed is said all the same. `budget` bounds it too."""
    cloud.indexing.clear()
    await memory.update(said("I keep bees"), ctx=turn_of())
    cloud.faults["search"] = [Fault(404), Fault(stall=True), Fault(404), Fault(404)]
    recall = Recall([memory])
    for problem in ("404", r"within 1\.5 s"):
        result = await recall.retrieve("bees", turn_of())
        assert [message.content for message in result.messages] == ["I keep bees"]
        (failure,) = result.failures
        assert re.search(problem, failure.problem), failure
    for ctx, budget in ((turn_of("bob"), None), (turn_of(), 1)):
        with pytest.raises(MemoryBackendError, match="404") as caught:
            await memory.retrieve("bees", ctx=ctx, budget=budget)
        assert caught.value.found == []


async def test_a_turn_is_sent_once(cloud: Cloud, tmp_path: Path) -> None:
    """However often it is written, at once or later, by this process or the next."""
    ctx = turn_of(turn="t1")
    for _ in range(2):
        memory = Mem0Memory(KEY, host=cloud.url, database=f"sqlite:///{tmp_path}/rows.db")
        await asyncio.gather(*(memory.update(said("I keep bees"), ctx=ctx) for _ in range(5)))
        await memory.update(said("I keep bees"), ctx=ctx)
        assert await memory.wait_indexed()
        await memory.aclose()
    assert cloud.count("add") == 1
    assert cloud.texts() == ["I keep bees"]


@pytest.mark.parametrize("arrived", [True, False])
async def test_an_answer_that_is_lost_loses_and_doubles_nothing(cloud: Cloud, arrived: bool) -> None:
    """The connection ends after the request was sent: mem0's memories are looked through for the turn, and where it is not
    among them, it is sent again."""
    memory = Mem0Memory(KEY, host=cloud.url, infer=False, grace=1.0)
    cloud.faults["add"] = [Fault(drop=True, after=arrived)]
    await memory.update(said("I keep bees"), ctx=turn_of())
    assert await found(memory, "bees") == ["I keep bees"]
    assert await memory.wait_indexed(timeout=10)
    assert cloud.texts() == ["I keep bees"]
    assert cloud.count("add") == (1 if arrived else 2)
    await memory.aclose()


async def test_a_process_that_dies_leaves_its_turns_to_the_next(cloud: Cloud, tmp_path: Path) -> None:
    """Whether a turn was pending, under way, or not taken when the process ended: the next one has it, and sends it once."""
    database = f"sqlite:///{tmp_path}/rows.db"
    cloud.indexing.clear()
    first = Mem0Memory(KEY, host=cloud.url, database=database)
    await first.update(said("I keep bees"), ctx=turn_of())
    cloud.faults["add"] = [Fault(429, {"Retry-After": "60"})]
    with pytest.raises(MemoryBackendError, match="429"):
        await first.update(said("I keep hens"), ctx=turn_of(turn="hens"))
    await first.aclose()
    second = Mem0Memory(KEY, host=cloud.url, database=database)
    assert sorted(await found(second, "what do I keep")) == ["I keep bees", "I keep hens"]
    cloud.indexing.set()
    await second.update(said("I keep hens"), ctx=turn_of(turn="hens"))
    assert await second.wait_indexed()
    assert sorted(cloud.texts()) == ["I keep bees", "I keep hens"]
    await second.aclose()


async def test_an_event_that_fails_loses_nothing(cloud: Cloud, memory: Mem0Memory) -> None:
    """mem0 gets it again, to be kept as it was said."""
    cloud.failing = 1
    await memory.update(said("I keep bees"), ctx=turn_of())
    assert await found(memory, "bees") == ["I keep bees"]
    assert await memory.wait_indexed()
    assert cloud.texts() == ["I keep bees"]
    assert [call.body["infer"] for call in cloud.calls if call.operation == "add"] == [True, False]


async def test_what_mem0_gives_up_is_kept_here(cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After three events that failed it is found by its words, logged as an error, in later processes too; and erased."""
    cloud.failing = 3
    for number in range(2):
        memory = Mem0Memory(KEY, host=cloud.url, database=f"sqlite:///{tmp_path}/rows.db")
        if number == 0:
            await memory.update(said("I keep bees"), ctx=turn_of())
            assert await memory.wait_indexed(timeout=20)
        assert await found(memory, "bees") == ["I keep bees"]
        assert [record.content for record in (await memory.browse(ALICE)).records] == ["I keep bees"]
        if number == 1:
            await memory.erase(ALICE)
            assert await memory.remains(ALICE) == {}
            assert await found(memory, "bees") == []
        await memory.aclose()
    assert cloud.count("add") == 3
    assert [record.levelname for record in caplog.records if "failed 3 times at a turn" in record.message] == ["ERROR"]


# -- whose it is ------------------------------------------------------------------------------------------------------


async def test_what_a_team_has_in_mem0_already_is_found(cloud: Cloud, memory: Mem0Memory) -> None:
    """A user of the default tenant and space has their own id in mem0, a session is a run."""
    cloud.keep("Plays chess", user_id="alice")
    cloud.keep("Sits in row seven", run_id="s1")
    assert await found(memory, "chess") == ["Plays chess"]
    assert await found(memory, "row", turn_of(None, session="s1")) == ["Sits in row seven"]
    (record,) = (await memory.browse(ALICE)).records
    assert (record.content, record.kind) == ("Plays chess", MemoryKind.ENTITY)


async def test_no_id_reaches_what_is_another_s(cloud: Cloud, memory: Mem0Memory) -> None:
    """Ids that mem0 trims, reads as a wildcard, or that look like one of ours for another tenant are kept apart."""
    cloud.keep("The code word is heron", user_id="alice")
    await memory.update(said("The code word is lagoon"), ctx=turn_of("alice", tenant="acme"))
    assert await memory.wait_indexed()
    (encoded,) = {one["user_id"] for one in cloud.memories.values()} - {"alice"}
    for user in ("*", " alice", "alice\u00a0", encoded, "Alice", "retinue/user///alice"):
        assert await found(memory, "code word", turn_of(user)) == []
        await memory.erase(Scope.of(turn_of(user)))
    assert await found(memory, "code word", turn_of("alice", tenant="acme")) == ["The code word is lagoon"]
    assert await found(memory, "code word") == ["The code word is heron"]


_IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=300) | st.sampled_from(
    [
        "*",
        " a",
        "a",
        "a ",
        "a\u00a0",
        "jos\u00e9",
        "jose\u0301",
        "retinue/user//default/a",
        "retinue/user/x/default/a",
    ]
)
_SCOPES = st.builds(Scope, _IDS | st.just(""), _IDS | st.just("default"), st.sampled_from(["user", "session"]), _IDS)


@given(_SCOPES, _SCOPES)
def test_two_scopes_never_have_one_entity(one: Scope, other: Scope) -> None:
    """Whatever their ids hold, also after mem0 has trimmed them; and no id is a wildcard or has blanks in it."""
    first, second = Entity.of(one), Entity.of(other)
    assert (one == other) == (first == second)
    for entity in (first, second):
        assert entity.id == entity.id.strip()
        assert len(entity.id) <= 200
        assert "*" not in entity.id
        assert not re.search(r"\s", entity.id)


async def test_what_mem0_answers_wrongly_is_dropped(cloud: Cloud, memory: Mem0Memory) -> None:
    """A search or a listing that holds another's memory does not show it, nor is it deleted."""
    cloud.keep("Bob keeps wasps", user_id="bob")
    cloud.keep("Alice of run s1", run_id="s1", user_id="alice")
    cloud.leaking = True
    assert await found(memory, "keeps") == ["Alice of run s1"]
    assert await found(memory, "alice", turn_of(None, session="s1")) == []
    assert (await memory.browse(Scope.of(turn_of("carol")))).records == ()
    await memory.forget(Scope.of(turn_of("carol")), query="keeps")
    assert len(cloud.memories) == 2


async def test_a_session_is_erased_without_its_users(cloud: Cloud, memory: Mem0Memory) -> None:
    """mem0 deletes by run whoever's it is: what names a user as well stays."""
    cloud.keep("Alice in run s1", run_id="s1", user_id="alice")
    await memory.update(said("Nobody in run s1"), ctx=turn_of(None, session="s1"))
    receipt = await memory.erase(Scope.of(turn_of(None, session="s1")))
    assert receipt.deleted["memories"] == 1
    assert cloud.texts() == ["Alice in run s1"]


async def test_delete_all_always_names_a_user(cloud: Cloud, memory: Mem0Memory) -> None:
    """mem0 deletes everything of everybody if no entity is named: one always is."""
    await memory.update(said("I keep bees"), ctx=turn_of())
    await memory.erase(ALICE)
    assert [call.params for call in cloud.calls if call.operation == "delete_all"] == [{"user_id": "alice"}]


async def test_an_erasure_wins_over_what_is_under_way(cloud: Cloud, memory: Mem0Memory) -> None:
    """A request that mem0 has not answered, and one that it is working on: what becomes of them is deleted when it is there;
    until then the receipt says so."""
    cloud.indexing.clear()
    await memory.update(said("I keep bees"), ctx=turn_of())
    cloud.faults["add"] = [Fault(stall=True)]
    under_way = asyncio.create_task(memory.update(said("I keep hens"), ctx=turn_of()))
    await eventually_so(lambda: cloud.count("add") == 2)
    receipt = await memory.erase(ALICE)
    assert any("2 turns that mem0 is working on" in left for left in receipt.left)
    assert await found(memory, "bees hens") == []
    assert await memory.remains(ALICE) == {"mem0_turns": 2}
    cloud.go_on.set()
    cloud.indexing.set()
    await under_way
    assert await memory.wait_indexed()
    assert await memory.remains(ALICE) == {}
    assert cloud.memories == {}


async def test_a_message_forgotten_while_mem0_extracts_stays_forgotten(cloud: Cloud, memory: Mem0Memory) -> None:
    """A pending message that was forgotten is not found once mem0 has extracted it."""
    cloud.indexing.clear()
    await memory.update(said("I keep bees"), ctx=turn_of())
    await memory.update(said("I like figs"), ctx=turn_of())
    await memory.forget(ALICE, query="bees")
    assert await found(memory, "bees figs") == ["I like figs"]
    cloud.indexing.set()
    assert await memory.wait_indexed()
    assert await found(memory, "bees figs") == ["I like figs"]
    assert cloud.texts() == ["I like figs"]


async def test_what_mem0_cannot_tell_is_refused(memory: Mem0Memory) -> None:
    """What held at an earlier time is not guessed."""
    await memory.update(said("I keep bees"), ctx=turn_of())
    with pytest.raises(ValueError, match="leave out as_of"):
        await memory.browse(ALICE, MemoryFilter(as_of=DAY))
    with pytest.raises(ValueError, match="leave out as_of"):
        await memory.retrieve("bees", ctx=turn_of(), as_of=DAY)


async def test_a_recall_may_be_narrowed(cloud: Cloud, memory: Mem0Memory) -> None:
    """By kind, by when it was said, by a budget: what mem0 has, and what it does not have yet."""
    await memory.add(ALICE, "Keeps bees", kind=MemoryKind.PREFERENCE)
    await memory.update([Message("user", "I keep hens", created_at=DAY)], ctx=turn_of())
    assert await memory.wait_indexed()
    cloud.indexing.clear()
    await memory.update([Message("user", "I keep geese", created_at=DAY)], ctx=turn_of())
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"Keeps bees", "I keep hens", "I keep geese"}),
        ({"kinds": ["Preference"]}, {"Keeps bees"}),
        ({"until": DAY + timedelta(days=1)}, {"I keep hens", "I keep geese"}),
        ({"since": DAY, "until": DAY + timedelta(days=1), "kinds": ["RecentMessage"]}, {"I keep geese"}),
        ({"budget": 5}, set()),
    ]
    for narrowed, texts in cases:
        hits = await memory.retrieve("what do I keep", ctx=turn_of(), **narrowed)
        assert {hit.content for hit in hits} == texts, narrowed


# -- when it is not well ----------------------------------------------------------------------------------------------


async def test_a_wrong_key_is_said_and_not_shown(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    """An error that names the setting and does not hold the key, without a second try; nor does a log line hold it."""
    wrong = "m0-wrong-and-secret"
    memory = Mem0Memory(wrong, host=cloud.url)
    for call in (memory.retrieve("x", ctx=turn_of()), memory.update(said("x"), ctx=turn_of())):
        with pytest.raises(MemoryBackendError, match=r"the key was refused \(401\): check MEM0_API_KEY") as caught:
            await call
        assert wrong not in str(caught.value)
    assert cloud.count("ping") == 2
    await memory.aclose()
    assert wrong not in caplog.text


async def test_a_key_that_is_withdrawn_is_not_tried_all_the_time(cloud: Cloud, memory: Mem0Memory) -> None:
    """What mem0 was working on is asked about ever more seldom, and is known to be there when the key works again."""
    await memory.update(said("I keep bees"), ctx=turn_of())
    cloud.faults = {"event": [Fault(401)], "page": [Fault(401)] * 1000}
    assert not await memory.wait_indexed(timeout=2.0)
    assert 1 <= cloud.count("page") < 8
    cloud.faults.clear()
    assert await memory.wait_indexed()
    assert (cloud.texts(), cloud.count("add")) == (["I keep bees"], 1)


async def test_too_many_requests_are_repeated_when_mem0_says(cloud: Cloud, memory: Mem0Memory) -> None:
    """A Retry-After is waited for, for an update too: it was not taken. One that is too long is an error at once."""
    cloud.faults["add"] = [Fault(429, {"Retry-After": "1"})]
    before = time.monotonic()
    await memory.update(said("I keep bees"), ctx=turn_of())
    assert time.monotonic() - before >= 1.0
    assert cloud.count("add") == 2
    assert await memory.wait_indexed()
    cloud.faults["search"] = [Fault(429, {"Retry-After": "3600"})]
    with pytest.raises(MemoryBackendError, match=r"too many requests \(429\), again in 3600 s"):
        await memory.retrieve("bees", ctx=turn_of())


async def test_what_mem0_did_not_take_is_tried_again_without_a_caller(cloud: Cloud, memory: Mem0Memory) -> None:
    """The caller is told, what was said is found when mem0 can be searched, and it is sent in the background."""
    cloud.faults["add"] = [Fault(429, {"Retry-After": "0.1"})] * 3
    with pytest.raises(MemoryBackendError, match="429"):
        await memory.update(said("I keep bees"), ctx=turn_of(turn="t"))
    assert await found(memory, "bees") == ["I keep bees"]
    assert await memory.wait_indexed(timeout=10)
    assert cloud.texts() == ["I keep bees"]
    await memory.update(said("I keep bees"), ctx=turn_of(turn="t"))
    assert cloud.count("add") == 4


async def test_a_queued_update_returns_once_it_is_stored(cloud: Cloud, tmp_path: Path) -> None:
    """Nobody waits for mem0, which fails: what was said is found, and sent in the background in its order, each once."""
    memory = Mem0Memory(KEY, host=cloud.url, infer=False, database=f"sqlite:///{tmp_path}/rows.db")
    assert memory.queues_writes
    assert await found(memory, "anything") == []  # mem0 is imported
    cloud.faults["add"] = [Fault(429, {"Retry-After": "0.1"})] * 4
    texts = [f"I keep bees in hive {number}" for number in range(4)]
    for text in texts:
        await memory.update(said(text), ctx=turn_of(turn=text), wait=False)
    await memory.update(said(texts[0]), ctx=turn_of(turn=texts[0]), wait=False)
    assert sorted(await found(memory, "bees in the hive")) == texts
    assert await memory.wait_indexed(timeout=20)
    assert cloud.texts() == texts
    assert cloud.count("add") == 8
    await memory.aclose()


async def test_what_mem0_refuses_of_a_queued_update_is_kept(cloud: Cloud, tmp_path: Path) -> None:
    """Nobody is told, so it is found by its words."""
    memory = Mem0Memory(KEY, host=cloud.url, database=f"sqlite:///{tmp_path}/rows.db")
    cloud.faults["add"] = [Fault(413)]
    await memory.update(said("I keep bees"), ctx=turn_of(), wait=False)
    assert await memory.wait_indexed(timeout=20)
    assert await found(memory, "bees") == ["I keep bees"]
    assert cloud.count("add") == 1
    await memory.aclose()


async def test_a_message_that_mem0_refuses_is_an_error_and_not_kept(cloud: Cloud, memory: Mem0Memory) -> None:
    """A refused update raises, and leaves nothing pending."""
    cloud.faults["add"] = [Fault(413)]
    with pytest.raises(MemoryBackendError, match=r"refused \(413\)"):
        await memory.update(said("I keep bees"), ctx=turn_of())
    assert await found(memory, "bees") == []
    assert await memory.remains(ALICE) == {}


async def test_a_failing_server_is_asked_again_and_then_left_alone(cloud: Cloud, memory: Mem0Memory) -> None:
    """A search is repeated, an update that may have been taken is not. After five failures in a row nothing is asked, and the
    error says until when."""
    await memory.update(said("I keep bees"), ctx=turn_of())
    assert await memory.wait_indexed()
    cloud.faults["search"] = [Fault(503), Fault(drop=True)]
    assert await found(memory, "bees") == ["I keep bees"]
    cloud.faults["search"] = [Fault(500)] * 9
    for _ in range(2):
        with pytest.raises(MemoryBackendError, match=r"500|not asked again"):
            await memory.retrieve("bees", ctx=turn_of())
    asked = len(cloud.calls)
    with pytest.raises(
        MemoryBackendError, match=r"failed 5 times in a row and is not asked again before \d\d:\d\d:\d\d UTC"
    ):
        await memory.retrieve("bees", ctx=turn_of())
    assert len(cloud.calls) == asked


async def test_a_flapping_server_loses_and_doubles_nothing(cloud: Cloud, tmp_path: Path) -> None:
    """Every second request but searches fails in one of six ways, events too, and the process is replaced halfway: each turn is
    found at once where mem0 can be searched at all, and in the end mem0 has each exactly once."""
    draw = random.Random(20261120)
    ways = [Fault(500), Fault(503), Fault(429, {"Retry-After": "0"}), Fault(drop=True)]
    ways += [Fault(500, after=True), Fault(drop=True, after=True)]
    for operation in ("ping", "add", "page", "event"):
        cloud.faults[operation] = [draw.choice([Fault(), draw.choice(ways)]) for _ in range(60)]
    cloud.failing = 2
    texts = [f"Box {number} is on shelf {number}" for number in range(24)]
    for part in (texts[:12], texts[12:]):
        memory = Mem0Memory(KEY, host=cloud.url, infer=False, grace=1.0, database=f"sqlite:///{tmp_path}/rows.db")
        turns = [turn_of(f"user {number % 3}", turn=text) for number, text in enumerate(part)]
        writes = [memory.update(said(text), ctx=ctx) for text, ctx in zip(part, turns, strict=True)]
        refused = [one for one in await asyncio.gather(*writes, return_exceptions=True) if one is not None]
        assert all(isinstance(one, MemoryBackendError) for one in refused)
        for text, ctx in zip(part, turns, strict=True):
            with contextlib.suppress(MemoryBackendError):
                assert text in await found(memory, text, ctx, top_k=20)
        if part[-1] == texts[-1]:
            assert await memory.wait_indexed(timeout=60)
        await memory.aclose()
    assert sorted(cloud.texts()) == sorted(texts)


async def test_an_open_circuit_lets_one_call_try(cloud: Cloud) -> None:
    """When the rest is over one call is made, however many want to; it closes the circuit, or keeps it open."""
    asked, works = list[int](), asyncio.Event()

    async def ask() -> str:
        asked.append(1)
        await asyncio.sleep(0)
        if not works.is_set():
            raise ServiceError("out of order")
        return "well"

    call = Caller("mem0", tries=1, opens_after=2, rest_s=0.05)
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"^out of order"):
            await call(ask, again=True)
    for made in (3, 4):
        while len(asked) < made:
            answers = await asyncio.gather(*(call(ask, again=True) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(answer, ServiceError) for answer in answers)
        assert len(asked) == made
    works.set()
    while len(asked) < 5:
        await asyncio.gather(*(call(ask, again=True) for _ in range(5)), return_exceptions=True)
    assert len(asked) == 5
    assert await asyncio.gather(*(call(ask, again=True) for _ in range(3))) == ["well"] * 3


async def test_a_stalled_first_call_holds_up_nobody(cloud: Cloud) -> None:
    """mem0's constructor waits for its ping in a thread: the loop goes on, callers get an error in time, there is one thread
    however many call, and when it is through, the next call uses what it made."""
    cloud.faults["ping"] = [Fault(stall=True)]
    memory = Mem0Memory(KEY, host=cloud.url, timeout=0.3)
    longest = asyncio.create_task(longest_lag())
    for _ in range(2):
        calls = [memory.retrieve("x", ctx=turn_of(f"user{number}")) for number in range(10)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all("did not answer mem0's first call within 0.3 s" in str(answer) for answer in answers)
    assert cloud.count("ping") == 1
    assert sum(thread.name == "mem0-connecting" for thread in threading.enumerate()) == 1
    cloud.go_on.set()
    await eventually_so(lambda: not any(thread.name == "mem0-connecting" for thread in threading.enumerate()))
    assert await found(memory, "x") == []
    assert cloud.count("ping") == 1
    longest.cancel()
    assert await longest < 1.0
    await memory.aclose()


async def test_closing_does_not_wait_for_a_stalled_call(cloud: Cloud) -> None:
    """`aclose` returns while a call hangs, and calls after it say that the memory is closed."""
    cloud.faults["ping"] = [Fault(stall=True)]
    memory = Mem0Memory(KEY, host=cloud.url, timeout=0.1)
    with pytest.raises(MemoryBackendError):
        await memory.retrieve("x", ctx=turn_of())
    async with asyncio.timeout(5):
        await memory.aclose()
    with pytest.raises(MemoryBackendError, match="closed"):
        await memory.retrieve("x", ctx=turn_of())


async def test_a_slow_search_ends_in_time_and_holds_up_no_update(cloud: Cloud) -> None:
    """A search that hangs ends at its timeout, and updates go on meanwhile."""
    memory = Mem0Memory(KEY, host=cloud.url, timeout=0.5)
    cloud.faults["search"] = [Fault(stall=True)] * 9
    longest = asyncio.create_task(longest_lag())
    searching = asyncio.create_task(memory.retrieve("bees", ctx=turn_of()))
    await eventually_so(lambda: cloud.count("search") == 1)
    await memory.update(said("I keep bees"), ctx=turn_of())
    with pytest.raises(MemoryBackendError, match=r"did not answer search within 0\.5 s"):
        await searching
    longest.cancel()
    assert await longest < 1.0
    cloud.go_on.set()
    cloud.faults.clear()
    await memory.aclose()


async def test_a_caller_that_gives_up_loses_nothing(cloud: Cloud, memory: Mem0Memory) -> None:
    """An update that is cancelled while mem0 is being told goes on by itself."""
    cloud.faults["add"] = [Fault(stall=True)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await memory.update(said("I keep bees"), ctx=turn_of())
    assert await found(memory, "bees") == ["I keep bees"]
    cloud.go_on.set()
    assert await memory.wait_indexed()
    assert (cloud.texts(), cloud.count("add")) == (["I keep bees"], 1)


async def longest_lag() -> float:
    """How long the loop was held up at most, in seconds, until this is cancelled."""
    longest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before - 0.005)
    return longest


def test_it_is_used_from_any_loop(cloud: Cloud) -> None:
    """One memory, a loop a call, in one thread and in several."""
    memory = Mem0Memory(KEY, host=cloud.url)
    asyncio.run(memory.update(said("I keep bees"), ctx=turn_of()))
    with ThreadPoolExecutor(4) as threads:
        answers = [one.result() for one in [threads.submit(asyncio.run, found(memory, "bees")) for _ in range(8)]]
    assert answers == [["I keep bees"]] * 8
    asyncio.run(memory.aclose())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_a_key_is_needed_and_taken_from_the_environment(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Mem0Memory()` as the documents have it."""
    monkeypatch.delenv("MEM0_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set MEM0_API_KEY"):
        retinue_memory.Mem0Memory()
    monkeypatch.setenv("MEM0_API_KEY", KEY)
    memory = retinue_memory.Mem0Memory(host=cloud.url)
    assert asyncio.run(found(memory, "x")) == []
    assert {call.authorization for call in cloud.calls} == {f"Token {KEY}"}
    memory.close()


@pytest.mark.parametrize(
    ("entry", "key", "problem"),
    [
        ({"api_kei": "x"}, "api_kei", 'did you mean "api_key"'),
        ({"api_key": 3}, "api_key", "expected text"),
        ({"api_key": "line\nbreak"}, "api_key", "what no HTTP header can"),
        ({"host": "api.mem0.ai"}, "host", "such as https://api.mem0.ai"),
        ({"timeout": 0}, "timeout", "more than 0"),
        ({"infer": "no"}, "infer", "true or false"),
        ({"database": "rows.db"}, "database", "sqlite:///"),
    ],
)
def test_a_wrong_setting_is_named(entry: dict[str, Any], key: str, problem: str) -> None:
    """The error for a wrong setting carries its key."""
    with pytest.raises(ConfigError, match=problem) as caught:
        open_memory({"backend": "mem0", "api_key": KEY} | entry)
    assert caught.value.key == key


def test_without_mem0_the_error_says_what_to_install() -> None:
    """Without mem0ai the error names the extra to install."""
    run_python("""
        import sys
        sys.modules["mem0"] = None
        from retinue_memory import Mem0Memory
        from retinue_memory.errors import ConfigError
        try:
            Mem0Memory("a key")
        except ConfigError as error:
            assert "pip install 'retinue[mem0]'" in str(error), error
        else:
            raise AssertionError("it was made")
    """)


def test_nothing_phones_home(cloud: Cloud, tmp_path: Path) -> None:
    """mem0 is imported at the first use, after its telemetry was switched off; only the host is contacted, at the end too, and no
    file is left in the home folder."""
    (tmp_path / "passing").mkdir()
    run_python(
        f"""
        import asyncio, os, sys
        seen = []

        def watch(event, args):
            if event == "import" and args[0] == "mem0.memory.telemetry":
                seen.append(os.environ.get("MEM0_TELEMETRY"))
            elif event == "socket.connect" and isinstance(args[1], tuple):
                assert args[1][:2] == ("127.0.0.1", {cloud.url.rpartition(":")[2]}), args[1]
            elif event == "socket.getaddrinfo":
                assert args[0] in ("127.0.0.1", b"127.0.0.1"), args[0]

        sys.addaudithook(watch)
        from retinue_memory import InvocationContext, Mem0Memory, Message
        memory = Mem0Memory("{KEY}", host="{cloud.url}")
        assert "mem0" not in sys.modules
        ctx = InvocationContext("s", "alice")

        async def use():
            await memory.update([Message("user", "I keep bees")], ctx=ctx)
            assert [hit.content for hit in await memory.retrieve("bees", ctx=ctx)] == ["I keep bees"]
            await memory.aclose()

        asyncio.run(use())
        assert seen and set(seen) == {{"False"}}, seen
        """,
        HOME=str(tmp_path),
        TMPDIR=str(tmp_path / "passing"),
        MEM0_DIR="",
    )
    assert [(path.name, list(path.iterdir())) for path in tmp_path.iterdir()] == [("passing", [])]


def run_python(program: str, **environment: str) -> None:
    """Run a program in a process of its own, to its end."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
