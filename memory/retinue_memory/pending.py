"""Find messages by their words until the memory that they were written to can find them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from .memory import MemoryKind
from .messages import Message, Provenance

_WORD = re.compile(r"\w+")
_MIN_WORD_LETTERS = 3


def words(text: str) -> set[str]:
    """The words of a text in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def overlay(query: str, said: Iterable[Message], *, backend: str, recent: int = 0) -> list[Message]:
    """Return the user's messages that share words with the query, best first, as a memory would return them.

    They are followed by the `recent` latest of the others, because a question may use other words for the same thing. `said`
    is oldest first.
    """
    asked = {word for word in words(query) if len(word) >= _MIN_WORD_LETTERS}
    scored = [
        (len(asked & words(message.content)) / max(1, len(asked)), message)
        for message in said
        if message.role == "user"
    ]
    sharing = sorted((pair for pair in scored if pair[0]), key=lambda pair: -pair[0])
    others = [pair for pair in scored if not pair[0]]
    return [_recalled(message, score, backend) for score, message in [*sharing, *others[::-1][:recent]]]


def _recalled(message: Message, score: float, backend: str) -> Message:
    provenance = Provenance(
        id=message.id,
        kind=MemoryKind.RECENT_MESSAGE.value,
        score=score,
        sources=[message.id],
        created_at=message.created_at.isoformat(),
        backend=backend,
    )
    return replace(message, role="system", name=None, metadata={"memory": provenance}, tool_calls=(), tool_call_id=None)
