"""The index of a scope, as it grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retinue_memory import Scope
from retinue_memory.native.index import (
    LOOK_BACK,
    NEVER,
    SEGMENT_PAUSE_S,
    SEGMENT_SIZE,
    Index,
)
from retinue_memory.native.index_cache import IndexCache
from retinue_memory.native.rows import IndexRow
from retinue_memory.testing import HashEmbedder

EMBEDDER = HashEmbedder(16)
WIDTH = 4
COLUMNS = (
    *(
        "seqs",
        "said_at",
        "lengths",
        "distinct",
        "fullness",
        "asking",
        "cues",
        "by_user",
        "standing",
        "embedded",
        "speakers",
    ),
    *(
        "segments",
        "token_counts",
        "kinds",
        "created_at",
        "valid_from",
        "valid_to",
        "expires_at",
        "pinned",
        "quarantined",
        "found_until",
        "substance",
    ),
)


def row(seq: int, content: str, version: int | None = None, *, embed: bool = True, **other: Any) -> IndexRow:
    vector = EMBEDDER.embed([content])[0].tobytes() if embed else None
    tokens = np.full((len(content) % 3, WIDTH), seq % 100, np.int8).tobytes() if embed else None
    values: dict[str, Any] = {
        "role": "user",
        "speaker": "",
        "session_id": f"s{seq % 3}",
        "created_at": seq * 10**6,
        "said_at": seq * 10**6,
        "embedder": EMBEDDER.name if embed else None,
        "vector": vector,
        "tokens": tokens,
    }
    return IndexRow(seq=seq, version=version or seq, content=content, **(values | other))


def index_of(*rows: IndexRow) -> Index:
    index = Index(EMBEDDER.name, EMBEDDER.dimensions, WIDTH)
    index.apply(rows, 0)
    return index


def tokens(index: Index) -> list[NDArray[np.int8]]:
    starts, counts = index.column("token_starts"), index.column("token_counts")
    return [index.tokens[start : start + count] for start, count in zip(starts, counts, strict=True)]


def same(one: Index, other: Index) -> None:
    assert (one.version, one.size, one.segment_count) == (other.version, other.size, other.segment_count)
    assert (one.speaker_codes, one.kind_codes) == (other.speaker_codes, other.kind_codes)
    for name in COLUMNS:
        np.testing.assert_array_equal(one.column(name), other.column(name), name)
    for name in ("novelty", "context_norms"):
        np.testing.assert_allclose(one.column(name), other.column(name), rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(one.around, other.around)
    for a, b in zip(tokens(one), tokens(other), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.segment_sizes, other.segment_sizes)
    np.testing.assert_array_equal(np.bincount(one.column("segments"), minlength=0), one.segment_sizes)
    found, expected = (index.postings(["tea", "cake", "of", "car"]) for index in (one, other))
    for part in ("holding", "places", "counts"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


TEXTS = st.lists(st.sampled_from(["I like tea", "tea and cake", "cake?", "a car", "", "the of"]), max_size=14)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 13), max_size=4), st.integers(1, 5))
def test_law_catching_up_gives_the_same_index_as_starting_over(texts: list[str], again: list[int], step: int) -> None:
    """Warm or cold, in few steps or many, changed rows included: the same columns, postings, vectors and tokens."""
    written = [row(seq, text) for seq, text in enumerate(texts, 1)]
    changed = [
        row(
            place + 1,
            texts[place],
            len(texts) + 1 + i,
            said_at=10**15 + i,
            valid_to=10**15,
            pinned=i % 2,
            kind="Entity",
        )
        for i, place in enumerate(again)
        if place < len(texts)
    ]
    warm = index_of()
    for start in range(0, len(written), step):
        warm.apply(written[start : start + step], 0)
    for one in changed:
        warm.apply([one], 0)
    last = {one.seq: one for one in (*written, *changed)}
    cold = index_of(*last.values())
    warm.kind_codes, cold.kind_codes = {}, {}  # numbered in the order of their appearance
    warm.column("kinds")[:], cold.column("kinds")[:] = 0, 0
    same(warm, cold)


@settings(deadline=None)
@given(TEXTS, st.sets(st.integers(0, 13)), st.randoms())
def test_law_vectors_that_come_late_are_as_good(texts: list[str], late: set[int], order: Any) -> None:
    """Rows that get their vectors afterwards, in any order: the index that had them from the start."""
    bare = [row(seq, text, embed=seq - 1 not in late) for seq, text in enumerate(texts, 1)]
    index = index_of(*bare)
    given_later = [row(seq, text, len(texts)) for seq, text in enumerate(texts, 1) if seq - 1 in late]
    order.shuffle(given_later)
    for one in given_later:
        index.apply([one], len(texts))
    whole = index_of(*(row(seq, text) for seq, text in enumerate(texts, 1)))
    whole.apply([], len(texts))
    same(index, whole)


def test_a_new_epoch_forgets_everything() -> None:
    """Nothing of what was taken away is left."""
    index = index_of(row(1, "tea", speaker="Ana"), row(2, "cake"))
    index.start_over(7)
    assert (index.epoch, index.version, index.size, index.speaker_codes, index.names) == (7, 0, 0, {}, [])
    assert len(index.postings(["tea"]).places) == len(index.tokens) == len(index.vectors) == 0
    index.apply([row(3, "car")], 3)
    assert index.column("seqs").tolist() == [3]


def test_memories_follow_each_other_within_a_session() -> None:
    """One and two before, one and two after; another session, or a long silence, is another talk."""
    times = [0, 1, 2, 3, 4 + SEGMENT_PAUSE_S]
    sessions = ["a", "a", "b", "a", "a"]
    rows = [
        row(i + 1, "tea", created_at=int(at * 10**6), session_id=session)
        for i, (at, session) in enumerate(zip(times, sessions, strict=True))
    ]
    index = index_of(*rows)
    assert index.around.tolist() == [
        [-1, -1, 1, 3],
        [0, -1, 3, -1],
        [-1, -1, -1, -1],
        [1, 0, -1, -1],
        [-1, -1, -1, -1],
    ]
    segments = index.column("segments")
    assert segments[0] == segments[1] == segments[3]
    assert len({int(segments[place]) for place in (0, 2, 4)}) == 3


def test_a_long_session_is_several_segments() -> None:
    """After so many memories another segment begins, in the same session."""
    index = index_of(*(row(i, "tea", session_id="a") for i in range(1, SEGMENT_SIZE + 3)))
    assert index.column("segments").tolist() == [0] * SEGMENT_SIZE + [1, 1]
    assert index.around[SEGMENT_SIZE, 0] == SEGMENT_SIZE - 1


def test_novelty_is_measured_against_what_was_said_lately() -> None:
    """What repeats one of the last few is not new; the same, later, is again."""
    index = index_of(
        row(1, "tea"), row(2, "tea"), *(row(i, f"word{i}") for i in range(3, 4 + LOOK_BACK)), row(99, "tea")
    )
    novelty = index.column("novelty")
    assert novelty[0] == 1
    assert novelty[1] < 0.01
    assert novelty[-1] > 0.1


def test_vectors_of_another_model_are_left_out() -> None:
    """An index takes in the vectors and tokens of its own embedder only, and those of the right size."""
    other = HashEmbedder(32)
    foreign = row(1, "tea", embedder=other.name, vector=other.embed(["tea"])[0].tobytes())
    index = index_of(foreign, row(2, "tea"), row(3, "tea", vector=b"abc"), row(4, "tea", tokens=b"abc"))
    assert index.column("embedded").tolist() == [False, True, False, True]
    assert not index.vectors[0].any()
    assert index.column("token_counts").tolist() == [0, 0, 0, 0]


def test_what_has_no_end_ends_never() -> None:
    """Times that are not set, and what stands in their place."""
    index = index_of(row(1, "tea"), row(2, "tea", valid_from=5, valid_to=6, expires_at=7, quarantined=1))
    assert index.column("valid_from").tolist() == [10**6, 5]
    assert index.column("valid_to").tolist() == [NEVER, 6]
    assert index.column("expires_at").tolist() == [NEVER, 7]
    assert index.column("quarantined").tolist() == [False, True]


def test_until_when_it_is_found() -> None:
    """What is hidden is not, what is pinned always; what passes counts for less, unless it is kept."""
    rows = [
        *(row(1, "tea"), row(2, "tea", expires_at=7), row(3, "tea", expires_at=7, pinned=1)),
        *(
            row(4, "tea", valid_to=6, pinned=1),
            row(5, "tea", quarantined=1),
            row(6, "tea", expires_at=7, kind="Entity"),
        ),
    ]
    index = index_of(*rows)
    assert index.column("found_until").tolist() == [NEVER, 7, NEVER, 0, 0, 7]
    assert (index.column("substance") < 1).tolist() == [False, True, True, False, False, False]


def test_only_a_preference_is_an_instruction_for_every_answer() -> None:
    """Also one that a message became later."""
    text = "Always answer in French"
    index = index_of(row(1, text), row(2, text, kind="Preference"), row(3, "I like tea", kind="Preference"))
    assert index.column("standing").tolist() == [False, True, False]
    index.apply([row(1, text, 4, kind="Preference")], 4)
    assert index.column("standing").tolist() == [True, True, False]


def test_terms_a_few_at_a_time_are_the_same() -> None:
    """Postings in parts: one term at least, none twice, none lost."""
    found = index_of(row(1, "tea and cake and tea"), row(2, "a car")).postings(["car", "of", "tea", "cake"])
    for most in (0, 1, 3, 4):
        parts = list(found.in_parts(most))
        assert max(len(part.holding) for part in parts) == max(most, 1)
        for name in ("holding", "places", "counts"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(found, name))
    assert (found.holding.tolist(), found.places.tolist(), found.counts.tolist()) == (
        [1, 0, 1, 1],
        [1, 0, 0],
        [1, 2, 1],
    )


def test_the_least_recently_used_goes_first() -> None:
    """Beyond the bound of bytes; one that alone is too large is kept as the last."""
    indexes = IndexCache(max_bytes=60_000)
    scopes = [Scope("", "x", "user", str(i)) for i in range(6)]
    for scope in scopes:
        index = indexes.put(scope, index_of(*(row(seq, f"word{seq} of a text") for seq in range(1, 40))))
        indexes.resized(scope, index)
        indexes.get(scopes[0])
    kept = list(indexes.scopes())
    assert scopes[0] in kept
    assert scopes[-1] in kept
    assert scopes[1] not in kept
    indexes.resized(scopes[0], index_of(row(1, "not the one that is kept")))
    lonely = IndexCache(max_bytes=1)
    lonely.resized(scopes[0], lonely.put(scopes[0], index_of(row(1, "tea"))))
    assert lonely.get(scopes[0]) is not None


def test_an_index_says_about_what_it_occupies() -> None:
    """Vectors, tokens and words count."""
    small, large = index_of(row(1, "tea")), index_of(*(row(i, f"word{i}") for i in range(1, 1001)))
    assert 4_000 < small.nbytes < 20_000
    assert large.nbytes > 1_000 * (4 * EMBEDDER.dimensions + 250)
