"""From messages to rows: redact, screen, classify, merge duplicates, supersede what is contradicted.

`new_memories` turns messages into memories, without the database. `prepare` looks up, on a reader, what they may meet. `store`
writes them in one transaction, which also looks at what was written since, so that of two writers who say the same at the
same time one comes second.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from retinue_memory.clock import DAY_US, from_us, now_us, to_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import named_queries
from retinue_memory.memory import InvocationContext, MemoryKind, Scope
from retinue_memory.messages import NOTE, Message
from retinue_memory.text import storable

from . import injection, lasting, lifecycle
from .index import NEVER, Index
from .lifecycle import Statement
from .reading import read, split
from .redaction import Redaction
from .rows import (
    Change,
    NewMemory,
    Source,
    Stored,
    by_seq,
    json_list,
    key_of,
)
from .words import terms

SQL = named_queries(files("retinue_memory.native").joinpath("ingest.sql").read_text(encoding="utf-8"))
_PASSING_US = 30 * DAY_US  # how long small talk and questions are kept
_MAX_NEIGHBOURS = 8
_MAX_QUERY_TERMS = 24
_MAX_CHANGED_ROWS = 200
_MAX_QUARANTINED_CHARS = 4_000
_FACTS = frozenset(
    {"home", "employer", "trade", "couple", "diet", "age", "weight", "name", "call", "born", "is", "have", "allergy"}
)


# -- from messages to memories ------------------------------------------------------------------------------------------


def new_memories(messages: Sequence[Message], ctx: InvocationContext, redact: Redaction) -> list[NewMemory]:
    """The memories of a turn's messages: what the user and the assistant said, and quarantined results of tools.

    Recalled memories, and messages that carry them, are left out. `metadata["origin"]` of a message names where its text
    comes from if not from its role: "file", "page", "agent", ...
    """
    return [
        memory
        for position, message in enumerate(messages)
        if message.role in ("user", "assistant", "tool")
        and message.content.strip()
        and not {"memory", "memories"} & set(message.metadata)
        for memory in _memories_of(message, position, ctx, redact)
    ]


def _memories_of(message: Message, position: int, ctx: InvocationContext, redact: Redaction) -> Iterator[NewMemory]:
    said_at = to_us(message.created_at)
    turn_id = None if ctx.turn_id is None else storable(ctx.turn_id)
    source = Source(storable(message.id), said_at, turn_id, position)
    named = message.metadata.get("origin")
    origin = named if isinstance(named, str) and named else message.role
    screened = injection.screen(redact(storable(message.content)), origin)
    speaker, session_id = storable(message.name or ""), storable(ctx.session_id)
    if screened.reason is not None or message.role != "tool":
        role = message.role if message.role != "tool" else "system"
        text, (kind, expires_at) = screened.text, (MemoryKind.RECENT_MESSAGE, None)
        if screened.reason is not None:
            text = text[:_MAX_QUARANTINED_CHARS]
        else:
            kind, expires_at = _classify(role, text, said_at, origin)
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
    if screened.quoted:
        yield NewMemory(
            role="system",
            speaker=speaker,
            content=screened.quoted[:_MAX_QUARANTINED_CHARS],
            session_id=session_id,
            said_at=said_at,
            sources=(dataclasses.replace(source, turn_id=None),),
            quarantined=screened.quoted_reason,
        )


def _classify(role: str, text: str, said_at: int, origin: str) -> tuple[MemoryKind, int | None]:
    """The kind and the expiry: small talk expires soon, a text that names an end expires then, others never.

    A note is a fact even about likings and wishes: it must not become an instruction that comes with every recall.
    """
    if not lasting.is_lasting(role, text):
        return MemoryKind.RECENT_MESSAGE, passing_until(said_at)
    if origin not in (injection.OWN, NOTE):
        return MemoryKind.RECENT_MESSAGE, None
    end = lasting.end_of(text, from_us(said_at))
    kind = kind_of(text) if origin == injection.OWN else MemoryKind.ENTITY
    if end is None:
        return kind, None
    kind = MemoryKind.ENTITY if kind == MemoryKind.RECENT_MESSAGE else kind  # of messages, only passing ones expire
    return kind, to_us(end)


def passing_until(said_at: int = 0) -> int:
    """When a message expires that is kept for a while only."""
    return max(said_at, now_us()) + _PASSING_US


def kind_of(text: str) -> MemoryKind:
    """The kind of a user's own words: instructions and likings are preferences, facts entities, others just messages."""
    if any(map(injection.is_standing, split(text))):
        return MemoryKind.PREFERENCE
    slots = lifecycle.slots(text)
    if slots & {"like", "prefer"}:
        return MemoryKind.PREFERENCE
    return MemoryKind.ENTITY if slots & _FACTS else MemoryKind.RECENT_MESSAGE


# -- what they may meet -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a write has to look at, as of one version of the scope."""

    version: int = 0
    neighbours: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    """For each text (see `wording`), the row numbers of memories that share words with it."""
    slots: Mapping[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])
    """The slots of rows that were not stored before, by row number."""


def prepare(database: Database, scope: Scope, index: Index, memories: Sequence[NewMemory]) -> Prepared:
    """Look up what the memories may meet, in an index that is up to date. Blocks."""
    texts = [wording(memory.content) for memory in memories if makes_claims(memory)]
    if not texts:
        return Prepared()
    with index.lock:
        version, near = index.version, {text: neighbours(index, text) for text in texts}
        all_stored = index.slots_version >= version
    if all_stored:
        return Prepared(version, near)
    return Prepared(version, near, database.read_now(lambda db: missing_slots(db, scope, version)))


def makes_claims(new: NewMemory) -> bool:
    """Whether a memory can merge with or supersede others: a user's words, or what was derived from them, that last."""
    return new.role != "assistant" and new.quarantined is None and lasting.is_lasting("user", new.content)


def wording(text: str) -> str:
    """The text with the words of its claims: "I went vegan" also claims that "eat meat" is over."""
    return " ".join([text, *(claim.text for claim in lifecycle.claims(text))])


def neighbours(index: Index, text: str) -> frozenset[int]:
    """Row numbers of the current memories that share the most, and the rarest, words with a text. Hold the index's lock."""
    found = index.postings(list(dict.fromkeys(terms(text)))[:_MAX_QUERY_TERMS])
    if not len(found.places):
        return frozenset()
    rarity = np.log1p(index.size / np.maximum(found.holding, 1))
    shared = np.bincount(found.places, rarity.repeat(found.holding), minlength=index.size)
    shared *= index.column("valid_to") == NEVER
    most = min(_MAX_NEIGHBOURS, index.size)
    best = shared.argpartition(-most)[-most:]
    return frozenset(index.column("seqs")[best[shared[best] > 0]].tolist())


def missing_slots(db: Connection, scope: Scope, version: int) -> dict[int, frozenset[str]]:
    """The slots of the rows up to `version` that are not stored yet."""
    rows = db.execute(SQL["missing_slots"], key_of(scope) | {"version": version}).fetchall()
    return {seq: lifecycle.keys(content) for seq, content in rows}


# -- writing ------------------------------------------------------------------------------------------------------------


def store(change: Change, memories: Sequence[NewMemory], prepared: Prepared, *, pending: bool = False) -> list[Stored]:
    """Store memories, and end those that they supersede; messages that were stored before are skipped.

    `pending`: a model is to extract facts from those that make claims.
    """
    writer = Writer(change, prepared)
    messages: dict[tuple[str, int], Source] = {}  # a message and its quotation may be two memories
    for new in memories:
        messages.setdefault((new.sources[0].message_id, new.sources[0].position), new.sources[0])
    stored_before = dict(zip(messages, change.stored_before(list(messages.values())), strict=True))
    return [
        writer.write(new, pending=pending and makes_claims(new))
        for new in memories
        if not stored_before[new.sources[0].message_id, new.sources[0].position]
    ]


class Candidate(NamedTuple):
    """A current memory that a new one may merge with or supersede."""

    seq: int
    id: str
    role: str
    content: str
    session_id: str
    created_at: int
    valid_from: int

    def statement(self, speaker: str) -> Statement:
        return Statement(self.content, speaker, from_us(self.valid_from))


class Writer:
    """Writes memories in one change. Only what the user said, or was derived from it, merges with or supersedes others."""

    def __init__(self, change: Change, prepared: Prepared) -> None:
        self._change = change
        self._prepared = prepared
        self._caught_up = False
        self._newer: dict[int, str] = {}
        """Texts of the rows that are newer than `prepared`, by row number."""

    def write(self, new: NewMemory, *, pending: bool = False) -> Stored:
        """Store one memory, or merge it with the one that says the same."""
        change = self._change
        if not makes_claims(new):
            stored = change.store(new)
            if self._caught_up and new.role != "assistant" and new.quarantined is None:
                self.note(stored.seq, new.content)
            return stored
        if not self._caught_up:
            self._catch_up()
        new, corrected = _complete(change, new)
        candidates = self._candidates(new)
        for old in candidates:
            if old.content != new.content and lifecycle.says_the_same(old.content, new.content):
                change.merge(old.id, new.said_at, new.sources)
                return Stored(old.seq, old.id, is_new=False)
        stored = change.store(new)
        if pending and stored.is_new:
            change.db.execute(SQL["set_pending"], change.key | {"seq": stored.seq})
        if corrected or lifecycle.claims(new.content):
            self._supersede(new, stored, [old for old in candidates if old.id != stored.id], corrected)
        self.note(stored.seq, new.content)
        return stored

    def note(self, seq: int, content: str) -> None:
        """Remember what was written, for the next memory of this change, and its slots, for later changes."""
        self._newer[seq] = content
        self._add_slots({seq: lifecycle.keys(content)})

    def _catch_up(self) -> None:
        """Read what was written since `prepared`."""
        change, prepared = self._change, self._prepared
        self._caught_up = True
        self._add_slots(prepared.slots)
        if change.before.version == prepared.version and not change.changed:
            change.mark_slots_stored()
            return
        values = {"version": prepared.version, "limit": _MAX_CHANGED_ROWS}
        rows = change.db.execute(SQL["changed"], change.key | values).fetchall()
        for seq, content in rows:
            self.note(seq, content)
        if len(rows) < _MAX_CHANGED_ROWS:
            change.mark_slots_stored()

    def _candidates(self, new: NewMemory) -> list[Candidate]:
        """The current memories of this speaker that share words or a slot with the new one."""
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
        values = {"seqs": json_list(seqs), "slots": json.dumps(list(keys)) if keys else "[]", "speaker": new.speaker}
        rows = self._change.db.execute(SQL["candidates"], self._change.key | values).fetchall()
        return list(map(Candidate._make, rows))

    def _supersede(
        self, new: NewMemory, stored: Stored, others: list[Candidate], corrected: list[tuple[Candidate, frozenset[int]]]
    ) -> None:
        """End the memories that the new one contradicts; or the new one itself, if it arrives late."""
        said = Statement(new.content, new.speaker, from_us(new.said_at))
        statements = [old.statement(new.speaker) for old in others]
        over = {others[place].id: sentences for place, sentences in lifecycle.judge(said, statements).items()}
        for old, sentences in corrected:
            over[old.id] = over.get(old.id, frozenset()) | sentences
        for old in {old.id: old for old in (*others, *(old for old, _ in corrected))}.values():
            if old.id in over:
                self._end(old, over[old.id], stored, new)
        if stored.is_new:
            _end_if_late(self._change, stored, said, others)

    def _end(self, old: Candidate, sentences: frozenset[int], by: Stored, new: NewMemory) -> None:
        """End a memory; the sentences of its message that still hold become a memory of their own."""
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
            self.note(change.store(kept).seq, rest)

    def _add_slots(self, slots: Mapping[int, frozenset[str]]) -> None:
        rows = [(seq, name) for seq, names in slots.items() for name in names]
        if rows:
            self._change.db.execute(SQL["add_slots"], self._change.key | {"slots": json.dumps(rows)})


def _end_if_late(change: Change, stored: Stored, said: Statement, others: Sequence[Candidate]) -> None:
    """End a memory that arrives after a later statement that contradicts it: it is history already."""
    later = sorted((old for old in others if from_us(old.valid_from) > said.said_at), key=lambda old: old.valid_from)
    for old in later:
        over = lifecycle.judge(old.statement(said.speaker), [said])
        if over and not lifecycle.remainder(said.text, over[0]):
            change.supersede(stored.id, old.id, old.valid_from)
            return


def _complete(change: Change, new: NewMemory) -> tuple[NewMemory, list[tuple[Candidate, frozenset[int]]]]:
    """Add the corrected sentence to a correction without a subject ("actually, it's on Thursday"), and return what it ends."""
    if not any(sentence.instead for sentence in read(new.content)):
        return new, []
    rows = change.db.execute(SQL["latest_said"], change.key | {"session_id": new.session_id}).fetchall()
    for *values, speaker in rows:
        old = Candidate(*values)
        if speaker == new.speaker and (found := lifecycle.completed(new.content, old.content)):
            text = f"{new.content} ({found[0]})"
            kind = kind_of(found[0])
            without = dataclasses.replace(new, content=text, kind=kind, embedder=None, dimensions=None, vector=None)
            return dataclasses.replace(without, tokens=None), [(old, found[1])]
    return new, []
