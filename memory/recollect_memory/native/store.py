"""The rows of the built-in memory. Every statement carries the whole scope.

Reading: functions that take a connection and a scope. Writing: a `Change`, made inside one write of the database.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from recollect_memory.contract import MemoryKind, MemoryRecord, Scope
from recollect_memory.sqlite import Database, named_queries

_FOLDER = files("recollect_memory.native")
SQL = named_queries(_FOLDER.joinpath("queries.sql").read_text(encoding="utf-8"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Erased(Exception):
    """The scope was erased since the write began: nothing of it may be written any more."""


def migrate(database: Database) -> None:
    """Create or upgrade the tables. Raises StoreError; blocks."""
    database.migrate("memory", _FOLDER)


def storable(text: str) -> str:
    """The text as every database can hold it: NUL and halves of surrogate pairs become U+FFFD."""
    if "\0" not in text and text.isascii():
        return text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def microseconds(moment: datetime) -> int:
    """Since the epoch; a time without zone is taken as UTC."""
    return ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The inverse of `microseconds`, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def content_hash(role: str, speaker: str, content: str, *, quarantined: bool = False) -> bytes:
    """The same for what is the same but for white space and Unicode composition; what is quarantined is apart."""
    text = " ".join(unicodedata.normalize("NFC", content).split())
    parts = (role, speaker, text, "quarantined") if quarantined else (role, speaker, text)
    return hashlib.sha256("\0".join(parts).encode()).digest()


def no_words() -> bytes:
    """A content hash that no words have: for what is not current, which may be said anew."""
    return secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Source:
    """A message that a memory is made from. `turn_id` and `position` (its place in the turn) where it *is* the memory."""

    message_id: str
    said_at: int
    turn_id: str | None = None
    position: int = 0


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory on its way into the store. Times in microseconds.

    `role` is "user" or "assistant" for a message word for word, "system" for what was drafted from messages. `vector` is
    float32 bytes, made by the model that `embedder` names; `tokens` int8 bytes of its single words, where it gives them.
    """

    role: str
    speaker: str
    content: str
    session_id: str
    said_at: int
    sources: tuple[Source, ...] = ()
    embedder: str | None = None
    dimensions: int | None = None
    vector: bytes | None = None
    tokens: bytes | None = None
    kind: str = MemoryKind.RECENT_MESSAGE
    valid_from: int | None = None
    """When it began to hold; None: when it was said."""
    expires_at: int | None = None
    quarantined: str | None = None
    """Why it is kept from every prompt; None: it is not."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a new memory: `fresh` is False where its words were there already, and were refreshed."""

    seq: int
    id: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class State:
    """Of a scope; all 0 where nothing was ever written, or everything erased. See `memory_scopes`."""

    version: int = 0
    epoch: int = 0
    life: int = 0


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What an index needs of a memory. Times in microseconds."""

    seq: int
    version: int
    role: str
    speaker: str
    content: str
    session_id: str
    created_at: int
    said_at: int
    embedder: str | None
    vector: bytes | None
    kind: str = MemoryKind.RECENT_MESSAGE
    valid_from: int | None = None
    valid_to: int | None = None
    expires_at: int | None = None
    pinned: int = 0
    quarantined: int = 0
    tokens: bytes | None = None


# -- reading ------------------------------------------------------------------------------------------------------------


def state(db: sqlite3.Connection, scope: Scope) -> State:
    row = db.execute(SQL["state"], key_of(scope)).fetchone()
    return State(*row) if row is not None else State()


def changed_since(db: sqlite3.Connection, scope: Scope, version: int, most: int = -1) -> list[IndexRow]:
    """The rows that were written or changed after `version`, in the order in which they were first written: the first `most`
    of them, all where it is negative."""
    values = key_of(scope) | {"version": version, "most": most}
    return [IndexRow(*row) for row in db.execute(SQL["changed_since"], values)]


def by_seq(db: sqlite3.Connection, scope: Scope, seqs: Iterable[int]) -> dict[int, MemoryRecord]:
    """The memories of this scope among `seqs`."""
    values = key_of(scope) | {"seqs": json.dumps(list(seqs))}
    sources: dict[int, list[str]] = {}
    for seq, message_id in db.execute(SQL["sources_by_seq"], values):
        sources.setdefault(seq, []).append(message_id)
    return {row[0]: _record(row, tuple(sources.get(row[0], ()))) for row in db.execute(SQL["by_seq"], values)}


def by_id(db: sqlite3.Connection, scope: Scope, ids: Iterable[str]) -> dict[str, MemoryRecord]:
    """The memories of this scope among `ids`."""
    found = db.execute(SQL["seqs_by_id"], key_of(scope) | {"ids": json.dumps(list(ids))}).fetchall()
    return {record.id: record for record in by_seq(db, scope, [seq for (seq,) in found]).values()}


def candidates(db: sqlite3.Connection, scope: Scope, most: int = 500) -> list[MemoryRecord]:
    """The `most` latest memories of the scope that are current and not quarantined, newest first: what may be superseded."""
    seqs = [seq for (seq,) in db.execute(SQL["latest_current"], key_of(scope) | {"most": most})]
    found = by_seq(db, scope, seqs)
    return [found[seq] for seq in seqs]


def key_of(scope: Scope) -> dict[str, object]:
    return {"tenant": scope.tenant, "space": scope.space, "owner": scope.owner, "owner_id": scope.id}


def _record(row: Sequence[Any], sources: tuple[str, ...]) -> MemoryRecord:
    (
        _,
        id_,
        kind,
        content,
        role,
        speaker,
        session_id,
        created_at,
        valid_from,
        valid_to,
        by,
        pinned,
        expires_at,
        why,
        rev,
    ) = row
    created = moment(created_at)
    return MemoryRecord(
        id=id_,
        kind=MemoryKind(kind),
        content=content,
        role=role,
        speaker=speaker,
        session_id=session_id,
        created_at=created,
        valid_from=created if valid_from is None else moment(valid_from),
        valid_to=None if valid_to is None else moment(valid_to),
        superseded_by=by,
        sources=sources,
        pinned=bool(pinned),
        expires_at=None if expires_at is None else moment(expires_at),
        quarantined=why,
        version=rev,
    )


# -- writing ------------------------------------------------------------------------------------------------------------


def begin(db: sqlite3.Connection, scope: Scope) -> int:
    """The life of the scope, which begins here if it has none. A `write`, before what a `Change` will store is made."""
    db.execute(SQL["begin"], key_of(scope) | {"life": secrets.randbits(61) + 1})
    return state(db, scope).life


class Change:
    """One write to one scope: `await database.write(lambda db: Change(db, scope, life).add(memories))`.

    All that it changes carries one new version of the scope, by which indexes catch up. Raises Erased where the scope is
    not in the life in which the caller began (`begin`, or the `life` of `state`): an erasure wins.
    """

    def __init__(self, db: sqlite3.Connection, scope: Scope, life: int) -> None:
        if state(db, scope).life != life:
            raise Erased
        self.db = db
        self.scope = scope
        self.key = key_of(scope)
        self.bare = False
        """Whether a memory was stored without a vector."""
        self._version: int | None = None

    @property
    def version(self) -> int:
        """The scope's new version, counted up when the first row is about to change."""
        if self._version is None:
            ((version,),) = self.db.execute(SQL["next_version"], self.key).fetchall()
            self._version = int(version)
        return self._version

    @property
    def changed(self) -> bool:
        """Whether there is a new version."""
        return self._version is not None

    def start_over(self) -> None:
        """Make every index of the scope start over: rows or texts were taken away."""
        _ = self.version  # an index that is at the version looks no further
        self.db.execute(SQL["next_epoch"], self.key)

    def add(self, memories: Sequence[NewMemory]) -> list[Stored]:
        """Take messages: each is its first source, and one that was taken before, by its id or its place in its turn, is
        passed over. What was taken; `fresh` is False for what only refreshed the same words."""
        return [self.draft(memory) for memory in memories if not self.is_taken(memory.sources[0])]

    def is_taken(self, source: Source) -> bool:
        return bool(self.db.execute(SQL["is_taken"], self.key | _values(source)).fetchone()[0])

    def draft(self, new: NewMemory) -> Stored:
        """Store a memory, with its sources, or refresh the current one of the same role, speaker and words."""
        values = self.key | {
            "version": self.version,
            "kind": new.kind,
            "role": new.role,
            "speaker": new.speaker,
            "content": new.content,
            "content_hash": content_hash(new.role, new.speaker, new.content, quarantined=new.quarantined is not None),
            "session_id": new.session_id,
            "created_at": new.said_at,
            "said_at": new.said_at,
            "valid_from": new.valid_from,
            "expires_at": new.expires_at,
            "quarantined": new.quarantined,
            "embedder": new.embedder,
            "dimensions": new.dimensions,
            "vector": new.vector,
            "tokens": new.tokens,
        }
        found = self.db.execute(SQL["refresh_duplicate"], values).fetchall()
        fresh = not found
        if fresh:
            self.bare = self.bare or new.vector is None
            values |= {"id": uuid.uuid4().hex, "valid_to": None, "superseded_by": None, "pinned": 0, "revision": 1}
            found = self.db.execute(SQL["insert_memory"], values).fetchall()
        ((seq, id_),) = found
        self._add_sources(seq, new.sources)
        return Stored(seq, id_, fresh)

    def merge(self, id: str, said_at: int, sources: Iterable[Source]) -> bool:
        """Take what says the same as a current memory, in other words, as said again. False: it is not current."""
        values = self.key | {"id": id, "said_at": said_at, "version": self.version}
        found = self.db.execute(SQL["refresh"], values).fetchall()
        for (seq,) in found:
            self._add_sources(seq, sources)
        return bool(found)

    def supersede(self, id: str, by: str | None, at: int) -> bool:
        """End a current memory at `at` (not before it began), because the memory `by` took its place (None: it just no
        longer holds). False: it is not current, or not of this scope."""
        values = self.key | {"id": id, "by": by, "at": at, "content_hash": no_words()}
        return bool(self.db.execute(SQL["supersede"], values | {"version": self.version}).fetchall())

    def _add_sources(self, seq: int, sources: Iterable[Source]) -> None:
        for source in sources:
            self.db.execute(SQL["insert_source"], self.key | _values(source) | {"memory_seq": seq})


def _values(source: Source) -> dict[str, object]:
    return {
        "message_id": source.message_id,
        "turn_id": source.turn_id,
        "position": source.position,
        "said_at": source.said_at,
    }
