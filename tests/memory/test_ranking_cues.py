"""What ranking sees in a text: terms, questions, days, sorts of answers, courtesies."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retinue_memory import Message
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.native.cues import (
    NUMBER,
    PLACE,
    REASON,
    TIME,
    TITLE,
    asking,
    cues,
    naming,
    needs_memory,
    wanted,
)
from retinue_memory.native.dates import names_days, spans
from retinue_memory.native.memory import NativeMemory
from retinue_memory.native.text_caches import TextCaches
from retinue_memory.native.words import asks, terms
from retinue_memory.testing import HashEmbedder, turn_of

TODAY = date(2024, 6, 12)
YEARS = range(2023, 2025)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats' running, ran; I don't!", ["cat", "run", "ran"]),
        ("CAFÉ café STRASSE straße", ["café", "café", "strass", "strass"]),
        ("我住在柏林", ["我住", "住在", "在柏", "柏林"]),
        ("", []),
        ("room 42b", ["room", "42b"]),
    ],
)
def test_terms(text: str, expected: list[str]) -> None:
    """Folded, stemmed, without stop words; scripts without spaces in pairs of characters."""
    assert list(terms(text)) == expected
    caches = TextCaches()
    for _ in range(2):
        assert list(caches.run(terms, text)) == expected


@pytest.mark.parametrize(
    "text", ["Where is it?", "what is the capital of my country", "Tell me my name", "可以吗\uff1f"]
)
def test_a_question_is_recognised(text: str) -> None:
    """A question counts as one, with the whole weight."""
    assert asks(text)
    assert asking(text) == 1.0


@pytest.mark.parametrize(
    "text", ["I am from Italy", "What a day", "What I like most is tea", "Whatever", "Isabel is my aunt"]
)
def test_a_statement_is_not_a_question(text: str) -> None:
    """A statement is no question, even if it holds a question word."""
    assert not asks(text)
    assert asking(text) == 0.0


def test_half_of_it_asks() -> None:
    """The share of the words that stand in questions; what a client notes behind is not the speaker's."""
    assert asking("I went to Rome. And where were you?") == 0.5
    assert asking("I went to Rome.\nAnd where were you? [photo: a bridge over a river]") == 0.5
    assert asking("") == 0.0


COURTESIES = [
    *("thanks!", "Thank you so much for your help!", "thx", "ok", "OK.", "Okay, great!", "hi", "Hello there!", "hey"),
    *(
        "yes",
        "no, thanks",
        "Yes please.",
        "sure",
        "Got it, thank you",
        "good morning",
        "Bye!",
        "goodbye",
        "see you later",
    ),
    *("haha", "lol", "wow", "That's great", "you're welcome", "no problem", "sounds good", "Have a nice day!", "hmm"),
    *("\U0001f44d", "...", "", " \n", "ok ok ok", "Danke schön!", "merci", "Alright then", "perfect, thanks a lot"),
]
QUERIES = [
    *(
        "ok?",
        "hi Bob",
        "tea",
        "thanks for the book about Rome",
        "my name",
        "no sugar",
        "yes, the blue one",
        "how are you?",
    ),
    *(
        "right after lunch",
        "我",
        "42",
        "good morning runs",
        "Nice, France",
        "help me please",
        "ok so what now",
        "great aunt",
    ),
    *(
        "hello kitty",
        "thanks, now remind me of my flight",
        "what's up",
        "cool down exercises",
        "sure thing brand",
        "Okinawa",
    ),
    *(
        "no meat",
        "hi, I am from Italy",
        "good coffee",
        "see you at the dentist",
        "thank you letter",
        "\u0441\u043f\u0430\u0441\u0438\u0431\u043e",
    ),
]


@pytest.mark.parametrize("text", COURTESIES)
def test_a_courtesy_needs_no_memory(text: str) -> None:
    """Thanks, greetings and assent, and what has no letter or digit in it."""
    assert not needs_memory(text)


async def test_a_courtesy_costs_nothing(database: SQLiteDatabase) -> None:
    """The memory gives nothing for it, and does not even ask the embedder."""
    asked: list[str] = []

    class Counting(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            asked.extend(texts)
            return super().embed(texts)

    memory = NativeMemory(database, embedder=Counting())
    await memory.update([Message("user", "I like thank-you letters")], ctx=turn_of())
    asked.clear()
    assert await memory.retrieve("Thank you!", ctx=turn_of()) == []
    assert asked == []
    assert len(await memory.retrieve("Which letters?", ctx=turn_of())) == 1
    assert asked == ["Which letters?"]
    await memory.aclose()


@pytest.mark.parametrize("text", QUERIES)
def test_anything_else_may_need_it(text: str) -> None:
    """Whatever names a thing, or asks; and a language that is not known."""
    assert needs_memory(text)


@given(st.lists(st.sampled_from(COURTESIES), max_size=3), st.sampled_from(["Lisbon", "my keys", "the blue one"]))
def test_law_courtesies_around_a_query_hide_nothing(before: list[str], query: str) -> None:
    """However polite a turn is, what it is about is seen."""
    assert needs_memory(" ".join([*before, query, *before]))


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "text",
    ["so good " * 20_000 + "x", "ha" * 50_000 + "x", "ok " * 50_000, "very " * 50_000, "x" + "[" * 100_000 + "]"],
)
def test_long_texts_are_seen_through_at_once(text: str) -> None:
    """No text makes the patterns search for long."""
    assert needs_memory(text)
    assert asking(text) == 0.0
    cues(text)


@pytest.mark.parametrize(
    ("text", "bit"),
    [
        ("we met last Tuesday", TIME),
        ("she lives in Porto", PLACE),
        ("I have three of them", NUMBER),
        ("I read \u201cThe Long Winter\u201d again", TITLE),
        ("I left because it was late", REASON),
    ],
)
def test_sorts_of_answers(text: str, bit: int) -> None:
    """What a text holds that could answer a question of that sort."""
    assert cues(text) & bit
    assert not cues("it was nice") & bit


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("When did she leave?", TIME),
        ("Where does he work?", PLACE),
        ("How many cats?", NUMBER),
        ("How long did it take?", TIME | NUMBER),
        ("Which book was it?", TITLE),
        ("Why did he go?", REASON),
        ("Who was it?", 0),
    ],
)
def test_sorts_of_questions(question: str, expected: int) -> None:
    """What would answer it."""
    assert wanted(question) & expected == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What happened on 5 May 2023?", [("2023-05-05", "2023-05-05")]),
        ("What happened on May 5th, 2023?", [("2023-05-05", "2023-05-05")]),
        ("the notes of 2023-05-05", [("2023-05-05", "2023-05-05")]),
        ("in February 2024", [("2024-02-01", "2024-02-29")]),
        ("in 2023", [("2023-01-01", "2023-12-31")]),
        ("on 5 May", [("2023-05-05", "2023-05-05"), ("2024-05-05", "2024-05-05")]),
        ("between March and May 2024", [("2024-03-01", "2024-05-31")]),
        ("on 30 February 2024", []),
        ("yesterday", [("2024-06-11", "2024-06-11")]),
        ("three weeks ago", [("2024-05-17", "2024-05-27")]),
        ("may I march there", []),
        ("nothing", []),
    ],
)
def test_days_that_a_question_names(question: str, expected: list[tuple[str, str]]) -> None:
    """First and last day; without a year, in each that is looked for; from today where it counts from there."""
    assert [(str(first), str(last)) for first, last in spans(question, TODAY, YEARS)] == expected
    assert names_days(question) or not expected


@given(
    st.text(max_size=60) | st.from_regex(r"(in|on|between)? ?[0-9]{1,4}[-/ ](May|Feb|[0-9]{2})[- ][0-9]{1,4}( ago)?")
)
def test_law_any_question_names_days_or_none(question: str) -> None:
    """Whatever it says: days in order, and no error; where none may be, there is none."""
    found = spans(question, TODAY, YEARS)
    assert names_days(question) or not found
    for first, last in found:
        assert first <= last


def test_a_large_count_of_years_is_no_day() -> None:
    """Further back than there are dates."""
    assert spans("999 years ago, or 999 weeks ago", TODAY, YEARS)


def test_who_has_a_name() -> None:
    """ "user" and the like name nobody; odd names are taken as they are."""
    assert naming("user") is None
    assert naming(" ") is None
    pattern = naming("(odd")
    assert pattern is not None
    assert pattern.search("what did (odd say")
