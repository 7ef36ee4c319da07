"""The rows of the built-in memory. Every statement carries the whole scope.

Reading: functions that take a connection and a scope. Writing: a `Change`, made inside one write of the database.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import named_queries
from retinue_memory.ids import new_id
from retinue_memory.memory import MemoryKind, MemoryRecord, Scope

_FOLDER = files("retinue_memory.native")
SQL = named_queries(_FOLDER.joinpath("rows.sql").read_text(encoding="utf-8"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KINDS = {str(kind): kind for kind in MemoryKind}


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
    slots_version: int = 0
    """Up to which version the rows were read for what they claim."""


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


def state(db: Connection, scope: Scope) -> State:
    row = db.execute(SQL["state"], key_of(scope)).fetchone()
    return State(*row) if row is not None else State()


def changed_since(db: Connection, scope: Scope, version: int, most: int = -1) -> list[IndexRow]:
    """The rows that were written or changed after `version`, in the order in which they were first written: the first `most`
    of them, all where it is negative."""
    values = key_of(scope) | {"version": version, "most": most}
    return [IndexRow(*row) for row in db.execute(SQL["changed_since"], values)]


def by_seq(db: Connection, scope: Scope, seqs: Iterable[int]) -> dict[int, MemoryRecord]:
    """The memories of this scope among `seqs`."""
    key = key_of(scope)
    found: dict[int, MemoryRecord] = {}
    several: set[int] = set()
    for row in db.execute(SQL["by_seq"], key | {"seqs": listed(seqs)}).fetchall():
        seq = row[0]
        if seq in found:
            several.add(seq)
        else:
            found[seq] = _record(row)
    for seq in several:
        ids = db.execute(SQL["sources_in_order"], key | {"seq": seq}).fetchall()
        found[seq] = replace(found[seq], sources=tuple(id for (id,) in ids))
    return found


def by_id(db: Connection, scope: Scope, ids: Iterable[str]) -> dict[str, MemoryRecord]:
    """The memories of this scope among `ids`."""
    found = db.execute(SQL["seqs_by_id"], key_of(scope) | {"ids": json.dumps(list(ids))}).fetchall()
    return {record.id: record for record in by_seq(db, scope, [seq for (seq,) in found]).values()}


def listed(numbers: Iterable[int]) -> str:
    """Numbers as a JSON list, for `json_each`."""
    return f"[{','.join(map(str, numbers))}]"


def key_of(scope: Scope) -> dict[str, object]:
    return {"tenant": scope.tenant, "space": scope.space, "owner": scope.owner, "owner_id": scope.id}


def _record(row: Sequence[Any]) -> MemoryRecord:
    """Of a row of `by_seq`, and so with one of its sources."""
    _, id, kind, content, role, speaker, session_id, at, since, until, by, pinned, expires_at, why, revision, source = (
        row
    )
    created_at = moment(at)
    return MemoryRecord(
        id=id,
        kind=_KINDS[kind],
        content=content,
        role=role,
        speaker=speaker,
        session_id=session_id,
        created_at=created_at,
        valid_from=created_at if since is None else moment(since),
        valid_to=None if until is None else moment(until),
        superseded_by=by,
        sources=() if source is None else (source,),
        pinned=bool(pinned),
        expires_at=None if expires_at is None else moment(expires_at),
        quarantined=why,
        version=revision,
    )


# -- writing ------------------------------------------------------------------------------------------------------------


def begin(db: Connection, scope: Scope) -> int:
    """The life of the scope, which begins here if it has none. A `write`, before what a `Change` will store is made."""
    db.execute(SQL["begin"], key_of(scope) | {"life": secrets.randbits(61) + 1})
    return state(db, scope).life


class Change:
    """One write to one scope: `await database.write(lambda db: Change(db, scope, life).add(memories))`.

    All that it changes carries one new version of the scope, by which indexes catch up. Raises Erased where the scope is
    not in the life in which the caller began (`begin`, or the `life` of `state`): an erasure wins.
    """

    def __init__(self, db: Connection, scope: Scope, life: int) -> None:
        self.before = state(db, scope)
        if self.before.life != life:
            raise Erased
        self.db = db
        self.scope = scope
        self.key = key_of(scope)
        self.bare = False
        """Whether a memory was stored without a vector."""
        self.touched = 0
        """How many rows were written so far."""
        self._version: int | None = None
        self._slots_version = self.before.slots_version

    @property
    def version(self) -> int:
        """The scope's new version, counted up when the first row is about to change."""
        if self._version is None:
            self._version = self.before.version + 1
            self._count_up()
        return self._version

    def slots_read(self) -> None:
        """Note that whatever is there up to the new version is being read for what it claims."""
        counted, self._slots_version = self.changed, self.before.version + 1
        if counted:
            self._count_up()

    def _count_up(self) -> None:
        values = {"version": self._version, "slots_version": self._slots_version}
        self.db.execute(SQL["next_version"], self.key | values)

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
        taken = self.taken([memory.sources[0] for memory in memories])
        return [self.draft(memory) for memory, before in zip(memories, taken, strict=True) if not before]

    def taken(self, messages: Sequence[Source]) -> list[bool]:
        """Which of these messages were taken before, by their id or their place in their turn, or come twice."""
        asked = json.dumps([(message.message_id, message.turn_id, message.position) for message in messages])
        found = {number for (number,) in self.db.execute(SQL["taken"], self.key | {"messages": asked}).fetchall()}
        ids: set[str] = set()
        places: set[tuple[str, int]] = set()
        for number, message in enumerate(messages):
            place = None if message.turn_id is None else (message.turn_id, message.position)
            if number in found or message.message_id in ids or place in places:
                found.add(number)
                continue
            ids.add(message.message_id)
            if place is not None:
                places.add(place)
        return [number in found for number in range(len(messages))]

    def draft(self, new: NewMemory) -> Stored:
        """Store a memory, with its sources, or refresh the current one of the same role, speaker and words."""
        id = new_id().replace("-", "")
        values = self.key | {
            "id": id,
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
            "valid_to": None,
            "superseded_by": None,
            "pinned": 0,
            "expires_at": new.expires_at,
            "quarantined": new.quarantined,
            "revision": 1,
            "embedder": new.embedder,
            "dimensions": new.dimensions,
            "vector": new.vector,
            "tokens": new.tokens,
        }
        ((seq, stored),) = self.db.execute(SQL["insert_memory"], values).fetchall()
        fresh = stored == id
        self.touched += 1
        self.bare = self.bare or (fresh and new.vector is None)
        self._add_sources(seq, new.sources)
        return Stored(seq, stored, fresh)

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
            values = {
                "message_id": source.message_id,
                "memory_seq": seq,
                "turn_id": source.turn_id,
                "position": source.position,
                "said_at": source.said_at,
            }
            self.touched += self.db.execute(SQL["insert_source"], self.key | values).rowcount
