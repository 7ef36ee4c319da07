"""What an update writes: redacted, screened, sorted, merged with its like, and put in the place of what it contradicts.

`drafts` makes memories of messages, off the database. `prepare` looks, on a reader, for what they may meet. `take` writes
them, in one transaction in which it also looks at what was written since, so that of two who say the same at once one comes
second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import named_queries
from retinue_memory.memory import (
    InvocationContext,
    MemoryKind,
    MemoryRecord,
    Scope,
)
from retinue_memory.messages import NOTE, Message

from . import (
    injection,
    lasting,
    lifecycle,
    redaction,
    rows,
)
from .consolidation import Drawn
from .index import NEVER, Index
from .lifecycle import Statement
from .reading import read, split
from .rows import (
    Change,
    NewMemory,
    Source,
    Stored,
    by_id,
    by_seq,
    key_of,
    listed,
    microseconds,
    moment,
    storable,
)
from .words import terms

SQL = named_queries(files("retinue_memory.native").joinpath("ingest.sql").read_text(encoding="utf-8"))
RECENT = timedelta(days=30)
"""How long small talk, questions and the like stay findable."""
_NEIGHBOURS = 8
"""Memories of the most common rare words with a new one that are looked at."""
_MOST_TERMS = 24
_MOST_CHANGED = 200
"""Rows that are looked at of those written since the preparation; the latest."""
_FACTS = frozenset(
    {"home", "employer", "trade", "couple", "diet", "age", "weight", "name", "call", "born", "is", "have", "allergy"}
)
_LONGEST_FOREIGN = 4_000
"""Characters kept of a quarantined text: enough to see what it was."""


# -- from messages to memories ------------------------------------------------------------------------------------------


def drafts(messages: Sequence[Message], ctx: InvocationContext, redact: redaction.Redaction) -> list[NewMemory]:
    """What is worth a row. What the user and the assistant said; of tools only what had to be quarantined.

    Recalled memories are never written again, nor is what carries them. `metadata["origin"]` of a message says where its text
    comes from, if not from who said it: "file", "page", "agent", ...
    """
    return [
        draft
        for position, message in enumerate(messages)
        if message.role in ("user", "assistant", "tool")
        and message.content.strip()
        and not {"memory", "memories"} & set(message.metadata)
        for draft in _drafts(message, position, ctx, redact)
    ]


def _drafts(
    message: Message, position: int, ctx: InvocationContext, redact: redaction.Redaction
) -> Iterator[NewMemory]:
    said_at = microseconds(message.created_at)
    turn_id = None if ctx.turn_id is None else storable(ctx.turn_id)
    source = Source(storable(message.id), said_at, turn_id, position)
    told = message.metadata.get("origin")
    origin = told if isinstance(told, str) and told else message.role
    screened = injection.screen(redact(storable(message.content)), origin)
    speaker, session_id = storable(message.name or ""), storable(ctx.session_id)
    if screened.reason is not None or message.role != "tool":
        role = message.role if message.role != "tool" else "system"
        text, (kind, expires_at) = screened.text, (MemoryKind.RECENT_MESSAGE, None)
        if screened.reason is not None:
            text = text[:_LONGEST_FOREIGN]
        else:
            kind, expires_at = _sorted(role, text, said_at, origin)
        yield NewMemory(
            role=role,
            speaker=speaker,
            content=text,
            session_id=session_id,
            said_at=said_at,
            sources=(source,),
            kind=kind,
            expires_at=expires_at,
            quarantined=screened.reason,
        )
    if screened.apart:
        yield NewMemory(
            role="system",
            speaker=speaker,
            content=screened.apart[:_LONGEST_FOREIGN],
            session_id=session_id,
            said_at=said_at,
            sources=(dataclasses.replace(source, turn_id=None),),
            quarantined=screened.apart_reason,
        )


def _sorted(role: str, text: str, said_at: int, origin: str) -> tuple[MemoryKind, int | None]:
    """The kind, and when it ends: small talk soon, what names an end then, everything else never. A note is a fact, also of
    what the user likes or wants: it must not become an instruction that comes with every recall."""
    if not lasting.is_lasting(role, text):
        kept_until = max(said_at, microseconds(datetime.now(UTC))) + RECENT // timedelta(microseconds=1)
        return MemoryKind.RECENT_MESSAGE, kept_until
    if origin not in (injection.OWN, NOTE):
        return MemoryKind.RECENT_MESSAGE, None
    end = lasting.end_of(text, moment(said_at))
    kind = kind_of(text) if origin == injection.OWN else MemoryKind.ENTITY
    if end is None:
        return kind, None
    kind = MemoryKind.ENTITY if kind == MemoryKind.RECENT_MESSAGE else kind  # of messages, only what passes has an end
    return kind, microseconds(end)


def kind_of(text: str) -> MemoryKind:
    """Of a user's own words: standing instructions and likings are preferences, facts entities, the rest just messages."""
    if any(map(injection.is_standing, split(text))):
        return MemoryKind.PREFERENCE
    slots = lifecycle.slots(text)
    if slots & {"like", "prefer"}:
        return MemoryKind.PREFERENCE
    return MemoryKind.ENTITY if slots & _FACTS else MemoryKind.RECENT_MESSAGE


# -- what they may meet -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a write has to look at, as of `version` of the scope: for each text (`wording`) the row numbers that share words
    with it, and the claims of rows that were not read before."""

    version: int = 0
    neighbours: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    slots: Mapping[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])


def is_claiming(new: NewMemory) -> bool:
    """Whether a memory can mean anything for others: a user's words, or what was drawn from them, that last."""
    return new.role != "assistant" and new.quarantined is None and lasting.is_lasting("user", new.content)


def wording(text: str) -> str:
    """The text with the words of its claims: "I went vegan" claims of "eat meat" too that it is over."""
    return " ".join([text, *(claim.text for claim in lifecycle.claims(text))])


def neighbours(index: Index, text: str) -> frozenset[int]:
    """Row numbers of the current memories that share the most, and the rarest, words with a text. Hold the index's lock."""
    found = index.postings(list(dict.fromkeys(terms(text)))[:_MOST_TERMS])
    if not len(found.places):
        return frozenset()
    rarity = np.log1p(index.size / np.maximum(found.holding, 1))
    shared = np.bincount(found.places, rarity.repeat(found.holding), minlength=index.size)
    shared *= index.column("valid_to") == NEVER
    most = min(_NEIGHBOURS, index.size)
    best = shared.argpartition(-most)[-most:]
    return frozenset(index.column("seqs")[best[shared[best] > 0]].tolist())


def unread_slots(db: Connection, scope: Scope, version: int) -> dict[int, frozenset[str]]:
    """The claims of the rows up to `version` that were never read for them."""
    rows = db.execute(SQL["unread"], key_of(scope) | {"version": version}).fetchall()
    return {seq: lifecycle.keys(content) for seq, content in rows}


# -- writing ------------------------------------------------------------------------------------------------------------


def take(change: Change, memories: Sequence[NewMemory], prepared: Prepared, *, pending: bool = False) -> list[Stored]:
    """Write what is new, and end what it takes the place of; messages already taken are passed over. What was written, or
    refreshed. `pending`: a model is to draw facts from what lasts."""
    writer = Writer(change, prepared)
    messages: dict[tuple[str, int], Source] = {}  # a message and what it quotes may be two memories
    for new in memories:
        messages.setdefault((new.sources[0].message_id, new.sources[0].position), new.sources[0])
    taken = dict(zip(messages, change.taken(list(messages.values())), strict=True))
    return [
        writer.write(new, pending=pending and is_claiming(new))
        for new in memories
        if not taken[new.sources[0].message_id, new.sources[0].position]
    ]


class Old(NamedTuple):
    """A current memory that a new one may join or end. Times in microseconds."""

    seq: int
    id: str
    role: str
    content: str
    session_id: str
    created_at: int
    began: int


class Writer:
    """Writes memories in one change. Only what the user said, or what was drawn from it, ends or joins others."""

    def __init__(self, change: Change, prepared: Prepared) -> None:
        self._change = change
        self._prepared = prepared
        self._begun = False
        self._newer: dict[int, str] = {}
        """The texts of the rows that are newer than the preparation."""

    def _begin(self) -> None:
        """Look at what was written since the preparation."""
        change, prepared = self._change, self._prepared
        self._begun = True
        self._add_slots(prepared.slots)
        if change.before.version == prepared.version and not change.changed:
            change.slots_read()
            return
        values = {"version": prepared.version, "most": _MOST_CHANGED}
        rows = change.db.execute(SQL["changed"], change.key | values).fetchall()
        for seq, content in rows:
            self.note(seq, content)
        if len(rows) < _MOST_CHANGED:
            change.slots_read()

    def write(self, new: NewMemory, *, pending: bool = False) -> Stored:
        """Write one memory, or join it to the one that says the same."""
        change = self._change
        if not is_claiming(new):
            stored = change.draft(new)
            if self._begun and new.role != "assistant" and new.quarantined is None:
                self.note(stored.seq, new.content)
            return stored
        if not self._begun:
            self._begin()
        new, corrected = _completed(change, new)
        olds = self._meeting(new)
        for old in olds:
            if old.content != new.content and lifecycle.says_the_same(old.content, new.content):
                change.merge(old.id, new.said_at, new.sources)
                return Stored(old.seq, old.id, fresh=False)
        stored = change.draft(new)
        if pending and stored.fresh:
            change.db.execute(SQL["set_pending"], change.key | {"seq": stored.seq, "pending": 1})
        if corrected or lifecycle.claims(new.content):
            self._end_others(new, stored, [old for old in olds if old.id != stored.id], corrected)
        self.note(stored.seq, new.content)
        return stored

    def _end_others(
        self, new: NewMemory, stored: Stored, others: list[Old], corrected: list[tuple[Old, frozenset[int]]]
    ) -> None:
        """End what the new memory takes the place of; or the new one itself, where it comes late."""
        said = Statement(new.content, new.speaker, moment(new.said_at))
        statements = [_of(old, new.speaker) for old in others]
        over = {others[place].id: those for place, those in lifecycle.judge(said, statements).items()}
        for old, those in corrected:
            over[old.id] = over.get(old.id, frozenset()) | those
        for old in {old.id: old for old in (*others, *(old for old, _ in corrected))}.values():
            if old.id in over:
                self._end(old, over[old.id], stored, new)
        if stored.fresh:
            _end_if_late(self._change, stored, said, others)

    def _meeting(self, new: NewMemory) -> list[Old]:
        """The current memories of this speaker that a new one may join or end: by its words, and by what it is about."""
        worded, keys = wording(new.content), lifecycle.keys(new.content)
        seqs = set(self._prepared.neighbours.get(worded, ()))
        if self._newer:
            words = frozenset(terms(worded))
            seqs.update(
                seq
                for seq, text in self._newer.items()
                if not words.isdisjoint(terms(wording(text))) or not keys.isdisjoint(lifecycle.keys(text))
            )
        if not seqs and not keys:
            return []
        values = {"seqs": listed(seqs), "slots": json.dumps(list(keys)) if keys else "[]", "speaker": new.speaker}
        return list(map(Old._make, self._change.db.execute(SQL["meeting"], self._change.key | values).fetchall()))

    def note(self, seq: int, content: str) -> None:
        """Remember what was written, so that the next of this change can meet it, and later ones by what it is about."""
        self._newer[seq] = content
        self._add_slots({seq: lifecycle.keys(content)})

    def _add_slots(self, slots: Mapping[int, frozenset[str]]) -> None:
        rows = [(seq, name) for seq, names in slots.items() for name in names]
        if rows:
            self._change.db.execute(SQL["add_slots"], self._change.key | {"slots": json.dumps(rows)})

    def _end(self, old: Old, sentences: frozenset[int], by: Stored, new: NewMemory) -> None:
        """End a memory; what else its message said is kept, from now on, by itself."""
        change = self._change
        if not change.supersede(old.id, by.id, new.said_at):
            return
        if rest := lifecycle.remainder(old.content, sentences):
            (record,) = by_seq(change.db, change.scope, [old.seq]).values()
            kept = NewMemory(
                role=old.role,
                speaker=new.speaker,
                content=rest,
                session_id=old.session_id,
                said_at=old.created_at,
                sources=tuple(Source(source, old.created_at) for source in record.sources),
                kind=kind_of(rest),
                valid_from=new.said_at,
            )
            self.note(change.draft(kept).seq, rest)


def _end_if_late(change: Change, stored: Stored, said: Statement, others: Sequence[Old]) -> None:
    """What was said before a statement that contradicts it, and arrives after it, is history when it comes."""
    later = sorted((old for old in others if moment(old.began) > said.said_at), key=lambda old: old.began)
    for old in later:
        over = lifecycle.judge(_of(old, said.speaker), [said])
        if over and not lifecycle.remainder(said.text, over[0]):
            change.supersede(stored.id, old.id, old.began)
            return


def _completed(change: Change, new: NewMemory) -> tuple[NewMemory, list[tuple[Old, frozenset[int]]]]:
    """A correction without a subject ("actually, it's on Thursday") with the sentence it corrects, and what that ends."""
    if not any(sentence.instead for sentence in read(new.content)):
        return new, []
    rows = change.db.execute(SQL["latest_said"], change.key | {"session_id": new.session_id}).fetchall()
    for *values, speaker in rows:
        old = Old(*values)
        if speaker == new.speaker and (found := lifecycle.completed(new.content, old.content)):
            text = f"{new.content} ({found[0]})"
            kind = kind_of(found[0])
            without = dataclasses.replace(new, content=text, kind=kind, embedder=None, dimensions=None, vector=None)
            return dataclasses.replace(without, tokens=None), [(old, found[1])]
    return new, []


def _of(old: Old, speaker: str) -> Statement:
    return Statement(old.content, speaker, moment(old.began))


# -- what a model drew --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """Messages of one session that a model is to work on, by row number, with what is known already around them."""

    life: int
    records: Mapping[int, MemoryRecord]
    known: tuple[str, ...] = ()
    summary: MemoryRecord | None = None


def pending_sessions(db: Connection, space: str) -> list[tuple[Scope, str]]:
    """The sessions of a space in which messages wait."""
    rows = db.execute(SQL["pending_scopes"], {"space": space}).fetchall()
    return [(Scope(tenant, space, owner, owner_id), session) for tenant, owner, owner_id, session in rows]


def waiting(db: Connection, scope: Scope, session_id: str, most: int) -> Waiting:
    """The oldest `most` messages of a session that wait."""
    key = key_of(scope) | {"session_id": session_id, "most": most}
    records = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["pending"], key)])
    summaries = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["summary_of"], key)])
    return Waiting(rows.state(db, scope).life, records, summary=next(iter(summaries.values()), None))


def drawn_from(records: Sequence[MemoryRecord], drawn: Sequence[Drawn], redact: redaction.Redaction) -> list[NewMemory]:
    """What a model drew, as memories: redacted and screened like what was said, with the messages it was drawn from."""
    return [
        NewMemory(
            role="system",
            speaker=records[one.sources[0]].speaker,
            content=redact(storable(one.text)),
            session_id=records[0].session_id,
            said_at=max(microseconds(records[place].valid_from) for place in one.sources),
            sources=tuple(_sources([records[place] for place in one.sources])),
            kind=one.kind,
            quarantined=injection.orders(one.text, "assistant"),
        )
        for one in drawn
    ]


def settle(change: Change, done: Waiting, memories: Sequence[NewMemory], prepared: Prepared, summary: str) -> bool:
    """Write what a model drew; from now on the messages themselves are recent messages, but those that say it as well.

    False, and nothing is written: what the model was shown was forgotten or edited meanwhile, so the rest has to be shown anew.
    """
    shown = {record.id: record.version for record in (*done.records.values(), *filter(None, [done.summary]))}
    if {record.id: record.version for record in by_id(change.db, change.scope, shown).values()} != shown:
        return False
    writer = Writer(change, prepared)
    stored = {writer.write(new).seq for new in memories}
    if summary:
        _summarise(writer, change, done, summary)
    kept_until = microseconds(datetime.now(UTC)) + RECENT // timedelta(microseconds=1)
    for seq in done.records:
        ends = None if seq in stored else kept_until
        change.db.execute(SQL["settled"], change.key | {"seq": seq, "expires_at": ends, "version": change.version})
    return True


def give_up(change: Change, done: Waiting) -> None:
    """No model helps: the messages stay what they are, for good."""
    for seq in done.records:
        change.db.execute(SQL["settled"], change.key | {"seq": seq, "expires_at": None, "version": change.version})


def _summarise(writer: Writer, change: Change, done: Waiting, summary: str) -> None:
    records = list(done.records.values())
    at = max(microseconds(record.valid_from) for record in records)
    earlier = done.summary.sources if done.summary is not None else ()
    sources = (*(Source(source, at) for source in earlier), *_sources(records))
    stored = change.draft(NewMemory("system", "", summary, records[0].session_id, at, sources, kind=MemoryKind.SUMMARY))
    writer.note(stored.seq, summary)
    if done.summary is not None and stored.id != done.summary.id:
        change.supersede(done.summary.id, stored.id, at)


def _sources(records: Sequence[MemoryRecord]) -> Iterator[Source]:
    for record in records:
        for message_id in record.sources:
            yield Source(message_id, microseconds(record.created_at))
