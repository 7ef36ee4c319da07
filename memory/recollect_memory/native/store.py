"""The rows of the built-in memory. Every statement carries the whole scope; a write is one transaction."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import unicodedata
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files

from recollect_memory.contract import MemoryKind, Scope
from recollect_memory.sqlite import Database, named_queries

_FOLDER = files("recollect_memory.native")
_SQL = named_queries(_FOLDER.joinpath("queries.sql").read_text(encoding="utf-8"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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


def content_hash(role: str, speaker: str, content: str) -> bytes:
    """The same for what is the same but for white space and Unicode composition."""
    text = " ".join(unicodedata.normalize("NFC", content).split())
    return hashlib.sha256("\0".join((role, speaker, text)).encode()).digest()


@dataclass(frozen=True, slots=True)
class NewMemory:
    """A message on its way into the store. `vector` is float32 bytes, made by the model that `embedder` names."""

    message_id: str
    turn_id: str | None
    position: int
    role: str
    speaker: str
    content: str
    session_id: str
    said_at: int
    embedder: str | None = None
    dimensions: int | None = None
    vector: bytes | None = None
    kind: str = MemoryKind.RECENT_MESSAGE


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


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """What a hit tells of a memory. `sources` are message ids, oldest first."""

    sources: tuple[str, ...]
    seq: int
    id: str
    kind: str
    role: str
    speaker: str
    content: str
    created_at: int


def add(db: sqlite3.Connection, scope: Scope, memories: Sequence[NewMemory]) -> int:
    """Store what is new, refresh what was said before, pass over messages already taken; how many were not taken yet."""
    key = _key(scope)
    version: int | None = None
    taken = 0
    for new in memories:
        values = key | {
            "message_id": new.message_id,
            "turn_id": new.turn_id,
            "position": new.position,
            "said_at": new.said_at,
            "content_hash": content_hash(new.role, new.speaker, new.content),
        }
        if db.execute(_SQL["is_taken"], values).fetchone()[0]:
            continue
        if version is None:
            (version,) = db.execute(_SQL["next_version"], key).fetchall()[0]
        values["version"] = version
        found = db.execute(_SQL["refresh_duplicate"], values).fetchall()
        if not found:
            values |= {
                "id": uuid.uuid4().hex,
                "kind": new.kind,
                "role": new.role,
                "speaker": new.speaker,
                "content": new.content,
                "session_id": new.session_id,
                "embedder": new.embedder,
                "dimensions": new.dimensions,
                "vector": new.vector,
            }
            found = db.execute(_SQL["insert_memory"], values).fetchall()
        db.execute(_SQL["insert_source"], values | {"memory_seq": found[0][0]})
        taken += 1
    return taken


def state(db: sqlite3.Connection, scope: Scope) -> tuple[int, int]:
    """The scope's (version, epoch); (0, 0) where nothing was ever written."""
    row = db.execute(_SQL["state"], _key(scope)).fetchone()
    return (row[0], row[1]) if row is not None else (0, 0)


def changed_since(db: sqlite3.Connection, scope: Scope, version: int) -> list[IndexRow]:
    """The rows that were written or refreshed after `version`, in the order in which they were first written."""
    return [IndexRow(*row) for row in db.execute(_SQL["changed_since"], _key(scope) | {"version": version})]


def by_seq(db: sqlite3.Connection, scope: Scope, seqs: Iterable[int]) -> dict[int, StoredMemory]:
    """The memories of this scope among `seqs`."""
    values = _key(scope) | {"seqs": json.dumps(list(seqs))}
    sources: dict[int, list[str]] = {}
    for seq, message_id in db.execute(_SQL["sources_by_seq"], values):
        sources.setdefault(seq, []).append(message_id)
    rows = db.execute(_SQL["by_seq"], values)
    return {row[0]: StoredMemory(tuple(sources.get(row[0], ())), *row) for row in rows}


def _key(scope: Scope) -> dict[str, object]:
    return {"tenant": scope.tenant, "space": scope.space, "owner": scope.owner, "owner_id": scope.id}
