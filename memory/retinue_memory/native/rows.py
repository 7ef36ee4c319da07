"""The rows of the built-in memory. Every statement names the whole scope.

Reading: functions of a connection and a scope. Writing: a `Change`, created inside one write of the database. Times in rows are
microseconds since the epoch, UTC.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from retinue_memory.clock import from_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import named_queries
from retinue_memory.ids import new_hex_id
from retinue_memory.memory import MemoryKind, MemoryRecord, Scope
from retinue_memory.text import normalized

_FOLDER = files("retinue_memory.native")
SQL = named_queries(_FOLDER.joinpath("rows.sql").read_text(encoding="utf-8"))
_KINDS = {str(kind): kind for kind in MemoryKind}


class Erased(Exception):
    """The scope was erased after the write started; nothing of it may be written."""


def migrate(database: Database) -> None:
    """Create or upgrade the tables. Blocks. Raises StoreError."""
    database.migrate("memory", _FOLDER)


def content_hash(role: str, speaker: str, content: str, *, quarantined: bool = False) -> bytes:
    """Equal for texts that differ in white space and Unicode composition only. Quarantined texts have other hashes."""
    text = normalized(content)
    parts = (role, speaker, text, "quarantined") if quarantined else (role, speaker, text)
    return hashlib.sha256("\0".join(parts).encode()).digest()


def random_hash() -> bytes:
    """A content hash that no text has, for a memory that is not current: the same words may be stored again."""
    return secrets.token_bytes(32)


@dataclass(frozen=True, slots=True)
class Source:
    """A message that a memory is derived from."""

    message_id: str
    said_at: int
    turn_id: str | None = None
    """Set if the memory is this message word for word, and the caller named the turn."""
    position: int = 0
    """The message's position in its turn."""


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A memory to be stored."""

    role: str
    """"user" or "assistant" for a message word for word, "system" for what is derived from messages."""
    speaker: str
    content: str
    session_id: str
    said_at: int
    sources: tuple[Source, ...] = ()
    embedder: str | None = None
    """The model of `vector` and `tokens`; None: it has none yet."""
    dimensions: int | None = None
    vector: bytes | None = None
    """float32, little-endian, L2-normalised."""
    tokens: bytes | None = None
    """Token vectors, int8; None if the embedder returns none."""
    kind: str = MemoryKind.RECENT_MESSAGE
    valid_from: int | None = None
    """When it started to hold; None: when it was said."""
    expires_at: int | None = None
    quarantined: str | None = None
    """Why it is kept out of every prompt; None: it is not."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The row of a memory that was stored. `is_new` is False if a row with the same words was refreshed."""

    seq: int
    id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class State:
    """The state of a scope, see `memory_scopes`; all 0 if nothing was ever written or everything was erased."""

    version: int = 0
    epoch: int = 0
    generation: int = 0
    slots_version: int = 0
    """The version up to which slots are stored."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """The columns of a memory that an index holds."""

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


def changed_since(db: Connection, scope: Scope, version: int, limit: int = -1) -> list[IndexRow]:
    """The rows written or changed after `version`, in the order of their insertion: the first `limit`, all if it is negative."""
    values = key_of(scope) | {"version": version, "limit": limit}
    return [IndexRow(*row) for row in db.execute(SQL["changed_since"], values)]


def by_seq(db: Connection, scope: Scope, seqs: Iterable[int]) -> dict[int, MemoryRecord]:
    """The memories of the scope with these row numbers."""
    key = key_of(scope)
    found: dict[int, MemoryRecord] = {}
    several: set[int] = set()
    for row in db.execute(SQL["by_seq"], key | {"seqs": json_list(seqs)}).fetchall():
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
    """The memories of the scope with these ids."""
    found = db.execute(SQL["seqs_by_id"], key_of(scope) | {"ids": json.dumps(list(ids))}).fetchall()
    return {record.id: record for record in by_seq(db, scope, [seq for (seq,) in found]).values()}


def json_list(numbers: Iterable[int]) -> str:
    """Numbers as a JSON array, for `json_each`."""
    return f"[{','.join(map(str, numbers))}]"


def key_of(scope: Scope) -> dict[str, object]:
    return {"tenant": scope.tenant, "space": scope.space, "owner": scope.owner, "owner_id": scope.id}


def _record(row: Sequence[Any]) -> MemoryRecord:
    """The record of a row of `by_seq`, which has one of its sources."""
    _, id, kind, content, role, speaker, session_id, at, since, until, by, pinned, expires_at, why, revision, source = (
        row
    )
    created_at = from_us(at)
    return MemoryRecord(
        id=id,
        kind=_KINDS[kind],
        content=content,
        role=role,
        speaker=speaker,
        session_id=session_id,
        created_at=created_at,
        valid_from=created_at if since is None else from_us(since),
        valid_to=None if until is None else from_us(until),
        superseded_by=by,
        sources=() if source is None else (source,),
        pinned=bool(pinned),
        expires_at=None if expires_at is None else from_us(expires_at),
        quarantined=why,
        version=revision,
    )


# -- writing ------------------------------------------------------------------------------------------------------------


def start_generation(db: Connection, scope: Scope) -> int:
    """The generation of the scope; starts one if the scope has none. Part of a write, before the write of a `Change`."""
    db.execute(SQL["start_generation"], key_of(scope) | {"generation": secrets.randbits(61) + 1})
    return state(db, scope).generation


class Change:
    """One write to one scope: `await database.write(lambda db: Change(db, scope, generation).store(memory))`.

    All that it changes gets one new version of the scope, by which indexes catch up. Raises Erased if the scope is not in
    this generation any more (see `start_generation` and `State.generation`): it was erased.
    """

    def __init__(self, db: Connection, scope: Scope, generation: int) -> None:
        self.before = state(db, scope)
        if self.before.generation != generation:
            raise Erased
        self.db = db
        self.scope = scope
        self.key = key_of(scope)
        self.lacks_vectors = False
        """Whether a memory was stored without a vector."""
        self.rows_changed = 0
        self._version: int | None = None
        self._slots_version = self.before.slots_version

    @property
    def version(self) -> int:
        """The scope's new version; saved when it is first asked for."""
        if self._version is None:
            self._version = self.before.version + 1
            self._save_version()
        return self._version

    def mark_slots_stored(self) -> None:
        """Record that the slots of all rows up to the new version are stored."""
        has_version, self._slots_version = self.changed, self.before.version + 1
        if has_version:
            self._save_version()

    def _save_version(self) -> None:
        values = {"version": self._version, "slots_version": self._slots_version}
        self.db.execute(SQL["next_version"], self.key | values)

    @property
    def changed(self) -> bool:
        """Whether there is a new version."""
        return self._version is not None

    def start_epoch(self) -> None:
        """Make every index of the scope rebuild itself: rows or texts were deleted."""
        _ = self.version  # an index at the current version does not look at the epoch
        self.db.execute(SQL["next_epoch"], self.key)

    def stored_before(self, messages: Sequence[Source]) -> list[bool]:
        """Which of these messages are stored already, by their id or their position in their turn, or occur twice."""
        asked = json.dumps([(message.message_id, message.turn_id, message.position) for message in messages])
        found = {
            number for (number,) in self.db.execute(SQL["stored_before"], self.key | {"messages": asked}).fetchall()
        }
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

    def store(self, new: NewMemory) -> Stored:
        """Insert a memory with its sources, or refresh the current one with the same role, speaker and words."""
        id = new_hex_id()
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
        is_new = stored == id
        self.rows_changed += 1
        self.lacks_vectors = self.lacks_vectors or (is_new and new.vector is None)
        self._add_sources(seq, new.sources)
        return Stored(seq, stored, is_new)

    def merge(self, id: str, said_at: int, sources: Iterable[Source]) -> bool:
        """Add the sources of a memory that says the same in other words. Returns False if this one is not current."""
        values = self.key | {"id": id, "said_at": said_at, "version": self.version}
        found = self.db.execute(SQL["refresh"], values).fetchall()
        for (seq,) in found:
            self._add_sources(seq, sources)
        return bool(found)

    def supersede(self, id: str, by: str | None, at: int) -> bool:
        """End a current memory at `at`, but not before it started to hold; `by` replaces it (None: nothing does).

        Returns False if it is not current or not of this scope.
        """
        values = self.key | {"id": id, "by": by, "at": at, "content_hash": random_hash()}
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
            self.rows_changed += self.db.execute(SQL["insert_source"], self.key | values).rowcount
