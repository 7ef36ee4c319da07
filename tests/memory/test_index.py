"""The index of a scope and what ranking makes of it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect_memory import Scope
from recollect_memory.native.index import Index, Indexes
from recollect_memory.native.ranking import Query, best, neutral, rank
from recollect_memory.native.store import IndexRow
from recollect_memory.native.words import asks, terms
from recollect_memory.testing import HashEmbedder

EMBEDDER = HashEmbedder(16)
NOW = datetime(2024, 6, 1, tzinfo=UTC)


def row(
    seq: int, content: str, version: int | None = None, said_at: int = 0, role: str = "user", embed: bool = True
) -> IndexRow:
    vector = EMBEDDER.embed([content])[0].tobytes() if embed else None
    name = EMBEDDER.name if embed else None
    return IndexRow(seq, version or seq, role, "", content, f"s{seq % 3}", said_at, said_at, name, vector)


def index_of(*rows: IndexRow) -> Index:
    index = Index(EMBEDDER.name, EMBEDDER.dimensions)
    index.apply(rows, 0)
    return index


def scores(index: Index, query: str) -> list[float]:
    vector = EMBEDDER.embed([query])[0]
    return [round(float(score), 5) for score in rank(index, Query.of(query), vector, NOW)]


TEXTS = st.lists(st.sampled_from(["I like tea", "tea and cake", "cake?", "a car", "", "the of"]), max_size=12)


@given(TEXTS, st.lists(st.integers(0, 11), max_size=4), st.integers(1, 5))
def test_law_catching_up_gives_the_same_index_as_starting_over(texts: list[str], again: list[int], step: int) -> None:
    """Warm or cold, in few steps or many, refreshed rows included: the same columns, postings and scores."""
    written = [row(seq, text) for seq, text in enumerate(texts, 1)]
    refreshed = [
        row(place + 1, texts[place], len(texts) + 1 + i, said_at=10**15 + i)
        for i, place in enumerate(again)
        if place < len(texts)
    ]
    warm = index_of()
    for start in range(0, len(written), step):
        warm.apply(written[start : start + step], 0)
    for one in refreshed:
        warm.apply([one], 0)
    cold = index_of(*{one.seq: one for one in (*written, *refreshed)}.values())
    assert (warm.version, warm.size) == (cold.version, cold.size)
    for name in (
        "seqs",
        "said_at",
        "lengths",
        "distinct",
        "by_user",
        "question",
        "embedded",
        "speakers",
        "sessions",
        "vectors",
    ):
        np.testing.assert_array_equal(getattr(warm, name), getattr(cold, name), name)
    assert scores(warm, "tea or cake") == scores(cold, "tea or cake")


@given(TEXTS, st.text(max_size=20))
def test_law_scores_are_between_0_and_1(texts: list[str], query: str) -> None:
    """For any memories and any query, one finite score a memory."""
    index = index_of(*(row(seq, text, embed=seq % 2 == 0) for seq, text in enumerate(texts, 1)))
    found = scores(index, query)
    assert len(found) == len(texts)
    assert all(0.0 <= score <= 1.0 for score in found)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=20), st.integers(1, 25))
def test_law_the_best_are_the_head_of_the_whole_order(values: list[float], most: int) -> None:
    """Picking a few is sorting all and cutting; of equal ones, the later is first."""
    order = sorted(range(len(values)), key=lambda place: (-values[place], -place))
    assert best(np.array(values, np.float32), most) == order[:most]


def test_rare_words_count_more_and_long_texts_less() -> None:
    """BM25: inverse document frequency, and the length of the text."""
    index = Index(None, 0)
    long = "red boat " + "and so many other words about a harbour " * 5
    index.apply([row(i, text, embed=False) for i, text in enumerate(["red boat", "red kite", "red hat", long], 1)], 0)
    boat, kite, _, long_boat = (float(score) for score in rank(index, Query.of("red boat"), None, NOW))
    assert boat > long_boat > kite


def test_questions_and_answers_count_less_than_statements() -> None:
    """The same question asked before tells nothing; an answer less than the user's words, unless it is asked for."""
    index = index_of(
        row(1, "Where is my key?"),
        row(2, "the key is under the mat"),
        row(3, "the key is under the mat", role="assistant"),
    )
    question, stated, answered = scores(index, "where is my key")
    assert stated > answered > question
    _, stated, answered = scores(index, "where did you say my key is")
    assert answered == stated


def test_the_latest_comes_first_among_equals() -> None:
    """Recency orders what is otherwise equal, and a clock that runs ahead does no harm."""
    month = 30 * 86_400 * 1_000_000
    now = int(NOW.timestamp() * 1e6)
    index = index_of(row(1, "tea", said_at=now - month), row(2, "tea", said_at=now), row(3, "tea", said_at=now + month))
    old, new, future = scores(index, "tea")
    assert old < new == future


def test_vectors_of_another_model_are_left_out() -> None:
    """An index takes in the vectors of its own embedder only."""
    other = HashEmbedder(32)
    foreign = IndexRow(1, 1, "user", "", "tea", "s", 0, 0, other.name, other.embed(["tea"])[0].tobytes())
    index = index_of(foreign, row(2, "tea"))
    assert index.embedded.tolist() == [False, True]
    assert not index.vectors[0].any()


def test_the_least_recently_used_goes_first() -> None:
    """Beyond the bound of bytes; one that alone is too large is kept as the last."""
    indexes = Indexes(most_bytes=40_000)
    scopes = [Scope("", "x", "user", str(i)) for i in range(6)]
    for scope in scopes:
        index = indexes.put(scope, index_of(*(row(seq, f"word{seq} of a text") for seq in range(1, 40))))
        indexes.settle(scope, index)
        indexes.get(scopes[0])
    kept = list(indexes.kept())
    assert scopes[0] in kept
    assert scopes[-1] in kept
    assert scopes[1] not in kept
    indexes.settle(scopes[0], index_of(row(1, "not the one that is kept")))
    lonely = Indexes(most_bytes=1)
    lonely.settle(scopes[0], lonely.put(scopes[0], index_of(row(1, "tea"))))
    assert lonely.get(scopes[0]) is not None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What did Ana tell Bo about Anatolia?", "What did they tell they about Anatolia?"),
        ("ana's dog", "they's dog"),
        ("What does Maria Lopez do, and Maria's son?", "What does they do, and they's son?"),
        ("nobody", "nobody"),
    ],
)
def test_speakers_in_a_query_become_they(query: str, expected: str) -> None:
    """Whole names and first names, whatever their case; other words stay."""
    assert neutral(query, ["Ana", "Bo", "", "Maria Lopez", "(odd"]) == expected


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
    assert terms(text) == expected


@pytest.mark.parametrize(
    "text", ["Where is it?", "what is the capital of my country", "Tell me my name", "可以吗\uff1f"]
)
def test_asks(text: str) -> None:
    assert asks(text)


@pytest.mark.parametrize(
    "text", ["I am from Italy", "What a day", "What I like most is tea", "Whatever", "Isabel is my aunt"]
)
def test_tells(text: str) -> None:
    assert not asks(text)
