"""Several memories as one."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_memory import (
    InvocationContext,
    Memory,
    Message,
    Recall,
    provenance,
)
from retinue_memory.errors import MemoryBackendError
from retinue_memory.recall import merge
from retinue_memory.testing import turn_of

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def hit(content: str, score: float | None = None) -> Message:
    metadata = {} if score is None else {"memory": {"score": score}}
    return Message("system", content, created_at=WHEN, metadata=metadata)


class Fixed(Memory):
    """Knows what it was made with, or raises it."""

    def __init__(self, name: str, answer: Any) -> None:
        self.name = name
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        self.asked.append({"query": query, "top_k": top_k, **kwargs})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        raise AssertionError("recall does not write")


class Hanging(Fixed):
    """Does not answer, and does not heed being cancelled either, until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [])
        self.let_go = asyncio.Event()

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        raise OSError("too late")


async def test_the_best_of_all_under_one_budget() -> None:
    """By score, a text once, no more than top_k; each is asked with the budget and the context."""
    one = Fixed("one", [hit("a", 0.9), hit("b", 0.2)])
    two = Fixed("two", [hit("c", 0.5), hit(" a\n", 0.4), hit("d", 0.3)])
    ctx = turn_of()
    result = await Recall([one, two], top_k=3).retrieve("q", ctx)
    assert [message.content for message in result.messages] == ["a", "c", "d"]
    assert result.failures == ()
    assert one.asked == two.asked == [{"query": "q", "top_k": 3, "ctx": ctx}]


async def test_one_that_fails_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of every kind are named in the result and in the log, and the rest is there."""
    memories = [
        Fixed("refusing", MemoryBackendError("no connection")),
        Fixed("buggy", ZeroDivisionError("oops")),
        Fixed("odd", ["text"]),
        Fixed("good", [hit("a")]),
        Fixed("empty", None),
    ]
    result = await Recall(memories).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == ["a"]
    assert [(failure.memory, failure.problem) for failure in result.failures] == [
        ("refusing", "no connection"),
        ("buggy", "ZeroDivisionError: oops"),
        ("odd", "TypeError: expected retrieve to return Messages, got a str"),
    ]
    assert "memory buggy: retrieve failed" in caplog.text


async def test_duplicates_are_joined() -> None:
    """Texts that differ in case, white space or a full stop are one message: the best one, with the sources of all."""

    def from_(content: str, score: float, backend: str, *sources: str) -> Message:
        memory = {"id": backend, "kind": "Entity", "score": score, "sources": [*sources], "backend": backend}
        return Message("system", content, created_at=WHEN, metadata={"memory": memory, "role": "user"})

    one = Fixed("one", [from_("I like figs.", 0.5, "one", "m1", "m2"), from_("c", 0.1, "one")])
    two = Fixed("two", [from_("i like  FIGS", 0.9, "two", "m2", "m3"), from_("b", 0.8, "two", "m4")])
    three = Fixed("three", [Message("system", "I like figs", created_at=WHEN)])
    result = await Recall([one, two, three], top_k=2).retrieve("q", turn_of())
    joined, other = result.messages
    assert joined.content == "I like figs"  # no score: the first of its answer
    assert provenance(joined)["sources"] == ["m2", "m3", "m1"]
    assert other == two.answer[1]


@pytest.mark.parametrize("limit", [2, 6])
async def test_all_are_asked_at_the_same_time(limit: int) -> None:
    """None waits for another, and the order of what they know does not depend on who was first to answer."""
    everyone = asyncio.Barrier(limit)
    turns = [asyncio.Event() for _ in range(limit + 1)]

    class Together(Fixed):
        async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
            await everyone.wait()
            place = int(self.name)
            await turns[place + 1].wait()  # the last one answers first
            turns[place].set()
            return [hit(self.name)]

    turns[limit].set()
    memories = [Together(str(place), None) for place in range(limit)]
    result = await Recall(memories, top_k=limit, timeout=20).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == [str(place) for place in range(limit)]


@pytest.mark.parametrize(
    "nonsense",
    [
        5,
        [None],
        [Message("system", None)],  # type: ignore[arg-type]
        [Message("system", "x", name=5)],  # type: ignore[arg-type]
        [Message("system", "x", created_at="yesterday")],  # type: ignore[arg-type]
        [Message("system", "x", created_at=datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))))],
        [Message("system", "x", metadata=None)],  # type: ignore[arg-type]
        [Message("system", "\ud83d")],
        [Message("system", "x", id=7)],  # type: ignore[arg-type]
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_failure_of_its_memory(nonsense: Any) -> None:
    """Not of the others, nor of the answer."""
    result = await Recall([Fixed("odd", nonsense), Fixed("good", [hit("a")])]).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == ["a"]
    assert [failure.memory for failure in result.failures] == ["odd"]


async def test_an_endless_result_is_cut_at_top_k() -> None:
    """A memory that returns an endless iterable is read up to top_k."""

    def endless() -> Iterator[Message]:
        for number in itertools.count():
            yield hit(str(number))

    result = await Recall([Fixed("endless", endless())], top_k=3).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"memory": None},
        {"memory": {"score": math.nan, "sources": 5, "kind": None}},
        {"memory": {"id": 7, "score": 10**400, "sources": ["\ud83d", 2]}},
    ],
)
def test_provenance_has_the_types_it_is_to_have(given: dict[str, Any]) -> None:
    """Whatever a memory says of where a message comes from: what is shown to callers is of one form."""
    said = provenance(Message("system", "x", id="i", created_at=WHEN, metadata=given))
    odd = "id" in (given.get("memory") or ())
    assert said == {
        "id": "7" if odd else "i",
        "kind": "RecentMessage",
        "score": 0.0,
        "sources": ["?", "2"] if odd else [],
        "created_at": "2024-01-01T00:00:00+00:00",
        "backend": "",
    }
    numpy = Message("system", "x", metadata={"memory": {"score": np.float32(0.5)}})
    assert provenance(numpy)["score"] == 0.5


async def test_what_a_memory_has_at_hand_is_used_where_it_fails() -> None:
    """Said to have failed all the same."""

    class Prepared(Hanging):
        def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
            return [hit("not yet written")]

    prepared = Prepared("prepared")
    result = await Recall([prepared], timeout=0.05).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == ["not yet written"]
    assert [failure.memory for failure in result.failures] == ["prepared"]
    prepared.let_go.set()


async def test_what_a_memory_found_before_it_failed_is_used() -> None:
    """`found` of its error, checked as any answer is; said to have failed all the same."""

    nonsense: Any = ["no message"]
    halfway = Fixed("halfway", MemoryBackendError("half of it is down", found=[hit("the other half")]))
    wrong = Fixed("wrong", MemoryBackendError("so is this", found=nonsense))
    result = await Recall([halfway, wrong, Fixed("whole", [hit("all")])]).retrieve("q", turn_of())
    assert {message.content for message in result.messages} == {"the other half", "all"}
    assert [failure.memory for failure in result.failures] == ["halfway", "wrong"]
    assert result.failures[0].problem == "half of it is down"


async def test_one_that_hangs_is_left_behind_at_its_deadline() -> None:
    """Even if it ignores being cancelled; what it raises later disturbs nobody."""
    hanging = Hanging("hanging")
    result = await Recall([hanging, Fixed("good", [hit("a")])], timeout=0.05).retrieve("q", turn_of())
    assert [message.content for message in result.messages] == ["a"]
    assert [failure.problem for failure in result.failures] == ["no answer within 0.05 s"]
    hanging.let_go.set()


async def test_cancelling_a_recall_cancels_the_memories() -> None:
    """Nothing keeps running for a caller that has gone."""
    cancelled = asyncio.Event()
    started = asyncio.Event()

    class Slow(Fixed):
        async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            return []

    task = asyncio.create_task(Recall([Slow("slow", [])], timeout=60).retrieve("q", turn_of()))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(cancelled.wait(), 10)


ONE = [Fixed("m", [hit("a")])]


@pytest.mark.parametrize(("memories", "query", "top_k"), [([], "q", 5), (ONE, " ", 5), (ONE, "q", 0)])
async def test_nothing_to_ask(memories: list[Memory], query: str, top_k: int) -> None:
    """No memory, no query, no budget: nothing, without asking."""
    result = await Recall(memories).retrieve(query, turn_of(), top_k=top_k)
    assert (result.messages, result.failures) == ((), ())


ANSWERS = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | st.floats(0, 1)), max_size=5), max_size=4
)


@given(ANSWERS, st.integers(0, 8))
def test_law_merging_keeps_each_order_and_every_text_once(
    answers: list[list[tuple[str, float | None]]], budget: int
) -> None:
    """Whatever the scores: no text twice, none lost within the budget, every answer in its own order, always the same."""
    given_: Sequence[Sequence[Message]] = [[hit(text, score) for text, score in answer] for answer in answers]
    merged = merge(given_, budget)
    texts = [message.content for message in merged]
    known = {text for answer in answers for text, _ in answer}
    assert len(set(texts)) == len(texts) == min(budget, len(known))
    for answer in given_:
        own = [message for message in merged if any(message is one for one in answer)]
        places = [next(i for i, one in enumerate(answer) if one is message) for message in own]
        assert places == sorted(places)
    assert merge(given_, budget) == merged
