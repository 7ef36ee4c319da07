"""One or many memories as one: asked at the same time, each with a deadline, merged under one budget."""

from __future__ import annotations

import asyncio
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from .contract import InvocationContext, Memory, Message
from .errors import RecollectError

log = logging.getLogger(__name__)

_KINDS: Mapping[str, type] = {"content": str, "id": str, "created_at": datetime, "metadata": Mapping}
NO_ANSWER = "no answer within"
"""How the problem of a memory begins that did not answer in time."""


@dataclass(frozen=True, slots=True)
class RecallFailure:
    """A memory that did not answer: its name, and why in words."""

    memory: str
    problem: str


@dataclass(frozen=True, slots=True)
class RecallResult:
    """What the memories know, best first, and which of them failed."""

    messages: tuple[Message, ...] = ()
    failures: tuple[RecallFailure, ...] = ()


class Recall:
    """Asks every memory at once, `timeout` seconds at most, and keeps the best `top_k` of what they know together.

    A memory that fails or hangs is logged, named in the result and hurts nobody else. One that blocks the event loop
    itself cannot be interrupted: synchronous code belongs in a `MemoryBackend`, whose plain methods run off the loop.
    """

    def __init__(self, memories: Sequence[Memory], *, timeout: float = 2.0, top_k: int = 5) -> None:
        self.memories = tuple(memories)
        self.timeout = timeout
        self.top_k = top_k

    async def retrieve(self, query: str, ctx: InvocationContext, *, top_k: int | None = None) -> RecallResult:
        """The memories that matter for `query`. Raises nothing; an empty query or no memories: an empty result."""
        budget = self.top_k if top_k is None else top_k
        if not self.memories or not query.strip() or budget < 1:
            return RecallResult()
        asked = [asyncio.create_task(_ask(memory, query, budget, ctx)) for memory in self.memories]
        try:
            await asyncio.wait(asked, timeout=self.timeout)
        finally:
            for task in asked:
                if not task.done():  # left behind: one that also ignores being cancelled must not keep us
                    task.cancel()
                    task.add_done_callback(_forget)
        answers: list[Sequence[Message]] = []
        failures: list[RecallFailure] = []
        for memory, task in zip(self.memories, asked, strict=True):
            answer = task.result() if task.done() and not task.cancelled() else f"{NO_ANSWER} {self.timeout:g} s"
            if isinstance(answer, str):
                log.warning("memory %s: retrieve failed: %s", memory.name, answer)
                failures.append(RecallFailure(memory.name, answer))
                answer = memory.at_hand(query, top_k=budget, ctx=ctx)
            answers.append(answer)
        return RecallResult(tuple(merge(answers, budget)), tuple(failures))


def merge(answers: Sequence[Sequence[Message]], budget: int) -> list[Message]:
    """At most `budget` messages of several answers, each best first and kept in its own order.

    The next is always the head with the highest score; at equal scores, the newer, then the one of the earlier answer.
    A text that was already taken is passed over. A message without a score has one by its place in its answer.
    """
    heads = [(answer, 0) for answer in answers if answer]
    taken: dict[str, Message] = {}
    while heads and len(taken) < budget:
        best = max(range(len(heads)), key=lambda i: (*_standing(*heads[i]), -i))
        answer, place = heads[best]
        message = answer[place]
        taken.setdefault(_same(message.content), message)
        if place + 1 < len(answer):
            heads[best] = answer, place + 1
        else:
            del heads[best]
    return list(taken.values())


def _standing(answer: Sequence[Message], place: int) -> tuple[float, float]:
    message = answer[place]
    provenance = message.metadata.get("memory")
    score: object = cast("dict[str, Any]", provenance).get("score") if isinstance(provenance, dict) else None
    if not isinstance(score, int | float) or score != score:
        score = 1.0 - place / len(answer)
    return float(score), message.created_at.timestamp()


def _same(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


async def _ask(memory: Memory, query: str, top_k: int, ctx: InvocationContext) -> list[Message] | str:
    """What a memory answers, or what is wrong with it."""
    try:
        return sound(await memory.retrieve(query, top_k=top_k, ctx=ctx), top_k)
    except RecollectError as error:
        return str(error)
    except Exception as error:
        log.warning("memory %s: retrieve raised", memory.name, exc_info=True)
        return f"{type(error).__name__}: {error}"


def sound(answer: object, top_k: int) -> list[Message]:
    """The first `top_k` messages of what a memory returned. Raises TypeError, ValueError or OverflowError for what is none."""
    found = list(islice(cast("Iterable[object]", answer if answer is not None else ()), top_k))
    for item in found:
        if not isinstance(item, Message):
            raise TypeError(f"retrieve returned a {type(item).__name__} where a Message belongs")
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(item, name), kind):
                raise TypeError(f"retrieve returned a Message whose {name} is a {type(value).__name__}")
        item.content.encode()  # half a surrogate pair can be sent nowhere
        item.created_at.astimezone(UTC)  # the first and the last day of the calendar have no time elsewhere
    return cast("list[Message]", found)


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report it: the deadline was reported already
