"""The contract of mem0's three interfaces: cloud, self-hosted server, library.

A `Service` calls mem0 and stores nothing. `Mem0` turns one into a memory: it stores what mem0 has not confirmed, enforces the
owner of a memory, and retries what mem0 did not take.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from retinue_memory.errors import MemoryBackendError
from retinue_memory.memory import Scope

TURN = "retinue_turn"
"""The metadata key for the id of the turn that a memory was made of, a string."""
ABOUT = "retinue"
"""The metadata key for what else is known of a memory, a JSON object: see `records.about`."""
PAGE = 100
"""Memories per page."""

_PLAIN = re.compile(r"[^\s*]{1,128}")
_ENCODED = "retinue/"
_MAX_ID_CHARS = 200
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Entity:
    """The owner of memories in mem0's terms: exactly one entity id. `field` is mem0's name for it."""

    field: Literal["user_id", "run_id"]
    id: str

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a call to mem0 without an entity id would reach everyone's memories")

    @classmethod
    def of(cls, scope: Scope) -> Entity:
        """A user of the default tenant and space has their own id, so that what a team already has in mem0 is found.

        Other tenants and spaces, ids that mem0 trims or reads as a wildcard, and those that look like an encoded one, are
        encoded to an id that no other scope has.
        """
        entity: Literal["user_id", "run_id"] = "user_id" if scope.owner == "user" else "run_id"
        if (scope.tenant, scope.space) == ("", "default") and _is_plain(scope.id):
            return cls(entity, scope.id)
        encoded = _ENCODED + scope.key
        if len(encoded) > _MAX_ID_CHARS:
            encoded = f"{_ENCODED}sha256/{hashlib.sha256(scope.key.encode()).hexdigest()}"
        return cls(entity, encoded)

    @property
    def filter(self) -> dict[str, str]:
        """Keyword arguments, query parameters or filters of mem0: `{"user_id": "alice"}`."""
        return {self.field: self.id}


def _is_plain(id: str) -> bool:
    return (
        _PLAIN.fullmatch(id) is not None
        and id.isprintable()
        and unicodedata.is_normalized("NFC", id)
        and not id.startswith(_ENCODED)
    )


@dataclass(frozen=True, slots=True)
class Item:
    """One memory as mem0 returns it."""

    id: str
    text: str
    user_id: str | None = None
    run_id: str | None = None
    score: float = 0.0
    """0..1, higher is better; 0 if it was not searched for."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    categories: tuple[str, ...] = ()
    created_at: datetime = _EPOCH

    @classmethod
    def of(cls, value: Any) -> Item:
        """Parse the JSON of any of the three interfaces. Raises MemoryBackendError if it is no memory."""
        found = _mapping(value)
        if not isinstance(found.get("id"), str):
            raise MemoryBackendError("mem0 answered with something that is not a memory")
        score = found.get("score")
        return cls(
            id=found["id"],
            text=_text(found.get("memory")) or _text(found.get("text")),
            user_id=_text(found.get("user_id")) or None,
            run_id=_text(found.get("run_id")) or None,
            score=min(1.0, max(0.0, float(score))) if isinstance(score, int | float) and score == score else 0.0,
            metadata=_mapping(found.get("metadata")),
            categories=tuple(name for name in found.get("categories") or () if isinstance(name, str)),
            created_at=moment(found.get("created_at")),
        )

    def belongs_to(self, entity: Entity) -> bool:
        """Whether the entity owns it. A memory that names a session and a user belongs to the user."""
        if entity.field == "user_id":
            return self.user_id == entity.id
        return self.run_id == entity.id and self.user_id is None


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a memory's history: its text from then on, or None if it was deleted."""

    text: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Added:
    """mem0's answer to an `add`. `event` is to be asked about until it ends; None if the memory is searchable already."""

    event: str | None = None


Progress = Literal["pending", "done", "failed"]


class ServiceError(MemoryBackendError):
    """mem0 did not do what was asked. The message says what to do about it, and never holds a key.

    `applied`: whether it may have been done all the same. `retry`: whether the same request may succeed later, after at least
    `after` seconds.
    """

    def __init__(self, problem: str, *, applied: bool = False, retry: bool = True, after: float | None = None) -> None:
        super().__init__(problem)
        self.applied = applied
        self.retry = retry
        self.after = after


class Refused(ServiceError):
    """mem0 will never take this: it is too long, or malformed. (Not raised for a wrong key.)"""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, retry=False)


class TooMany(ServiceError):
    """mem0 has more memories of one user than it lists; it lists `listed`."""

    def __init__(self, problem: str, listed: int) -> None:
        super().__init__(problem, retry=False)
        self.listed = listed


class Service(ABC):
    """One mem0. All methods run on the event loop of `Mem0` and may be called concurrently; none may block it for long.

    They raise ServiceError and nothing else on purpose. Nothing is connected, and mem0 not imported, before the first call.
    """

    name: str
    """For messages and provenance: "mem0", "mem0-server", "mem0-local"."""
    elsewhere: str = "mem0's own backups and logs"
    """Where deleted memories may remain, since no call of mem0 deletes there; for receipts."""
    knows_sessions: bool = False
    """Whether `delete_all` of a session keeps the memories of users that were said in that session."""
    grace: float = 30.0
    """Seconds during which an `add` that ended without an answer may still appear, and is looked for."""

    @abstractmethod
    async def add(
        self,
        messages: Sequence[Mapping[str, str]],
        entity: Entity,
        *,
        metadata: Mapping[str, Any],
        infer: bool,
        at: datetime,
    ) -> Added:
        """Remember messages `{"role", "content"}` (and "name"), said at `at`. `infer`: have mem0's model extract facts; if
        False, keep each message as it is. Not repeated once it may have been applied."""

    @abstractmethod
    async def search(self, query: str, entity: Entity, *, top_k: int) -> list[Item]:
        """Best first."""

    @abstractmethod
    async def page(self, entity: Entity, number: int) -> list[Item]:
        """Page `number` (from 1) of the entity's memories in a stable order: `PAGE` memories, or fewer on the last. Raises
        TooMany."""

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item] | None:
        """Find what was made of a turn in which this was said; may return more. Returns None if all have to be searched."""
        return None

    @abstractmethod
    async def get(self, id: str) -> Item | None:
        """Get a memory of any owner: the caller checks. Returns None if there is none."""

    @abstractmethod
    async def change(self, id: str, *, text: str, metadata: Mapping[str, Any]) -> None:
        """Set a memory's text and metadata, both in full."""

    @abstractmethod
    async def delete(self, id: str) -> None:
        """Delete a memory for good, if it exists."""

    @abstractmethod
    async def delete_all(self, entity: Entity) -> None:
        """Delete all memories of the entity, and what mem0 keeps beside them."""

    @abstractmethod
    async def history(self, id: str) -> list[Change]:
        """The changes of a memory, oldest first, starting with its creation. Empty if mem0 keeps none."""

    async def progress(self, event: str) -> Progress:
        """The progress of an `Added.event`. Only called if `add` returned an event."""
        raise ServiceError(f"{self.name} has no event {event}", retry=False)

    async def remains(self, entity: Entity) -> Mapping[str, int]:
        """Count what mem0 holds of the entity beside its memories (history, messages), by table. Empty if that is nothing, or
        unknown."""
        return {}

    async def connect(self) -> None:
        """Do now what the first call would otherwise wait for."""

    async def scrub(self) -> str | None:
        """Remove what was deleted from own files. Returns None, or in words what may still hold it."""
        return None

    async def aclose(self) -> None:
        """Close all connections. Using it afterwards is an error."""


def moment(value: object) -> datetime:
    """Parse a time of mem0: ISO 8601, or seconds since the epoch. Returns the epoch if it is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return _EPOCH


def history_of(rows: Any) -> list[Change]:
    """Parse a history of mem0's library or server: an object per step, with `new_memory` and the times."""
    found: list[Mapping[str, Any]] = [row for row in rows or () if isinstance(row, Mapping)]
    return [
        Change(
            row["new_memory"] if isinstance(row.get("new_memory"), str) else None,
            moment(row.get("updated_at") or row.get("created_at")),
        )
        for row in found
    ]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
