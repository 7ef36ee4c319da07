"""Conversions between mem0's items, turns, and this project's records and messages: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from retinue_memory.memory import MemoryFilter, MemoryKind, MemoryRecord
from retinue_memory.messages import Message, Provenance
from retinue_memory.pending import words
from retinue_memory.text import storable

from .service import (
    ABOUT,
    TURN,
    Change,
    Item,
    moment,
)

HEADER: Mapping[str, Any] = {"format": "retinue-mem0", "version": 1}
"""The first value of an export."""
_MAX_SOURCES = 20  # mem0 bounds its metadata


def said_by_people(messages: Iterable[Message]) -> list[Message]:
    """The messages of the user and the assistant, without what a store does not need; no recalled memories, no tool results."""
    return [
        replace(message, content=storable(message.content), metadata={}, tool_calls=(), id=storable(message.id))
        for message in messages
        if message.role in ("user", "assistant") and message.content.strip()
    ]


def metadata_of(turn: str, messages: Sequence[Message], about: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that mem0 stores with a turn: its id, and under `ABOUT` the ids of its messages (`sources`), when the first
    was said (`said_at`, ISO 8601), and `about`.

    `about` may have `session`, `kind`, `pinned`, `version`, `origin` (the id before an import), and `metadata` of mem0 itself.
    """
    known = {
        "sources": [message.id for message in messages][:_MAX_SOURCES],
        "said_at": messages[0].created_at.isoformat(),
    }
    theirs = dict(about)
    return {**theirs.pop("metadata", {}), TURN: turn, ABOUT: known | theirs}


def about(item: Item) -> Mapping[str, Any]:
    """What `metadata_of` stored under `ABOUT`; empty for an item that others wrote."""
    found = item.metadata.get(ABOUT)
    return dict(found) if isinstance(found, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType]


def kind_of(item: Item) -> MemoryKind:
    """The kind that was stored; else a preference if a category of mem0 says so, else an entity."""
    given = about(item).get("kind")
    if given in list(MemoryKind):
        return MemoryKind(given)
    likes = any("preference" in category.lower() for category in item.categories)
    return MemoryKind.PREFERENCE if likes else MemoryKind.ENTITY


def record_of(item: Item) -> MemoryRecord:
    """The record of an item that mem0 returned."""
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


def unconfirmed_record(message: Message, about: Mapping[str, Any]) -> MemoryRecord:
    """The record of a message that mem0 does not find yet; it has the message's id."""
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
    """The retrieved message of an item."""
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


def merged(unconfirmed: Sequence[Message], found: Sequence[Message], top_k: int) -> list[Message]:
    """The best `top_k` of the unconfirmed messages and of what mem0 found, each text once.

    Half of the places, or those that mem0 leaves free, are for unconfirmed messages: neither side pushes out the other.
    """
    found = list(_distinct(found))
    texts = {message.content.strip() for message in found}
    new = [message for message in _distinct(unconfirmed) if message.content.strip() not in texts]
    places = max(-(-top_k // 2), top_k - len(found))
    chosen = [*new[:places], *found]
    cut = [*new[:places], *found[: max(0, top_k - min(places, len(new)))]]
    return sorted(cut if len(chosen) > top_k else chosen, key=lambda message: -message.metadata["memory"]["score"])


def _distinct(messages: Iterable[Message]) -> Iterator[Message]:
    seen = set[str]()
    for message in messages:
        if (text := message.content.strip()) not in seen:
            seen.add(text)
            yield message


def selects(where: MemoryFilter, record: MemoryRecord) -> bool:
    """Whether the filter selects the record. Raises ValueError for `as_of`, which mem0 does not support."""
    if where.as_of is not None:
        raise ValueError("mem0 does not store when a memory held: leave out as_of")
    return (not where.kinds or record.kind in where.kinds) and said_between(record, where.since, where.until)


def said_between(record: MemoryRecord, since: datetime | None, until: datetime | None) -> bool:
    """Whether it was first said from `since` (inclusive) to `until` (exclusive). None: no bound."""
    return (since is None or record.created_at >= since) and (until is None or record.created_at < until)


def contains(record: MemoryRecord, query: str) -> bool:
    """Whether the record has all words of the query, or the query itself if that has no words."""
    asked = words(query)
    return asked <= words(record.content) if asked else query.strip() in record.content


def versions(record: MemoryRecord, changes: Sequence[Change]) -> list[MemoryRecord]:
    """The earlier versions of a record, oldest first, then the record. Changes of metadata only are left out."""
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
    """A memory as a JSON value; `metadata` is the item's."""
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


def imported(value: Mapping[str, Any], number: int) -> tuple[str, Message, dict[str, Any]]:
    """The id, the message and the `about` of an exported value. Raises ValueError, naming value `number`, for any other."""
    try:
        id, content, kind = value["id"], value["content"], MemoryKind(value["kind"])
        said_at = datetime.fromisoformat(value["said_at"])
        if not isinstance(id, str) or not isinstance(content, str) or not content.strip() or said_at.tzinfo is None:
            raise ValueError("expected an id, a content that is not empty, and a said_at with a time zone")
        sources, metadata = list(value["sources"]), dict(value["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"value {number} is not an exported memory: {type(error).__name__}: {error}") from None
    known = {
        "origin": id,
        "kind": kind.value,
        "session": str(value.get("session", "")),
        "sources": sources,
        "pinned": value.get("pinned") is True,
        "metadata": metadata,
    }
    return id, Message("user", storable(content), created_at=said_at), known
