"""What an update writes: redacted, screened, sorted, merged with its like, and put in the place of what it contradicts.

`drafts` makes memories of messages, off the database. `prepare` looks, on a reader, for what they may meet. `take` writes
them, in one transaction in which it also looks at what was written since, so that of two who say the same at once one comes
second.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import numpy as np

from recollect_memory.contract import NOTE, InvocationContext, MemoryKind, MemoryRecord, Message, Scope
from recollect_memory.sqlite import named_queries

from . import guard, lasting, lifecycle, store
from .consolidation import Drawn
from .index import NEVER, Index
from .lifecycle import Statement
from .reading import read, split
from .store import Change, NewMemory, Source, Stored, by_id, by_seq, key_of, microseconds, moment, storable
from .words import terms

SQL = named_queries(files("recollect_memory.native").joinpath("writing.sql").read_text(encoding="utf-8"))
RECENT = timedelta(days=30)
"""How long small talk, questions and the like stay findable."""
_NEIGHBOURS = 8
"""Memories of the most common rare words with a new one that are looked at."""
_MOST_TERMS = 24
_FACTS = frozenset(
    {"home", "employer", "trade", "couple", "diet", "age", "weight", "name", "call", "born", "is", "have", "allergy"}
)
_LONGEST_FOREIGN = 4_000
"""Characters kept of a quarantined text: enough to see what it was."""


# -- from messages to memories ------------------------------------------------------------------------------------------


def drafts(messages: Sequence[Message], ctx: InvocationContext, redact: guard.Redaction) -> list[NewMemory]:
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


def _drafts(message: Message, position: int, ctx: InvocationContext, redact: guard.Redaction) -> Iterator[NewMemory]:
    said_at = microseconds(message.created_at)
    turn_id = None if ctx.turn_id is None else storable(ctx.turn_id)
    source = Source(storable(message.id), said_at, turn_id, position)
    told = message.metadata.get("origin")
    origin = told if isinstance(told, str) and told else message.role
    screened = guard.screen(redact(storable(message.content)), origin)
    speaker = storable(message.name or "")
    new = NewMemory(
        role=message.role if message.role != "tool" else "system",
        speaker=speaker,
        content=screened.text,
        session_id=storable(ctx.session_id),
        said_at=said_at,
        sources=(source,),
        quarantined=screened.reason,
    )
    if screened.reason is not None:
        yield dataclasses.replace(new, content=screened.text[:_LONGEST_FOREIGN])
    elif message.role != "tool":
        yield _sorted(new, origin)
    if screened.apart:
        quoted = screened.apart[:_LONGEST_FOREIGN]
        apart = dataclasses.replace(source, turn_id=None)
        yield dataclasses.replace(
            new, role="system", content=quoted, sources=(apart,), quarantined=screened.apart_reason
        )


def _sorted(new: NewMemory, origin: str) -> NewMemory:
    """With its kind, and when it ends: small talk soon, what names an end then, everything else never. A note is a fact, also
    of what the user likes or wants: it must not become an instruction that comes with every recall."""
    if not lasting.is_lasting(new.role, new.content):
        kept_until = max(new.said_at, microseconds(datetime.now(UTC))) + RECENT // timedelta(microseconds=1)
        return dataclasses.replace(new, expires_at=kept_until)
    if origin not in (guard.OWN, NOTE):
        return new
    end = lasting.end_of(new.content, moment(new.said_at))
    kind = kind_of(new.content) if origin == guard.OWN else MemoryKind.ENTITY
    if end is None:
        return dataclasses.replace(new, kind=kind)
    kind = MemoryKind.ENTITY if kind == MemoryKind.RECENT_MESSAGE else kind  # of messages, only what passes has an end
    return dataclasses.replace(new, kind=kind, expires_at=microseconds(end))


def kind_of(text: str) -> MemoryKind:
    """Of a user's own words: standing instructions and likings are preferences, facts entities, the rest just messages."""
    if any(map(guard.is_standing, split(text))):
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
    return " ".join([text, *(claim.text for sentence in read(text) for claim in sentence.claims)])


def neighbours(index: Index, text: str) -> frozenset[int]:
    """Row numbers of the current memories that share the most, and the rarest, words with a text. Hold the index's lock."""
    found = [index.places(term) for term in list(dict.fromkeys(terms(text)))[:_MOST_TERMS]]
    holding = np.array([len(places) for places in found], np.intp)
    if not holding.any():
        return frozenset()
    rarity = np.log1p(index.size / np.maximum(holding, 1))
    shared = np.bincount(np.concatenate(found), np.repeat(rarity, holding), minlength=index.size)
    shared[index.column("valid_to") != NEVER] = 0
    most = min(_NEIGHBOURS, index.size)
    best = np.argpartition(shared, -most)[-most:]
    return frozenset(index.column("seqs")[best[shared[best] > 0]].tolist())


def unread_slots(db: sqlite3.Connection, scope: Scope, version: int) -> dict[int, frozenset[str]]:
    """The claims of the rows up to `version` that were never read for them."""
    rows = db.execute(SQL["unread"], key_of(scope) | {"version": version}).fetchall()
    return {seq: lifecycle.keys(content) for seq, content in rows}


# -- writing ------------------------------------------------------------------------------------------------------------


def take(change: Change, memories: Sequence[NewMemory], prepared: Prepared, *, pending: bool = False) -> list[Stored]:
    """Write what is new, and end what it takes the place of; messages already taken are passed over. What was written, or
    refreshed. `pending`: a model is to draw facts from what lasts."""
    writer = Writer(change, prepared)
    taken: dict[tuple[str, int], bool] = {}  # a message and what it quotes may be two memories
    stored: list[Stored] = []
    for new in memories:
        message = new.sources[0].message_id, new.sources[0].position
        if message not in taken:
            taken[message] = change.is_taken(new.sources[0])
        if not taken[message]:
            stored.append(writer.write(new, pending=pending and is_claiming(new)))
    return stored


class Writer:
    """Writes memories in one change. Only what the user said, or what was drawn from it, ends or joins others."""

    def __init__(self, change: Change, prepared: Prepared) -> None:
        self._change = change
        self._prepared = prepared
        self._newer: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        """Terms and slots of the rows that are newer than the preparation."""
        if prepared.slots:
            self._add_slots(prepared.slots)
            change.db.execute(SQL["read_to"], change.key | {"version": prepared.version})
        for seq, content in change.db.execute(SQL["changed"], change.key | {"version": prepared.version}).fetchall():
            self._note(seq, content)

    def write(self, new: NewMemory, *, pending: bool = False) -> Stored:
        """Write one memory, or join it to the one that says the same."""
        change = self._change
        if not is_claiming(new):
            return change.draft(new)
        new, corrected = _completed(change, new)
        olds = self._candidates(new)
        for old in olds:
            if old.content != new.content and lifecycle.says_the_same(old.content, new.content):
                change.merge(old.id, new.said_at, new.sources)
                ids = json.dumps([old.id])
                ((seq,),) = change.db.execute(store.SQL["seqs_by_id"], change.key | {"ids": ids}).fetchall()
                return Stored(seq, old.id, fresh=False)
        stored = change.draft(new)
        if pending and stored.fresh:
            change.db.execute(SQL["set_pending"], change.key | {"seq": stored.seq, "pending": 1})
        said = Statement(new.content, new.speaker, moment(new.said_at))
        others = [old for old in olds if old.id != stored.id]
        over = {others[place].id: those for place, those in lifecycle.judge(said, list(map(_of, others))).items()}
        for old, those in corrected:
            over[old.id] = over.get(old.id, frozenset()) | those
        for old in {old.id: old for old in (*others, *(old for old, _ in corrected))}.values():
            if old.id in over:
                self._end(old, over[old.id], stored, new.said_at)
        if stored.fresh:
            _end_if_late(change, stored, said, others)
        self._note(stored.seq, new.content)
        return stored

    def _candidates(self, new: NewMemory) -> list[MemoryRecord]:
        """The current memories of this speaker that a new one may join or end: by its words, and by what it is about."""
        worded, keys = wording(new.content), lifecycle.keys(new.content)
        words = frozenset(terms(worded))
        seqs = set(self._prepared.neighbours.get(worded, ()))
        seqs.update(seq for seq, (theirs, about) in self._newer.items() if theirs & words or about & keys)
        if keys:
            values = self._change.key | {"slots": json.dumps(sorted(keys))}
            seqs.update(seq for (seq,) in self._change.db.execute(SQL["by_slots"], values))
        found = by_seq(self._change.db, self._change.scope, sorted(seqs)).values()
        return [
            old
            for old in found
            if old.valid_to is None
            and old.quarantined is None
            and old.speaker == new.speaker
            and old.role != "assistant"
        ]

    def _note(self, seq: int, content: str) -> None:
        """Remember what was written, so that the next of this change can meet it."""
        keys = lifecycle.keys(content)
        self._newer[seq] = frozenset(terms(wording(content))), keys
        self._add_slots({seq: keys})

    def _add_slots(self, slots: Mapping[int, frozenset[str]]) -> None:
        rows = [self._change.key | {"slot": name, "seq": seq} for seq, names in slots.items() for name in names]
        if rows:
            self._change.db.executemany(SQL["add_slot"], rows)

    def _end(self, old: MemoryRecord, sentences: frozenset[int], by: Stored, at: int) -> None:
        """End a memory; what else its message said is kept, from now on, by itself."""
        if not self._change.supersede(old.id, by.id, at):
            return
        if rest := lifecycle.remainder(old.content, sentences):
            said_at = microseconds(old.created_at)
            kept = NewMemory(
                role=old.role,
                speaker=old.speaker,
                content=rest,
                session_id=old.session_id,
                said_at=said_at,
                sources=tuple(Source(source, said_at) for source in old.sources),
                kind=kind_of(rest),
                valid_from=at,
            )
            self._note(self._change.draft(kept).seq, rest)


def _end_if_late(change: Change, stored: Stored, said: Statement, others: Sequence[MemoryRecord]) -> None:
    """What was said before a statement that contradicts it, and arrives after it, is history when it comes."""
    later = sorted((old for old in others if old.valid_from > said.said_at), key=lambda old: old.valid_from)
    for old in later:
        over = lifecycle.judge(_of(old), [said])
        if over and not lifecycle.remainder(said.text, over[0]):
            change.supersede(stored.id, old.id, microseconds(old.valid_from))
            return


def _completed(change: Change, new: NewMemory) -> tuple[NewMemory, list[tuple[MemoryRecord, frozenset[int]]]]:
    """A correction without a subject ("actually, it's on Thursday") with the sentence it corrects, and what that ends."""
    if not any(sentence.instead for sentence in read(new.content)):
        return new, []
    rows = change.db.execute(SQL["latest_said"], change.key | {"session_id": new.session_id}).fetchall()
    for old in by_seq(change.db, change.scope, [seq for (seq,) in rows]).values():
        if old.speaker == new.speaker and (found := lifecycle.completed(new.content, old.content)):
            text = f"{new.content} ({found[0]})"
            kind = kind_of(found[0])
            without = dataclasses.replace(new, content=text, kind=kind, embedder=None, dimensions=None, vector=None)
            return dataclasses.replace(without, tokens=None), [(old, found[1])]
    return new, []


def _of(old: MemoryRecord) -> Statement:
    return Statement(old.content, old.speaker, old.valid_from)


# -- what a model drew --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """Messages of one session that a model is to work on, by row number, with what is known already around them."""

    life: int
    records: Mapping[int, MemoryRecord]
    known: tuple[str, ...] = ()
    summary: MemoryRecord | None = None


def pending_sessions(db: sqlite3.Connection, space: str) -> list[tuple[Scope, str]]:
    """The sessions of a space in which messages wait."""
    rows = db.execute(SQL["pending_scopes"], {"space": space}).fetchall()
    return [(Scope(tenant, space, owner, owner_id), session) for tenant, owner, owner_id, session in rows]


def waiting(db: sqlite3.Connection, scope: Scope, session_id: str, most: int) -> Waiting:
    """The oldest `most` messages of a session that wait."""
    key = key_of(scope) | {"session_id": session_id, "most": most}
    records = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["pending"], key)])
    summaries = by_seq(db, scope, [seq for (seq,) in db.execute(SQL["summary_of"], key)])
    return Waiting(store.state(db, scope).life, records, summary=next(iter(summaries.values()), None))


def drawn_from(records: Sequence[MemoryRecord], drawn: Sequence[Drawn], redact: guard.Redaction) -> list[NewMemory]:
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
            quarantined=guard.orders(one.text, "assistant"),
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
        _summarise(change, done, summary)
    kept_until = microseconds(datetime.now(UTC)) + RECENT // timedelta(microseconds=1)
    for seq in done.records:
        ends = None if seq in stored else kept_until
        change.db.execute(SQL["settled"], change.key | {"seq": seq, "expires_at": ends, "version": change.version})
    return True


def give_up(change: Change, done: Waiting) -> None:
    """No model helps: the messages stay what they are, for good."""
    for seq in done.records:
        change.db.execute(SQL["settled"], change.key | {"seq": seq, "expires_at": None, "version": change.version})


def _summarise(change: Change, done: Waiting, summary: str) -> None:
    records = list(done.records.values())
    at = max(microseconds(record.valid_from) for record in records)
    earlier = done.summary.sources if done.summary is not None else ()
    sources = (*(Source(source, at) for source in earlier), *_sources(records))
    stored = change.draft(NewMemory("system", "", summary, records[0].session_id, at, sources, kind=MemoryKind.SUMMARY))
    if done.summary is not None and stored.id != done.summary.id:
        change.supersede(done.summary.id, stored.id, at)


def _sources(records: Sequence[MemoryRecord]) -> Iterator[Source]:
    for record in records:
        for message_id in record.sources:
            yield Source(message_id, microseconds(record.created_at))
