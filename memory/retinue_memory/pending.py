"""What was said and is not in a memory yet, as the memory would return it: found by its words until it is there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from .memory import MemoryKind
from .messages import Message, Provenance

_WORD = re.compile(r"\w+")
_SHORTEST = 3
"""Letters of a word that counts."""


def words(text: str) -> set[str]:
    """The words of a text, without case."""
    return {word.lower() for word in _WORD.findall(text)}


def overlay(query: str, said: Iterable[Message], *, backend: str, recent: int = 0) -> list[Message]:
    """Those of the user's messages that share words with the query, the most shared first; then the `recent` latest of the
    others, which a question may well be about that uses other words. `said` is in the order in which it was said."""
    asked = {word for word in words(query) if len(word) >= _SHORTEST}
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
