"""Pieces of streamed text become few events, and lose nothing."""

from __future__ import annotations

from a2a.types import Artifact, Part, TaskArtifactUpdateEvent
from hypothesis import given
from hypothesis import strategies as st

from retinue_server.runtime.pieces import WINDOW_S, TextPieces


def piece(text: str, *, append: bool = True, last: bool = False, artifact: str = "a") -> TaskArtifactUpdateEvent:
    made = Artifact(artifact_id=artifact, parts=[Part(text=text)])
    return TaskArtifactUpdateEvent(task_id="t", context_id="c", artifact=made, append=append, last_chunk=last)


def text_of(event: TaskArtifactUpdateEvent | None) -> str | None:
    return None if event is None else event.artifact.parts[0].text


def started(at: float = 0.0) -> TextPieces:
    pieces = TextPieces()
    pieces.published(piece("one", append=False), at)
    return pieces


def test_a_piece_after_a_pause_is_not_held() -> None:
    """The first piece after a whole window is published at once."""
    event = piece("two")
    assert started().add(event, WINDOW_S) is event


def test_pieces_within_the_window_are_one() -> None:
    """They are given out together, as plain pieces, and the executor's own events stay as they were."""
    pieces, first = started(), piece("two ")
    assert pieces.add(first, WINDOW_S / 4) is None
    assert pieces.add(piece("three"), WINDOW_S / 2) is None
    joined = pieces.take()
    assert joined is not None
    assert (text_of(joined), joined.append, joined.last_chunk) == ("two three", True, False)
    assert text_of(first) == "two "
    assert pieces.take() is None


def test_the_last_chunk_is_published_at_once_with_what_is_held() -> None:
    """The last chunk ends the window: held text and its own come as one piece."""
    pieces = started()
    assert pieces.add(piece("two "), 0.0) is None
    joined = pieces.add(piece("three", last=True), 0.0)
    assert joined is not None
    assert (text_of(joined), joined.append, joined.last_chunk) == ("two three", True, True)


def test_held_text_is_bounded() -> None:
    """Text is published early once a piece's worth of characters is held."""
    pieces = started()
    given_out = [text_of(pieces.add(piece("x" * 1000), 0.0)) for _ in range(10)]
    assert [text for text in given_out if text is not None] == ["x" * 5000] * 2


def test_only_plain_text_of_the_same_artifact_continues_it() -> None:
    """Pieces of another artifact, with metadata or of other kinds are not coalesced."""
    pieces = started()
    assert pieces.continues(piece("two"))
    assert not pieces.continues(piece("two", append=False))
    assert not pieces.continues(piece("two", artifact="b"))
    marked = piece("two")
    marked.metadata["x"] = 1
    assert not pieces.continues(marked)
    named = piece("two")
    named.artifact.parts[0].media_type = "text/html"
    assert not pieces.continues(named)
    other = piece("two")
    other.task_id = "another"
    assert not pieces.continues(other)
    pieces.published(piece("end", last=True), 0.0)
    assert not pieces.continues(piece("two"))


@given(st.lists(st.tuples(st.text(max_size=3), st.floats(0, 2 * WINDOW_S))))
def test_no_text_is_lost_or_reordered(said: list[tuple[str, float]]) -> None:
    """Whatever the pauses, the published pieces joined are the text."""
    pieces, now, given_out = started(), 0.0, "one"
    for text, pause in said:
        now += pause
        event = pieces.add(piece(text), now)
        if event is not None:
            pieces.published(event, now)
            given_out += text_of(event) or ""
    assert given_out + (text_of(pieces.take()) or "") == "one" + "".join(text for text, _ in said)
