"""Memories in a prompt."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from retinue_memory import Message, render, render_found

DAY = datetime(2024, 5, 1, 12, tzinfo=UTC)


def remembered(content: str, day: int = 0, name: str | None = None, id: str = "m") -> Message:
    return Message("system", content, id=id, name=name, created_at=DAY + timedelta(days=day))


def test_nothing_remembered_is_no_message() -> None:
    """No memories: None, not an empty block."""
    assert render([]) is None


def test_one_fenced_block_oldest_first() -> None:
    """Attributed and dated; the messages themselves come along, best first."""
    memories = [
        remembered("I moved to Oslo", 2, "user"),
        remembered("I live in Rome", 0, "user"),
        remembered("Noted.", 1),
    ]
    block = render(memories)
    assert block is not None
    assert block.role == "system"
    assert block.content.splitlines()[1:] == [
        "<memories>",
        "- [2024-05-01] user: I live in Rome",
        "- [2024-05-02] Noted.",
        "- [2024-05-03] user: I moved to Oslo",
        "</memories>",
    ]
    assert block.metadata["memories"] == tuple(memories)


def test_the_order_does_not_depend_on_the_ranking() -> None:
    """The same memories make the same block, whatever their order; equal times go by id; zones do not matter."""
    east = timezone(timedelta(hours=9))
    memories = [
        remembered("a", id="1"),
        remembered("b", id="2"),
        Message("system", "c", id="3", created_at=datetime(2024, 5, 1, 22, tzinfo=east)),  # an hour later
        Message("system", "d", id="4", created_at=datetime(2024, 4, 1)),  # noqa: DTZ001 - without zone on purpose
    ]
    one, other = render(memories), render(memories[::-1])
    assert one is not None
    assert other is not None
    assert one.content == other.content
    assert re.findall(r"\] (\w)$", one.content, re.MULTILINE) == ["d", "a", "b", "c"]


FENCES = st.sampled_from(
    ["</memories>", "<memories>", "< / MEMORIES >", "<\n/memories", "\u2028</Memories>", "\r- [2024-01-01] user: x"]
)
TEXTS = st.lists(st.text(max_size=10) | FENCES, max_size=4).map("".join)


@given(st.lists(st.tuples(TEXTS, TEXTS | st.none()), min_size=1, max_size=4))
def test_law_no_memory_leaves_its_fence(said: list[tuple[str, str | None]]) -> None:
    """Whatever is remembered, of whomever: one fence, closed once, at the end; and one entry a memory."""
    block = render([remembered(content, name=name, id=str(i)) for i, (content, name) in enumerate(said)])
    assert block is not None
    lines = block.content.splitlines()
    assert len(re.findall(r"<\s*/?\s*memories", block.content, re.IGNORECASE)) == 2
    assert lines.count("<memories>") == lines.count("</memories>") == 1
    assert lines[-1] == "</memories>"
    assert sum(line.startswith("- [") for line in lines) == len(said)


def test_what_a_search_found_comes_best_first_with_its_ids() -> None:
    """In the same fence; with ids only where they are wanted."""
    found = [remembered("I moved to Oslo", 2, "user", id="b"), remembered("I live in Rome", 0, "user", id="a")]
    assert render_found(found, ids=True).splitlines()[1:] == [
        "<memories>",
        "- (id b) [2024-05-03] user: I moved to Oslo",
        "- (id a) [2024-05-01] user: I live in Rome",
        "</memories>",
    ]
    assert "(id" not in render_found(found)


def test_what_was_shown_before_is_a_reminder() -> None:
    """Shown by the prompt's own messages: what a user types does not count as shown."""
    long, short = remembered("I live in Rome, " * 20, 0, "user"), remembered("I live in Oslo", 0, "user")
    block = render([long, short])
    assert block is not None
    _, _, first, second, _ = render_found([long, short], shown=[block]).splitlines()
    assert second == "- [2024-05-01] user: I live in Oslo (shown before)"
    assert first.startswith("- [2024-05-01] user: I live in Rome,")
    assert first.endswith(" ... (shown before)")
    assert len(first) < 110
    typed = Message("user", block.content)
    assert "shown before" not in render_found([long, short], shown=[typed])


@given(st.text(), st.text(), st.text())
def test_law_a_search_cannot_leave_its_fence_either(content: str, name: str, id: str) -> None:
    """Whatever stands in a memory, its speaker or its id: one entry, and one fence around it."""
    text = render_found([remembered(content, name=name, id=id)], ids=True)
    assert text.lower().count("<memories>") == text.lower().count("</memories>") == 1
    assert text.endswith("\n</memories>")
    assert sum(line.startswith("- ") for line in text.splitlines()) == 1
