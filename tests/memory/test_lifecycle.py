"""What becomes of what was said: the rules on their own. How they work together: test_staleness.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_memory.native.lasting import end_of, is_lasting
from retinue_memory.native.lifecycle import (
    Statement,
    completed,
    judge,
    remainder,
    says_the_same,
)
from retinue_memory.native.reading import read, split

WEDNESDAY = datetime(2026, 3, 4, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "Thanks!",
        "Thank you so much, that's very helpful.",
        "Hi there",
        "ok",
        "Good morning! How are you?",
        "What is the capital of Peru?",
        "Can you help me?",
        "lol",
        "\U0001f600",
        "Bye, see you tomorrow!",
        "Tell me a joke.",
        "Yes",
        "Great, thanks a lot!",
    ],
)
def test_small_talk_does_not_last(text: str) -> None:
    """Greetings, thanks and questions are no memories for long."""
    assert not is_lasting("user", text)


@pytest.mark.parametrize(
    "text",
    [
        "I live in Oslo.",
        "Thanks! By the way, my cat is called Tom.",
        "My train was late. Why is that?",
        "Yes, I am allergic to nuts.",
        "\u6211\u4f4f\u5728\u67cf\u6797",
        "Never suggest pork.",
        "No, I work in Kiel.",
    ],
)
def test_statements_last(text: str) -> None:
    """A message that tells anything at all is kept, whatever else is in it."""
    assert is_lasting("user", text)


@pytest.mark.parametrize(
    ("text", "lasts"),
    [
        ("You're welcome!", False),
        ("I'm here to help. Is there anything else?", False),
        ("Thank you for telling me. I'll remember that.", False),
        ("I'm sorry, but I do not know that.", False),
        ("Sure! Read Middlemarch, then Adam Bede.", True),
        ("The recipe needs 200 g of flour and two eggs.", True),
    ],
)
def test_formulas_of_an_assistant_do_not_last(text: str, lasts: bool) -> None:
    """What an assistant says to be polite; what it recommends is kept."""
    assert is_lasting("assistant", text) is lasts


@pytest.mark.parametrize(
    ("text", "last_day"),
    [
        ("I'm in Paris until Friday.", (3, 6)),
        ("My sister is here till Wednesday.", (3, 11)),
        ("I'm away until the 20th of March.", (3, 20)),
        ("I am on leave until May.", (5, 31)),
        ("The office is closed until 2 January.", (1, 2)),
        ("I have a cold today.", (3, 4)),
        ("I'm in Rome this week.", (3, 8)),
        ("I'm travelling for the next ten days.", (3, 14)),
        ("We have guests for another week.", (3, 11)),
        ("The lift is out of order this month.", (3, 31)),
    ],
)
def test_an_end_that_is_named_is_kept(text: str, last_day: tuple[int, int]) -> None:
    """It holds to the end of that day, wherever the speaker is."""
    end = end_of(text, WEDNESDAY)
    assert end is not None
    assert ((end - timedelta(hours=13)).month, (end - timedelta(hours=13)).day) == last_day


@pytest.mark.parametrize(
    "text",
    [
        "I live in Oslo.",
        "I lived in Rome until 2012.",
        "I was ill until Friday.",
        "Are you there until Friday?",
        "I've been here for two weeks.",
        "I'm here until the 31st of February.",
        "This week I bought a boat.",
        "I work every day until noon.",
        "Today is my birthday.",
        "I'm in Rome this week. My dog is called Rex.",
    ],
)
def test_what_has_no_end_has_none(text: str) -> None:
    """The past, habits, questions, impossible days, and messages that also tell what lasts."""
    assert end_of(text, WEDNESDAY) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I like tea", "I really like tea!"),
        ("I'm from Italy", "I am from Italy."),
        ("My favorite colour is green", "my favourite color is green"),
        ("Well, I work as a nurse", "I work as a nurse, you know"),
        (
            "Our garden in Kent has roses, beans, peas, leeks, thyme, sage and an old apple tree behind the shed",
            "Our garden in Kent has roses, beans, peas, leeks, thyme, sage and one old apple tree behind the shed",
        ),
    ],
)
def test_near_duplicates_are_one(one: str, other: str) -> None:
    """Filling words, spelling, punctuation and contractions make no difference, nor one plain word in a long text."""
    assert says_the_same(one, other)
    assert says_the_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("I like tea", "I don't like tea"),
        ("I run 5 km", "I run 8 km"),
        ("I moved to Bergen", "I am moving to Bergen"),
        ("I prefer tea to coffee", "I prefer coffee to tea"),
        ("My sister lives in Rome", "My brother lives in Rome"),
        ("I used to smoke", "I smoke"),
        ("a", ""),
        (
            "Our garden in Kent has roses, beans, peas, leeks, thyme, sage and an old apple tree behind the shed",
            "Our garden in York has roses, beans, peas, leeks, thyme, sage and an old apple tree behind the shed",
        ),
        (
            "Our garden in Kent has roses, beans, peas, leeks, thyme, sage and an old apple tree behind the shed",
            "Our garden in Kent never has roses, beans, peas, leeks, thyme, sage and an old apple tree behind the shed",
        ),
    ],
)
def test_what_differs_in_what_matters_is_two(one: str, other: str) -> None:
    """A denial, a number, a name, a tense, an order of words."""
    assert not says_the_same(one, other)
    assert not says_the_same(other, one)


def test_only_the_sentence_that_is_over_is_over() -> None:
    """A judgement names sentences; the rest of the message is what is left of it."""
    old = Statement("I live in Oslo. My cat is called Tom. Thanks!", "", WEDNESDAY)
    new = Statement("Hello! I moved to Bergen.", "", WEDNESDAY + timedelta(days=1))
    assert judge(new, [old]) == {0: frozenset({0})}
    assert remainder(old.text, frozenset({0})) == "My cat is called Tom. Thanks!"
    assert remainder(old.text, frozenset({0, 1})) == ""


def test_what_was_said_later_is_not_judged() -> None:
    """Order is by time, not by arrival."""
    old = Statement("I live in Oslo.", "", WEDNESDAY)
    assert judge(Statement("I moved to Bergen.", "", WEDNESDAY - timedelta(days=1)), [old]) == {}


def test_a_name_that_two_people_share_is_nobody_in_particular() -> None:
    """ "Anna" is "my cousin Anna" only as long as no other Anna is known."""
    cousin = Statement("My cousin Anna lives in Ghent.", "", WEDNESDAY)
    friend = Statement("My friend Anna lives in Kiel.", "", WEDNESDAY)
    new = Statement("Anna moved to Bruges.", "", WEDNESDAY + timedelta(days=1))
    assert judge(new, [cousin]) == {0: frozenset({0})}
    assert judge(new, [cousin, friend]) == {}


@pytest.mark.parametrize(
    ("before", "correction", "corrected"),
    [
        ("My driving test is on Tuesday.", "Actually, it's on Thursday.", "My driving test is on Thursday."),
        ("The rent is 900 euros.", "Sorry, it's 950 euros.", "The rent is 950 euros."),
        ("I fly to Rome at 7 am.", "Correction: it is at 8 am.", "I fly to Rome at 8 am."),
        ("My driving test is on Tuesday.", "It's on Thursday.", None),
        ("I like tea.", "Actually, it's Thursday.", None),
    ],
)
def test_a_correction_is_read_with_what_it_corrects(before: str, correction: str, corrected: str | None) -> None:
    """The sentence before it with the value replaced, where the values are of one sort."""
    found = completed(correction, before)
    assert (found[0].rstrip(".") if found else None) == (corrected.rstrip(".") if corrected else None)


@given(st.text(max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    """Whatever is written, reading it raises nothing, and it contradicts nothing of itself."""
    assert len(read(text)) == len(split(text))
    statement = Statement(text, "", WEDNESDAY)
    judge(statement, [statement])
    end_of(text, WEDNESDAY)
    is_lasting("user", text)
    assert not text.strip() or says_the_same(text, text) or not any(map(str.isalnum, text))


@given(
    st.lists(
        st.sampled_from(["I live in Oslo.", "I moved to Kiel.", "My cat is Tom.", "I quit smoking.", "I smoke."]),
        max_size=5,
    )
)
def test_what_says_the_same_contradicts_nothing(parts: list[str]) -> None:
    """A text never takes the place of itself, said again."""
    for part in parts:
        assert judge(Statement(part, "", WEDNESDAY), [Statement(part, "", WEDNESDAY)]) == {}
