"""Memories written as callbacks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retinue_memory import (
    InvocationContext,
    MemoryBackend,
    MemoryEntry,
    MemoryKind,
    MemoryModule,
    Message,
    as_memory,
)
from retinue_memory.callbacks import MAX_RUNNING_CALLS
from retinue_memory.errors import IdentityError, MemoryBackendError
from retinue_memory.recall import Recall
from retinue_memory.testing import turn_of

Log = list[tuple[Any, ...]]
TURN = [Message("user", "I am from Italy"), Message("assistant", "Nice!")]


def entry(content: str, relevance: float = 0.5) -> MemoryEntry:
    return MemoryEntry("k1", content, MemoryKind.PREFERENCE, relevance, 1_700_000_000_123_456_789)


def ignore(session_id: str, user_msg: str, assistant_msg: str) -> None:
    """A record that keeps nothing."""


def recalling(answer: Any) -> Callable[[str, str, int], Any]:
    return lambda session_id, query, most: answer


class Plain(MemoryBackend):
    """Synchronous, without a consolidate of its own."""

    name = "plain"

    def __init__(self) -> None:
        self.log: Log = []
        self.threads: set[int] = set()

    def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
        self.threads.add(threading.get_ident())
        self.log.append(("record", session_id, user_msg, assistant_msg))

    def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
        self.threads.add(threading.get_ident())
        self.log.append(("recall", session_id, query, max_entries))
        return [entry(said[2]) for said in self.log if said[:2] == ("record", session_id)]

    def flush(self, session_id: str) -> None:
        self.log.append(("flush", session_id))


class Asynchronous(MemoryBackend):
    """Every method a coroutine, on the loop that calls."""

    name = "asynchronous"

    def __init__(self) -> None:
        self.log: Log = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
        self.loops.add(asyncio.get_running_loop())
        self.log.append(("record", session_id, user_msg, assistant_msg))

    async def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
        self.log.append(("recall", session_id, query, max_entries))
        return [entry(said[2]) for said in self.log if said[:2] == ("record", session_id)]

    async def flush(self, session_id: str) -> None:
        self.log.append(("flush", session_id))

    async def consolidate(self, session_id: str) -> None:
        self.log.append(("consolidate", session_id))


async def test_synchronous_methods_run_off_the_loop() -> None:
    """The event loop never waits for them; a turn is record, then flush; the default consolidate costs nothing."""
    backend = Plain()
    memory = as_memory(backend.as_memory_module())
    await memory.update(TURN, ctx=turn_of())
    (hit,) = await memory.retrieve("Italy", top_k=4, ctx=turn_of())
    key = "user//default/alice"
    assert backend.log == [
        ("record", key, "I am from Italy", "Nice!"),
        ("flush", key),
        ("recall", key, "Italy", 4),
    ]
    assert threading.get_ident() not in backend.threads
    assert backend.as_memory_module().consolidate is None
    assert memory.name == "plain"
    assert hit.content == "I am from Italy"


async def test_coroutines_run_on_the_loop_in_order() -> None:
    """record -> consolidate -> flush."""
    backend = Asynchronous()
    await as_memory(backend).update(TURN, ctx=turn_of())
    assert [call[0] for call in backend.log] == ["record", "consolidate", "flush"]
    assert backend.loops == {asyncio.get_running_loop()}


async def test_a_plain_function_may_return_an_awaitable() -> None:
    """Each callback may be either, or a mixture."""
    said: list[str] = []

    def record(session_id: str, user_msg: str, assistant_msg: str) -> Any:
        async def later() -> None:
            said.append(user_msg)

        return later()

    memory = as_memory(MemoryModule("mixed", record, lambda session_id, query, most: [entry("x")]))
    await memory.update(TURN, ctx=turn_of())
    assert said == ["I am from Italy"]
    assert [hit.content for hit in await memory.retrieve("x", ctx=turn_of())] == ["x"]


async def test_entries_become_messages_with_their_provenance() -> None:
    """Kind, time, key and relevance arrive; a relevance out of range is brought into it."""
    entries = [entry("a", 0.9), entry("b", 7.0), entry("c", float("nan")), entry("d")]
    memory = as_memory(MemoryModule("m", ignore, recalling(entries)))
    hits = await memory.retrieve("x", top_k=3, ctx=turn_of())
    assert [hit.metadata["memory"]["score"] for hit in hits] == [0.9, 1.0, 0.0]
    assert hits[0].metadata["memory"] == {
        "id": "k1",
        "kind": "Preference",
        "score": 0.9,
        "sources": [],
        "created_at": "2023-11-14T22:13:20.123456+00:00",
        "backend": "m",
    }


async def test_scopes_of_users_tenants_sessions_and_spaces_differ() -> None:
    """What a backend sees as session_id is a different string for every scope."""
    backend = Plain()
    contexts = [
        InvocationContext("s", "u"),
        InvocationContext("u"),
        InvocationContext("s", "u", tenant="t"),
        InvocationContext("s", "t/u"),
    ]
    for ctx in contexts:
        await as_memory(backend).update(TURN, ctx=ctx)
        await as_memory(backend, space="other").update(TURN, ctx=ctx)
    assert len({call[1] for call in backend.log if call[0] == "record"}) == 2 * len(contexts)
    with pytest.raises(IdentityError):
        await as_memory(backend).retrieve("x")


@pytest.mark.parametrize(
    ("messages", "recorded"),
    [
        ([Message("user", "a")], [("a", "")]),
        ([Message("user", "a"), Message("user", "b"), Message("assistant", "c")], [("a", ""), ("b", "c")]),
        ([Message("assistant", "c")], [("", "c")]),
        ([Message("system", "x"), Message("user", "a"), Message("tool", "y"), Message("assistant", "c")], [("a", "c")]),
        ([], []),
    ],
)
async def test_messages_are_recorded_as_exchanges(messages: list[Message], recorded: list[tuple[str, str]]) -> None:
    """A user's message with the answer that follows it; instructions and tool results are left out."""
    backend = Plain()
    await as_memory(backend).update(messages, ctx=turn_of())
    assert [call[2:] for call in backend.log if call[0] == "record"] == recorded


async def test_a_turn_is_recorded_once() -> None:
    """The same turn id again changes nothing; of a turn that failed, what was not done is done when it is tried again."""
    backend, failing = Plain(), [True]
    flushed: list[bool] = []

    def flush(session_id: str) -> None:
        flushed.append(not failing)
        if failing:
            raise OSError("disk")

    memory = as_memory(MemoryModule("m", backend.record, backend.recall, flush))
    with pytest.raises(MemoryBackendError, match="m: flush failed: OSError: disk"):
        await memory.update(TURN, ctx=turn_of(turn="t1"))
    failing.clear()
    for _ in range(3):
        await memory.update(TURN, ctx=turn_of(turn="t1"))
    assert len([call for call in backend.log if call[0] == "record"]) == 1
    assert flushed == [False, True]


@pytest.mark.parametrize("error", [OSError("gone"), KeyError("x"), SystemExit(3), StopIteration()])
async def test_whatever_a_backend_raises_is_a_memory_error(error: BaseException) -> None:
    """Named, with its cause, and never the end of the process."""

    def recall(session_id: str, query: str, most: int) -> list[MemoryEntry]:
        raise error

    memory = as_memory(MemoryModule("mine", ignore, recall))
    with pytest.raises(MemoryBackendError, match="mine: recall failed") as caught:
        await memory.retrieve("x", ctx=turn_of())
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("answer", [["text"], 5, [None]])
async def test_answers_of_the_wrong_shape_are_memory_errors(answer: Any) -> None:
    """Something else than MemoryEntry objects."""
    memory = as_memory(MemoryModule("mine", ignore, recalling(answer)))
    with pytest.raises(MemoryBackendError, match="MemoryEntry"):
        await memory.retrieve("x", ctx=turn_of())


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_a_crowd_waits_its_turn() -> None:
    """Many more calls at once than threads, of a backend that answers: each has its answer, and no more run than may."""
    running, most = [0], [0]
    lock = threading.Lock()

    def recall(session_id: str, query: str, most_entries: int) -> list[MemoryEntry]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)  # what a call of a real one takes
        with lock:
            running[0] -= 1
        return [entry(query)]

    memory = as_memory(MemoryModule("busy", ignore, recall))
    given_up = [asyncio.create_task(memory.retrieve("never mind", ctx=turn_of())) for _ in range(50)]
    answers = asyncio.gather(*(memory.retrieve(str(number), ctx=turn_of()) for number in range(300)))
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    assert [hit.content for (hit,) in await answers] == [str(number) for number in range(300)]
    assert most[0] <= MAX_RUNNING_CALLS


async def test_a_backend_that_blocks_is_left_behind(gate: threading.Event) -> None:
    """Its thread waits on alone; after too many of them it is refused at once instead of adding one more."""

    def recall(session_id: str, query: str, most: int) -> list[MemoryEntry]:
        gate.wait(60)
        return []

    memory = as_memory(MemoryModule("stuck", ignore, recall))
    recalls = [Recall([memory], timeout=0.2).retrieve("x", turn_of()) for _ in range(MAX_RUNNING_CALLS)]
    for result in await asyncio.gather(*recalls):
        assert [failure.problem for failure in result.failures] == ["no answer within 0.2 s"]
    result = await Recall([memory], timeout=30).retrieve("x", turn_of())
    assert "earlier calls still run" in result.failures[0].problem


async def test_a_record_that_hangs_is_not_made_twice(gate: threading.Event) -> None:
    """Who writes a turn again while its call still runs in its thread waits for that call, and makes the rest."""
    calls: list[str] = []

    def record(session_id: str, user_msg: str, assistant_msg: str) -> None:
        calls.append("record")
        gate.wait(60)

    def flush(session_id: str) -> None:
        calls.append("flush")

    memory = as_memory(MemoryModule("slow", record, recalling([]), flush))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await memory.update(TURN, ctx=turn_of(turn="t1"))
    again = asyncio.create_task(memory.update(TURN, ctx=turn_of(turn="t1")))
    other = asyncio.create_task(memory.update(TURN, ctx=turn_of(turn="t2")))
    gate.set()
    await asyncio.gather(again, other)
    assert sorted(calls) == ["flush", "flush", "record", "record"]


async def test_a_backend_may_take_the_turns_id() -> None:
    """Then it is given one that is the same whenever a call is repeated, and another for every other call."""
    ids: list[str] = []

    def record(session_id: str, user_msg: str, assistant_msg: str, *, turn_id: str) -> None:
        ids.append(turn_id)

    messages = [Message("user", "book it"), Message("assistant", "which one?"), *TURN]
    for _ in range(2):
        memory = as_memory(MemoryModule("m", record, recalling([])))
        await memory.update(messages, ctx=turn_of(turn="t1"))
        assert not await memory.already_written(messages, ctx=turn_of(turn="t1"))
        await memory.update(TURN, ctx=turn_of())
    assert ids[:2] == ids[3:5] == ["t1", "t1#1"]
    assert len(set(ids)) == 4


async def test_a_backend_without_turn_ids_tells_by_what_it_recalls() -> None:
    """Written is what it gives back word for word, recorded since it was said; a broken answer is no answer."""
    now = time.time_ns()
    answers: list[tuple[Any, bool]] = [
        ([MemoryEntry("k", "She said: I am from Italy", MemoryKind.ENTITY, 0.1, now + 10**9)], True),
        ([MemoryEntry("k", "I am from Italy", MemoryKind.ENTITY, 0.9, now - 3600 * 10**9)], False),
        ([MemoryEntry("k", "Comes from Italy", MemoryKind.ENTITY, 0.9, now + 10**9)], False),
        ([], False),
        (None, False),
    ]
    for answer, written in answers:
        memory = as_memory(MemoryModule("m", ignore, recalling(answer)))
        said = [Message("user", "I am from Italy"), Message("assistant", "Nice!")]
        assert await memory.already_written(said, ctx=turn_of()) is written
    with pytest.raises(MemoryBackendError, match="MemoryEntry"):
        await as_memory(MemoryModule("m", ignore, recalling(["text"]))).already_written(TURN, ctx=turn_of())
