"""Extraction of memories from a session's pending messages by a model, one batch at a time."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retinue_memory.clock import to_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.memory import MemoryKind, MemoryRecord, Scope
from retinue_memory.text import storable

from . import injection, rows
from .consolidation import Consolidation, Extracted, extract
from .index_cache import IndexLoader
from .ingest import SQL, Prepared, Writer, neighbours, passing_until
from .placement import Placement
from .redaction import Redaction
from .rows import Change, NewMemory, Source, by_id, by_seq, key_of
from .writes import Writes

log = logging.getLogger(__name__)

_MAX_KNOWN = 30


@dataclass(frozen=True, slots=True)
class Batch:
    """Pending messages of one session, and what is known around them."""

    generation: int
    records: Mapping[int, MemoryRecord]
    """By row number, oldest first."""
    known: tuple[str, ...] = ()
    """Memories that the model need not extract again."""
    summary: MemoryRecord | None = None
    """The session's summary so far."""


class Extraction:
    """Extracts memories from pending messages, and stores them with a summary of the session."""

    def __init__(
        self,
        name: str,
        settings: Consolidation,
        database: Database,
        placement: Placement,
        indexes: IndexLoader,
        writes: Writes,
        redact: Redaction,
    ) -> None:
        self._name = name
        self._settings = settings
        self._database = database
        self._placement = placement
        self._indexes = indexes
        self._writes = writes
        self._redact = redact

    async def run(self, scope: Scope, session_id: str) -> bool:
        """Work on the oldest pending messages of a session. Returns whether there may be more."""
        settings = self._settings
        with self._writes.start(scope) as write:
            batch = await self._placement.run(self._load, scope, session_id)
            records = list(batch.records.values())
            if not records:
                return False
            is_full = len(records) == settings.batch
            found = await extract(records, batch.known, batch.summary.content if batch.summary else "", settings)
            if found is None:
                log.warning("memory %s: extraction failed; keeping %d messages as they are", self._name, len(records))
                await self._writes.apply(write, batch.generation, lambda change: give_up(change, batch))
                return is_full
            extracted, summary = found
            index = await self._indexes.load(scope)
            new = memories_of(extracted, records, self._redact)
            memories, prepared = await self._writes.prepare(scope, index, new)
            summary = self._redact(storable(summary))
            stored = await self._writes.apply(
                write, batch.generation, lambda change: store(change, batch, memories, prepared, summary)
            )
            return stored is False or is_full

    def _load(self, scope: Scope, session_id: str) -> Batch:
        batch = self._database.read_now(lambda db: load_batch(db, scope, session_id, self._settings.batch))
        index = self._indexes.load_now(scope)
        with index.lock:
            near = {seq for record in batch.records.values() for seq in neighbours(index, record.content)}
        around = self._database.read_now(lambda db: by_seq(db, scope, sorted(near))).values()
        known = tuple(record.content for record in around if record.role == "system" and record.quarantined is None)
        return dataclasses.replace(batch, known=known[-_MAX_KNOWN:])


def pending_sessions(db: Connection, space: str) -> list[tuple[Scope, str]]:
    """The sessions of a space that have pending messages."""
    found = db.execute(SQL["pending_scopes"], {"space": space}).fetchall()
    return [(Scope(tenant, space, owner, owner_id), session) for tenant, owner, owner_id, session in found]


def load_batch(db: Connection, scope: Scope, session_id: str, limit: int) -> Batch:
    """The oldest `limit` pending messages of a session, with its summary."""
    key = key_of(scope) | {"session_id": session_id, "limit": limit}
    records = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["pending"], key)])
    summaries = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["summary_of"], key)])
    return Batch(rows.state(db, scope).generation, records, summary=next(iter(summaries.values()), None))


def memories_of(extracted: Sequence[Extracted], records: Sequence[MemoryRecord], redact: Redaction) -> list[NewMemory]:
    """Extracted memories, redacted and screened like messages, with the messages that they were extracted from."""
    return [
        NewMemory(
            role="system",
            speaker=records[one.sources[0]].speaker,
            content=redact(storable(one.text)),
            session_id=records[0].session_id,
            said_at=max(to_us(records[place].valid_from) for place in one.sources),
            sources=tuple(_sources([records[place] for place in one.sources])),
            kind=one.kind,
            quarantined=injection.orders(one.text, "assistant"),
        )
        for one in extracted
    ]


def store(change: Change, batch: Batch, memories: Sequence[NewMemory], prepared: Prepared, summary: str) -> bool:
    """Store what was extracted. The messages are not pending any more, and expire unless an extracted memory merged with them.

    Returns False and stores nothing if something that the model was shown was forgotten or edited meanwhile: it has to be
    asked again.
    """
    shown = {record.id: record.version for record in (*batch.records.values(), *filter(None, [batch.summary]))}
    if {record.id: record.version for record in by_id(change.db, change.scope, shown).values()} != shown:
        return False
    writer = Writer(change, prepared)
    stored = {writer.write(new).seq for new in memories}
    if summary:
        _store_summary(writer, change, batch, summary)
    passing = passing_until()
    for seq in batch.records:
        _set_extracted(change, seq, None if seq in stored else passing)
    return True


def give_up(change: Change, batch: Batch) -> None:
    """Keep the messages as they are, permanently: no model could work on them."""
    for seq in batch.records:
        _set_extracted(change, seq, None)


def _set_extracted(change: Change, seq: int, expires_at: int | None) -> None:
    values = {"seq": seq, "expires_at": expires_at, "version": change.version}
    change.db.execute(SQL["set_extracted"], change.key | values)


def _store_summary(writer: Writer, change: Change, batch: Batch, summary: str) -> None:
    records = list(batch.records.values())
    at = max(to_us(record.valid_from) for record in records)
    earlier = batch.summary.sources if batch.summary is not None else ()
    sources = (*(Source(source, at) for source in earlier), *_sources(records))
    stored = change.store(NewMemory("system", "", summary, records[0].session_id, at, sources, kind=MemoryKind.SUMMARY))
    writer.note(stored.seq, summary)
    if batch.summary is not None and stored.id != batch.summary.id:
        change.supersede(batch.summary.id, stored.id, at)


def _sources(records: Sequence[MemoryRecord]) -> Iterator[Source]:
    for record in records:
        for message_id in record.sources:
            yield Source(message_id, to_us(record.created_at))
