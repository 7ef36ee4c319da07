"""Search several memories at once within a timeout, and merge the results."""

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
"""Prefix of `RecallFailure.problem` if the memory timed out."""
_KINDS: Mapping[str, Any] = {
    "content": str,
    "id": str,
    "name": str | None,
    "created_at": datetime,
    "metadata": Mapping,
}
_MAX_SCORE = 1e9


@dataclass(frozen=True, slots=True)
class RecallFailure:
    """A memory whose search failed: its name, and the reason as text."""

    memory: str
    problem: str


@dataclass(frozen=True, slots=True)
class RecallResult:
    """The memories found, best first, and the memories that failed."""

    messages: tuple[Message, ...] = ()
    failures: tuple[RecallFailure, ...] = ()


class Recall:
    """Searches all memories at once, within `timeout` seconds, and returns the best `top_k` results of all.

    If a memory fails or hangs, that is logged and returned, and the others are not affected. A memory that blocks the event
    loop cannot be interrupted: synchronous code belongs in a `MemoryBackend`, whose plain methods run off the loop.
    """

    def __init__(self, memories: Sequence[Memory], *, timeout: float = 2.0, top_k: int = 5) -> None:
        self.memories = tuple(memories)
        self.timeout = timeout
        self.top_k = top_k

    async def retrieve(self, query: str, ctx: InvocationContext, *, top_k: int | None = None) -> RecallResult:
        """Search for `query`. The result is empty if the query is, or if there are no memories. Raises nothing."""
        budget = self.top_k if top_k is None else top_k
        if not self.memories or not query.strip() or budget < 1:
            return RecallResult()
        tasks = [asyncio.create_task(_search(memory, query, budget, ctx)) for memory in self.memories]
        try:
            await asyncio.wait(tasks, timeout=self.timeout)
        finally:
            for task in tasks:
                if not task.done():  # not awaited: a memory may ignore the cancellation too
                    task.cancel()
                    task.add_done_callback(_retrieve_exception)
        answers: list[Sequence[Message]] = []
        failures: list[RecallFailure] = []
        for memory, task in zip(self.memories, tasks, strict=True):
            timed_out = not task.done() or task.cancelled()
            answer, problem = ([], f"{NO_ANSWER} {self.timeout:g} s") if timed_out else task.result()
            if problem is not None:
                log.warning("memory %s: retrieve failed: %s", memory.name, problem)
                failures.append(RecallFailure(memory.name, problem))
            answers.append(answer if answer or problem is None else memory.at_hand(query, top_k=budget, ctx=ctx))
        return RecallResult(tuple(merge(answers, budget)), tuple(failures))


def merge(answers: Sequence[Sequence[Message]], budget: int) -> list[Message]:
    """Merge several answers, each best first, into at most `budget` messages. The order within an answer is kept.

    The next message is the head with the highest score; at equal scores the newer one, then that of the earlier answer. A
    message without a score gets one by its position. Messages with the same text become one, with the sources of all.
    """
    nonempty = [answer for answer in answers if answer]
    merged: dict[str, list[Message]] = {}
    for message in nonempty[0] if len(nonempty) == 1 else _ranked(nonempty):
        text = same_text(message.content)
        if text in merged:
            merged[text].append(message)
        elif len(merged) < budget:
            merged[text] = [message]
    return [_with_all_sources(*messages) for messages in merged.values()]


def _ranked(answers: Sequence[Sequence[Message]]) -> Iterator[Message]:
    """Yield the messages of all answers, none of them empty, in the order of `merge`."""
    heads = [(answer, 0) for answer in answers]
    while heads:
        best = max(range(len(heads)), key=lambda i: (*_rank(*heads[i]), -i))
        answer, position = heads[best]
        yield answer[position]
        if position + 1 < len(answer):
            heads[best] = answer, position + 1
        else:
            del heads[best]


def provenance(message: Message) -> Provenance:
    """The `metadata["memory"]` of a retrieved message, with every value converted to its declared type."""
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
    """The message's `created_at` in UTC; a time without a zone is taken as UTC."""
    created = message.created_at
    if created.tzinfo is UTC:
        return created
    return created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)


def _given(message: Message) -> Mapping[str, Any]:
    found = message.metadata.get("memory")
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def _score(message: Message) -> float | None:
    score = _given(message).get("score")
    known = isinstance(score, numbers.Real) and abs(cast("Any", score)) < _MAX_SCORE
    return float(cast("Any", score)) if known else None


def _storable(value: object) -> str:
    text = str(value)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _rank(answer: Sequence[Message], position: int) -> tuple[float, datetime]:
    score = _score(answer[position])
    return 1.0 - position / len(answer) if score is None else score, moment(answer[position])


def _with_all_sources(message: Message, *others: Message) -> Message:
    if not others:
        return message
    own = provenance(message)
    sources = list(dict.fromkeys(source for one in (message, *others) for source in provenance(one)["sources"]))
    if sources == own["sources"]:
        return message
    return replace(message, metadata={**message.metadata, "memory": {**own, "sources": sources}})


async def _search(memory: Memory, query: str, top_k: int, ctx: InvocationContext) -> tuple[list[Message], str | None]:
    """Search one memory. Returns its answer and its problem, which is None if it succeeded."""
    try:
        try:
            return sound(await memory.retrieve(query, top_k=top_k, ctx=ctx), top_k), None
        except MemoryBackendError as error:
            return sound(error.found, top_k), str(error)
    except RetinueError as error:
        return [], str(error)
    except Exception as error:
        log.warning("memory %s: retrieve raised an unexpected error", memory.name, exc_info=True)
        return [], f"{type(error).__name__}: {error}"


def sound(answer: object, top_k: int) -> list[Message]:
    """Validate the first `top_k` items of a memory's answer. Raises TypeError, ValueError or OverflowError."""
    found = list(islice(cast("Iterable[object]", answer if answer is not None else ()), top_k))
    for item in found:
        if not isinstance(item, Message):
            raise TypeError(f"expected retrieve to return Messages, got a {type(item).__name__}")
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(item, name), kind):
                raise TypeError(f"retrieve returned a Message whose {name} is a {type(value).__name__}")
        item.content.encode()  # fails for half a surrogate pair, which cannot be sent
        item.created_at.astimezone(UTC)  # fails on the first and last day of the calendar
    return cast("list[Message]", found)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from logging the exception of a memory whose timeout was logged already."""
    if not task.cancelled():
        task.exception()
