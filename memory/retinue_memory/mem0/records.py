"""Between mem0's memories and ours: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from retinue_memory.memory import MemoryFilter, MemoryKind, MemoryRecord
from retinue_memory.messages import Message, Provenance
from retinue_memory.pending import words

from .service import (
    ABOUT,
    TURN,
    Change,
    Item,
    moment,
)

T = TypeVar("T")

_SOURCES = 20
"""Message ids that a memory names at most: mem0 bounds its metadata."""
_BYTES_A_TOKEN, _TOKENS_A_MEMORY = 4, 8


def clean(text: str) -> str:
    """The text as JSON and every store can hold it: NUL and halves of surrogate pairs become U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def worth_keeping(messages: Iterable[Message]) -> list[Message]:
    """What the user and the assistant said. What was recalled (system) and what tools returned is no new memory."""
    return [
        replace(message, content=clean(message.content), metadata={}, tool_calls=(), id=clean(message.id))
        for message in messages
        if message.role in ("user", "assistant") and message.content.strip()
    ]


def metadata_of(turn: str, messages: Sequence[Message], about: Mapping[str, Any]) -> dict[str, Any]:
    """What goes with a turn to mem0: its id, and under `ABOUT` `sources` (message ids), `said_at` (ISO 8601) and what else is
    given, such as `session`, `kind`, `pinned`, `version`, `origin`, and what mem0 knew of an imported one."""
    known = {
        "sources": [message.id for message in messages][:_SOURCES],
        "said_at": messages[0].created_at.isoformat(),
    }
    theirs = dict(about)
    return {**theirs.pop("metadata", {}), TURN: turn, ABOUT: known | theirs}


def about(item: Item) -> Mapping[str, Any]:
    """What `metadata_of` said of it; empty for what somebody else wrote."""
    found = item.metadata.get(ABOUT)
    return dict(found) if isinstance(found, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType]


def kind_of(item: Item) -> MemoryKind:
    """As it was given; else a preference where a category of mem0 says so, else an entity: a fact that mem0 drew."""
    given = about(item).get("kind")
    if given in list(MemoryKind):
        return MemoryKind(given)
    likes = any("preference" in category.lower() for category in item.categories)
    return MemoryKind.PREFERENCE if likes else MemoryKind.ENTITY


def record_of(item: Item) -> MemoryRecord:
    known = about(item)
    said_at = moment(known["said_at"]) if "said_at" in known else item.created_at
    version, sources = known.get("version"), known.get("sources")
    return MemoryRecord(
        id=item.id,
        kind=kind_of(item),
        content=item.text,
        role="system",
        speaker="",
        session_id=str(known.get("session") or ""),
        created_at=said_at,
        valid_from=said_at,
        sources=tuple(map(str, sources)) if isinstance(sources, list) else (),  # pyright: ignore[reportUnknownArgumentType]
        pinned=known.get("pinned") is True,
        version=version if isinstance(version, int) and version > 0 else 1,
    )


def waiting_record(message: Message, about: Mapping[str, Any]) -> MemoryRecord:
    """What mem0 has not made searchable, as it was said; its id is the message's."""
    kind = about.get("kind")
    return MemoryRecord(
        id=message.id,
        kind=MemoryKind(kind) if kind in list(MemoryKind) else MemoryKind.RECENT_MESSAGE,
        content=message.content,
        role=message.role,
        speaker=message.name or "",
        session_id=str(about.get("session") or ""),
        created_at=message.created_at,
        valid_from=message.created_at,
        sources=(message.id,),
        pinned=about.get("pinned") is True,
    )


def message_of(item: Item, backend: str) -> Message:
    record = record_of(item)
    provenance = Provenance(
        id=record.id,
        kind=record.kind.value,
        score=round(item.score, 6),
        sources=list(record.sources),
        created_at=record.created_at.isoformat(),
        backend=backend,
    )
    return Message("system", item.text, id=item.id, created_at=record.created_at, metadata={"memory": provenance})


def merged(laid_over: Sequence[Message], found: Sequence[Message], top_k: int) -> list[Message]:
    """The best `top_k` of what waits and of what mem0 found, the same text once. Half of the places, or what mem0 leaves
    free, is for what waits: it may not be pushed out, and may not push out everything."""
    found = list(_once(found))
    texts = {message.content.strip() for message in found}
    waiting = [message for message in _once(laid_over) if message.content.strip() not in texts]
    places = max(-(-top_k // 2), top_k - len(found))
    chosen = [*waiting[:places], *found]
    cut = [*waiting[:places], *found[: max(0, top_k - min(places, len(waiting)))]]
    return sorted(cut if len(chosen) > top_k else chosen, key=lambda message: -message.metadata["memory"]["score"])


def _once(messages: Iterable[Message]) -> Iterator[Message]:
    seen = set[str]()
    for message in messages:
        if (text := message.content.strip()) not in seen:
            seen.add(text)
            yield message


def meant(record: MemoryRecord, where: MemoryFilter) -> bool:
    """Whether a filter means it. Raises ValueError for what mem0 cannot tell: what held at an earlier time."""
    if where.as_of is not None:
        raise ValueError("mem0 does not keep from when to when something held: leave out as_of")
    return (not where.kinds or record.kind in where.kinds) and between(record, where.since, where.until)


def between(record: MemoryRecord, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or record.created_at >= since) and (until is None or record.created_at < until)


def contains(record: MemoryRecord, query: str) -> bool:
    """Whether it has all the words of the query; of one without words, the query itself."""
    asked = words(query)
    return asked <= words(record.content) if asked else query.strip() in record.content


def within(budget: int | None, found: Iterable[T], text: Callable[[T], str]) -> Iterator[T]:
    """As many of the found, best first, as fit into `budget` tokens, about; None: all."""
    for one in found:
        if budget is not None:
            need = _TOKENS_A_MEMORY + -(-len(text(one).encode("utf-8", "replace")) // _BYTES_A_TOKEN)
            if need > budget:
                continue
            budget -= need
        yield one


def versions(record: MemoryRecord, changes: Sequence[Change]) -> list[MemoryRecord]:
    """The record's earlier versions, oldest first, and the record itself. mem0 lists a step for a change of metadata, too."""
    steps: list[Change] = []
    for change in changes:
        if change.text is not None and (not steps or steps[-1].text != change.text):
            steps.append(change)
    if steps and steps[-1].text == record.content:
        steps.pop()
    first = max(1, record.version - len(steps))
    ends = [step.at for step in steps[1:]] + [change.at for change in changes[-1:]]
    earlier = [
        replace(record, version=first + number, content=step.text or "", valid_to=end)
        for number, (step, end) in enumerate(zip(steps, ends, strict=False))
    ]
    return [*earlier, record]


def exported(record: MemoryRecord, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A memory as a JSON value; `metadata` is what mem0 knows beside."""
    theirs = {key: value for key, value in metadata.items() if key not in (TURN, ABOUT)}
    return {
        "id": record.id,
        "content": record.content,
        "kind": record.kind.value,
        "session": record.session_id,
        "said_at": record.created_at.isoformat(),
        "sources": list(record.sources),
        "pinned": record.pinned,
        "metadata": theirs,
    }
