"""What ranking makes of an index and a query."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_memory.native.embedder import MiniLM, Reading
from retinue_memory.native.index import Index
from retinue_memory.native.ranking import (
    WEIGHTS,
    Ranking,
    Weights,
    best,
    for_embedder,
    rank,
    read,
)
from retinue_memory.native.rows import IndexRow
from retinue_memory.testing import HashEmbedder

EMBEDDER = HashEmbedder(16)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


def said(
    *turns: str | tuple[str, str], embed: bool = False, when: datetime = NOW, apart: timedelta = timedelta(minutes=1)
) -> Index:
    """An index of one session's turns: texts of the user, or (speaker, text); `apart` lies between two of them."""
    index = Index(EMBEDDER.name, EMBEDDER.dimensions)
    rows: list[IndexRow] = []
    for seq, turn in enumerate(turns, 1):
        speaker, text = ("", turn) if isinstance(turn, str) else turn
        at = int((when - apart * (len(turns) - seq)).timestamp() * 1e6)
        vector = EMBEDDER.embed([text])[0].tobytes() if embed else None
        name = EMBEDDER.name if embed else None
        role = "assistant" if speaker == "assistant" else "user"
        rows.append(IndexRow(seq, seq, role, speaker, text, "s", at, at, name, vector))
    index.apply(rows, 0)
    return index


def alone(*texts: str, when: datetime = NOW) -> Index:
    """Each in a session of its own: nothing is around it."""
    return said(*texts, when=when, apart=timedelta(days=1))


def ranked(index: Index, query: str, now: datetime = NOW, allowed: list[bool] | None = None) -> Ranking:
    vector = EMBEDDER.embed([for_embedder(query, index)])[0]
    mask = None if allowed is None else np.array(allowed, np.bool_)
    return rank(index, read(query, index, Reading(vector, vector) if index.has_vectors else None), now, mask)


def order(index: Index, query: str, now: datetime = NOW) -> list[int]:
    return best(ranked(index, query, now).scores, index.size)


WORDS = st.sampled_from(["I like tea", "tea and cake", "cake?", "a car", "", "the of", "What is tea?", "in May 2024"])
TURNS = st.lists(st.tuples(st.sampled_from(["", "Ana", "assistant"]), WORDS), max_size=12)


@given(TURNS, st.text(max_size=20) | WORDS, st.booleans())
def test_law_signals_add_up_to_scores_between_0_and_1(turns: list[tuple[str, str]], query: str, embed: bool) -> None:
    """For any memories and any query: one finite score a memory, and what it is made of."""
    index = said(*turns, embed=embed)
    ranking = ranked(index, query)
    assert len(ranking.scores) == len(turns)
    names = {field.name for field in fields(Weights)} | {"floor"}
    for place, score in enumerate(ranking.scores):
        signals = ranking.explain(place)
        assert 0.0 <= score <= 1.0
        assert sum(signals.values()) == pytest.approx(float(score), abs=1e-5)
        assert signals.keys() <= names
        assert all(signals.values())


@given(TURNS, st.data())
def test_law_what_is_not_allowed_is_not_found(turns: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whatever the mask, the best are among the allowed, all of them are, and the others score below 0."""
    index = said(*turns, embed=True)
    allowed = data.draw(st.lists(st.booleans(), min_size=len(turns), max_size=len(turns)))
    scores = ranked(index, "tea and cake", allowed=allowed).scores
    assert sorted(best(scores, 99)) == [place for place, may in enumerate(allowed) if may]


def test_what_is_not_allowed_lends_nothing() -> None:
    """What a mask leaves out does not lift what is around it either."""
    index = said(("Ana", "tea and cake"), ("Bo", "nothing alike"), ("Ana", "a car"), embed=True)
    whole, masked = (ranked(index, "tea and cake", allowed=[first, True, True]).explain(1) for first in (True, False))
    assert whole["words"] > 0
    assert "words" not in masked
    assert masked.get("meaning", 0) < whole["meaning"]


@pytest.mark.timeout(5)
def test_a_long_query_is_read_at_its_ends() -> None:
    """What is asked about a pasted text stands before or after it, and no text takes long."""
    index = alone("the kite is blue", "we had soup", "it was in May 2023", "it was in June 2023")
    paste = "from here " * 50_000
    for text in (f"Where is the kite? {paste}", f"{paste} Where is the kite?"):
        assert order(index, text)[0] == 0
        assert len(for_embedder(text, index)) < 2_000
    assert order(index, f"from 5 May 2023 {paste} on 6 June 2023")[0] in (2, 3)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=20), st.integers(1, 25))
def test_law_the_best_are_the_head_of_the_whole_order(values: list[float], most: int) -> None:
    """Picking a few is sorting all and cutting; of equal ones, the later is first; none below 0."""
    places = [place for place, value in enumerate(values) if value >= 0]
    expected = sorted(places, key=lambda place: (-values[place], -place))
    assert best(np.array(values, np.float32), most) == expected[:most]


def test_rare_words_count_more_and_long_texts_less() -> None:
    """Inverse document frequency, and the length of the text."""
    long = "red boat " + "and so many other words about a harbour " * 5
    index = alone("red boat", "red kite", "red hat", long)
    signals = [ranked(index, "red boat").explain(place)["words"] for place in range(4)]
    assert signals[0] > signals[3] > signals[1] == signals[2]


def test_one_word_of_many_is_little() -> None:
    """The share is of all that is asked, so that a single stray word in common does not win."""
    index = alone("the boat is red", "we ate well")
    whole = ranked(index, "red boat").explain(0)["words"]
    stray = ranked(index, "red wine from Portugal or Spain").explain(0)["words"]
    assert stray < whole / 3


def test_an_answer_is_found_by_its_question() -> None:
    """What was said just before is half of what a memory means, and what comes after a little of it."""
    index = said(("Ana", "Where did you spend the summer?"), ("Bo", "At my aunt's, by the lake"), ("Bo", "It rained"))
    first, second, third = (ranked(index, "summer").explain(place)["words"] for place in range(3))
    assert first > second > third > 0


def test_who_is_named_and_spoke_comes_first() -> None:
    """A speaker whom the query names, in full, by the first name or its beginning; not what was said to them."""
    index = said(("Deborah Hall", "I bought a kite"), ("Ian", "Deborah bought a kite"), ("Ian", "I bought a kite too"))
    for name in ("Deborah Hall", "deborah", "Deb"):
        assert order(index, f"What did {name} buy?")[0] == 0
    assert "speaker" not in ranked(index, "What did Deborah and Ian buy?").explain(0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What did Ana tell Bo about Anatolia?", "What did they tell they about Anatolia?"),
        ("ana's dog", "their dog"),
        ("What does Maria Lopez do, and Maria's son?", "What does they do, and their son?"),
        ("Will Mark mark it? I will", "Will they mark it? I will"),
        ("nobody", "nobody"),
        ("Please", "Please"),
    ],
)
def test_the_embedder_sees_no_names(query: str, expected: str) -> None:
    """Whole names and first names; those that are words as well only as they are written; an empty query stays."""
    index = said(
        ("Ana", "x"), ("Bo", "x"), ("", "x"), ("Maria Lopez", "x"), ("(odd", "x"), ("Mark", "x"), ("user", "x")
    )
    assert for_embedder(query, index) == expected


def test_a_question_does_not_answer_itself() -> None:
    """The same question asked before is worth nothing, nor what was answered to it; another question is worth little."""
    asked_before = [
        *(("", "Where is my key?"), ("assistant", "Your key is in the car.")),
        *(("", "where is the key"), ("assistant", "I do not know where your key is.")),
        *(("", "Where is the key of the shed?"), ("assistant", "The shed has no key.")),
    ]
    assert order(said("I keep the key under the mat", *asked_before), "Where's my key?")[0] == 0
    words = [ranked(said(*asked_before[i : i + 2]), "Where's my key?").explain(0).get("words", 0) for i in (0, 2, 4)]
    assert words[:2] == [0, 0]
    assert words[2] > 0


def test_the_assistant_is_heard_when_it_is_asked_for() -> None:
    """A user's words are what there is to remember, unless the query asks what the assistant said."""
    index = alone("the key is under the mat")
    index.apply([IndexRow(9, 9, "assistant", "assistant", "the key is under the mat", "t", 0, 0, None, None)], 9)
    assert order(index, "key")[0] == 0
    for asked in (
        "Where did you say the key is",
        "What did you tell me about the key?",
        "Remind me of your advice: key",
    ):
        assert order(index, asked)[0] == 1, asked
    assert order(index, "Can you tell me where the key is?")[0] == 0


def test_a_day_that_is_named_counts() -> None:
    """On it, and on the days after, when people tell of it."""
    march, april = datetime(2023, 3, 5, tzinfo=UTC), datetime(2023, 4, 20, tzinfo=UTC)
    index = alone("we went to the lake", when=april)
    at = int(march.timestamp() * 1e6)
    index.apply([IndexRow(9, 9, "user", "", "we went to the lake", "t", at, at, None, None)], 9)
    assert order(index, "Where did we go on 5 March?")[0] == 1
    assert order(index, "Where did we go in April 2023?")[0] == 0
    assert order(index, "Where did we go last week?", now=april + timedelta(days=6))[0] == 0
    assert "date" not in ranked(index, "Where did we go?").explain(0)


def test_the_sort_of_answer_counts() -> None:
    """Where time, place, number, title or reason is asked for, what holds one is likelier to answer."""
    index = alone(
        "we saw the whales", "we saw the whales in Lisbon", "we saw the whales last July", "we saw twelve whales"
    )
    for question, answer in (("Where were the whales?", 1), ("When were the whales?", 2), ("How many whales?", 3)):
        assert [place for place in range(4) if "answer" in ranked(index, question).explain(place)] == [answer], question


def test_the_latest_comes_first_among_equals() -> None:
    """Recency orders what is otherwise equal, and a clock that runs ahead does no harm."""
    index = said("tea", ("b", "tea"), ("c", "tea"), when=NOW + timedelta(days=30), apart=timedelta(days=30))
    old, new, future = (ranked(index, "tea").explain(place)["recency"] for place in range(3))
    assert old < new == future


def test_meaning_is_read_with_what_was_said_before() -> None:
    """A vector counts together with the two before it in its session."""
    index = said("tea cake", "nothing alike", embed=True)
    apart = Index(EMBEDDER.name, EMBEDDER.dimensions)
    for seq, text in enumerate(("tea cake", "nothing alike"), 1):
        vector = EMBEDDER.embed([text])[0].tobytes()
        apart.apply([IndexRow(seq, seq, "user", "", text, f"s{seq}", 0, 0, EMBEDDER.name, vector)], 0)
    others = ["other words here", "and some more"]
    for each in (index, apart):
        for seq, text in enumerate(others, 3):
            vector = EMBEDDER.embed([text])[0].tobytes()
            each.apply([IndexRow(seq, seq, "user", "", text, f"o{seq}", 0, 0, EMBEDDER.name, vector)], 0)
    query = "tea cake"
    assert ranked(index, query).explain(1).get("meaning", 0) > ranked(apart, query).explain(1).get("meaning", 0)


def test_single_words_are_compared(minilm: MiniLM) -> None:
    """The vectors of words find the one that is near, where the whole sentence is about something else."""
    texts = [
        "We spent the morning with paperwork, then my spaniel ran off, and later we had soup",
        "We spent the morning with paperwork, then my phone rang, and later we had soup",
    ]
    index = Index(minilm.name, minilm.dimensions, minilm.token_width)
    for seq, (text, reading) in enumerate(zip(texts, minilm.read(texts), strict=True), 1):
        assert reading.tokens is not None
        vector, tokens = reading.vector.tobytes(), reading.tokens.tobytes()
        index.apply([IndexRow(seq, seq, "user", "", text, f"s{seq}", 0, 0, minilm.name, vector, tokens=tokens)], 0)
    (asked,) = minilm.read(["dog"])
    ranking = rank(index, read("dog", index, asked), NOW)
    assert ranking.explain(0)["tokens"] > ranking.explain(1).get("tokens", 0)


def test_the_weights_are_documented_and_may_be_changed() -> None:
    """Each signal by its name; a weight of 0 leaves it out."""
    index = said("tea", ("Ana", "tea and cake"))
    query = read("tea", index)
    none = Weights(**{field.name: 0.0 for field in fields(Weights)} | {"words": 1.0})
    ranking = rank(index, query, NOW, weights=none)
    assert set(ranking.explain(0)) == {"words"}
    assert Weights() == WEIGHTS
