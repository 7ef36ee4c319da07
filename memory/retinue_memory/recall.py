"""One or many memories as one: asked at the same time, each with a deadline, merged under one budget."""

from __future__ import annotations

import asyncio
import logging
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, cast

from .errors import MemoryBackendError, RetinueError
from .memory import InvocationContext, Memory, MemoryKind
from .messages import Message, Provenance
from .text import same_text

log = logging.getLogger(__name__)

NO_ANSWER = "no answer within"
"""How the problem of a memory begins that did not answer in time."""
_KINDS: Mapping[str, Any] = {
    "content": str,
    "id": str,
    "name": str | None,
    "created_at": datetime,
    "metadata": Mapping,
}
_LARGEST_SCORE = 1e9


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
            late = not task.done() or task.cancelled()
            answer, problem = ([], f"{NO_ANSWER} {self.timeout:g} s") if late else task.result()
            if problem is not None:
                log.warning("memory %s: retrieve failed: %s", memory.name, problem)
                failures.append(RecallFailure(memory.name, problem))
            answers.append(answer if answer or problem is None else memory.at_hand(query, top_k=budget, ctx=ctx))
        return RecallResult(tuple(merge(answers, budget)), tuple(failures))


def merge(answers: Sequence[Sequence[Message]], budget: int) -> list[Message]:
    """At most `budget` messages of several answers, each best first and kept in its own order.

    The next is always the head with the highest score; at equal scores, the newer, then the one of the earlier answer.
    A text that was already taken joins the message that has it, which then names the sources of both. A message without a
    score has one by its place in its answer.
    """
    given = [answer for answer in answers if answer]
    taken: dict[str, list[Message]] = {}
    for message in given[0] if len(given) == 1 else _ranked(given):
        same = same_text(message.content)
        if same in taken:
            taken[same].append(message)
        elif len(taken) < budget:
            taken[same] = [message]
    return [_joined(*messages) for messages in taken.values()]


def _ranked(answers: Sequence[Sequence[Message]]) -> Iterator[Message]:
    """The messages of all answers, none of which is empty, in the order that `merge` describes."""
    heads = [(answer, 0) for answer in answers]
    while heads:
        best = max(range(len(heads)), key=lambda i: (*_standing(*heads[i]), -i))
        answer, place = heads[best]
        yield answer[place]
        if place + 1 < len(answer):
            heads[best] = answer, place + 1
        else:
            del heads[best]


def provenance(message: Message) -> Provenance:
    """What `metadata["memory"]` of a retrieved message says, in the types that it is to have, whatever stands there."""
    given = _given(message)
    sources, created_at = given.get("sources"), given.get("created_at")
    return Provenance(
        id=_storable(given.get("id") or message.id),
        kind=_storable(given.get("kind") or MemoryKind.RECENT_MESSAGE),
        score=_score(message) or 0.0,
        sources=[_storable(one) for one in cast("Iterable[object]", sources)]
        if isinstance(sources, list | tuple)
        else [],
        created_at=_storable(created_at or moment(message).isoformat()),
        backend=_storable(given.get("backend") or ""),
    )


def moment(message: Message) -> datetime:
    """When it was said, in UTC; a time without zone is taken as that."""
    created = message.created_at
    if created.tzinfo is UTC:
        return created
    return created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)


def _given(message: Message) -> Mapping[str, Any]:
    found = message.metadata.get("memory")
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def _score(message: Message) -> float | None:
    score = _given(message).get("score")
    known = isinstance(score, numbers.Real) and abs(cast("Any", score)) < _LARGEST_SCORE
    return float(cast("Any", score)) if known else None


def _storable(value: object) -> str:
    text = str(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _standing(answer: Sequence[Message], place: int) -> tuple[float, datetime]:
    score = _score(answer[place])
    return 1.0 - place / len(answer) if score is None else score, moment(answer[place])


def _joined(message: Message, *others: Message) -> Message:
    if not others:
        return message
    own = provenance(message)
    sources = list(dict.fromkeys(source for one in (message, *others) for source in provenance(one)["sources"]))
    if sources == own["sources"]:
        return message
    return replace(message, metadata={**message.metadata, "memory": {**own, "sources": sources}})


async def _ask(memory: Memory, query: str, top_k: int, ctx: InvocationContext) -> tuple[list[Message], str | None]:
    """What a memory answers, and what is wrong with it: None where nothing is."""
    try:
        try:
            return sound(await memory.retrieve(query, top_k=top_k, ctx=ctx), top_k), None
        except MemoryBackendError as error:
            return sound(error.found, top_k), str(error)
    except RetinueError as error:
        return [], str(error)
    except Exception as error:
        log.warning("memory %s: retrieve raised", memory.name, exc_info=True)
        return [], f"{type(error).__name__}: {error}"


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
