"""What mem0's three interfaces (cloud, self-hosted server, library) have in common, as one small contract.

A `Service` speaks for mem0 and keeps nothing itself. `Mem0` makes a memory of one: it keeps what mem0 has not confirmed,
enforces whose a memory is, and retries what was not taken.
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
"""The metadata key that holds the id of the turn a memory was made of, a string."""
ABOUT = "retinue"
"""The metadata key that holds what else is known of it, a JSON object: see `memory.about`."""
PAGE = 100
"""Memories to a page."""

_PLAIN = re.compile(r"[^\s*]{1,128}")
_ENCODED = "retinue/"
_LONGEST = 200
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose memories are meant, as mem0 says it: one entity id, never none. `field` is mem0's name of it."""

    field: Literal["user_id", "run_id"]
    id: str

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a call to mem0 without an entity id would reach everyone's memories")

    @classmethod
    def of(cls, scope: Scope) -> Entity:
        """A user of the default tenant and space under their own id, so that what a team has in mem0 already is found.

        Other tenants and spaces, ids that mem0 trims or reads as a wildcard, and those that look like an encoded one, under
        one that no other scope has.
        """
        entity: Literal["user_id", "run_id"] = "user_id" if scope.owner == "user" else "run_id"
        if (scope.tenant, scope.space) == ("", "default") and _is_plain(scope.id):
            return cls(entity, scope.id)
        encoded = _ENCODED + scope.key
        if len(encoded) > _LONGEST:
            encoded = f"{_ENCODED}sha256/{hashlib.sha256(scope.key.encode()).hexdigest()}"
        return cls(entity, encoded)

    @property
    def filter(self) -> dict[str, str]:
        """`{"user_id": "alice"}`: keyword arguments, query parameters or filters of mem0."""
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
    """0..1, higher is better; 0 where it was not searched for."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    categories: tuple[str, ...] = ()
    created_at: datetime = _EPOCH

    @classmethod
    def of(cls, value: Any) -> Item:
        """From the JSON of any of the three. Raises MemoryBackendError for what is no memory."""
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
        """Whether it is this entity's. A session's is nobody's: one that names a user too belongs to the user."""
        if entity.field == "user_id":
            return self.user_id == entity.id
        return self.run_id == entity.id and self.user_id is None


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a memory's history: what it said from then on; None: it was deleted."""

    text: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Added:
    """What mem0 said to an `add`. `event` is to be asked about until it has ended; None: it is searchable already."""

    event: str | None = None


Progress = Literal["pending", "done", "failed"]


class ServiceError(MemoryBackendError):
    """mem0 did not do what was asked; the message says what to do about it, and never holds a key.

    `applied`: whether it may have been done all the same. False: it was not. `retry`: whether the same request may succeed
    later; `after` is in how many seconds at the earliest.
    """

    def __init__(self, problem: str, *, applied: bool = False, retry: bool = True, after: float | None = None) -> None:
        super().__init__(problem)
        self.applied = applied
        self.retry = retry
        self.after = after


class Refused(ServiceError):
    """mem0 will never take this: it is too long, or malformed. (A wrong key is not the fault of what was to be remembered.)"""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, retry=False)


class TooMany(ServiceError):
    """mem0 has more memories of one user than it lists, which are `listed`."""

    def __init__(self, problem: str, listed: int) -> None:
        super().__init__(problem, retry=False)
        self.listed = listed


class Service(ABC):
    """One mem0. All methods run on one event loop, that of `Mem0`, and may be called concurrently; none may block it for
    long. They raise ServiceError and nothing else on purpose. Nothing is connected, and mem0 not imported, before the
    first call."""

    name: str
    """For messages and provenance: "mem0", "mem0-server", "mem0-local"."""
    elsewhere: str = "mem0's own backups and logs"
    """What no call of mem0 deletes, for the receipts of those that delete."""
    knows_sessions: bool = False
    """Whether `delete_all` of a session leaves what is a user's, though it was said in that session."""
    grace: float = 30.0
    """Seconds in which what came of an `add` that ended without an answer may still show: as long it is looked for."""

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
        """Remember messages `{"role", "content"}` (and "name"), said at `at`. `infer`: let mem0's model draw facts from them;
        False: keep each as it is. Not repeated by itself once it may have been applied."""

    @abstractmethod
    async def search(self, query: str, entity: Entity, *, top_k: int) -> list[Item]:
        """Best first."""

    @abstractmethod
    async def page(self, entity: Entity, number: int) -> list[Item]:
        """Page `number` (from 1) of `PAGE` memories of the entity, in one lasting order; fewer: the last one. Raises TooMany."""

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item] | None:
        """What was made of a turn, in which this was said; more does no harm. None: only a look through all can tell."""
        return None

    @abstractmethod
    async def get(self, id: str) -> Item | None:
        """Whoever's it is: the caller checks. None: no such memory."""

    @abstractmethod
    async def change(self, id: str, *, text: str, metadata: Mapping[str, Any]) -> None:
        """Set a memory's text and metadata, both in full."""

    @abstractmethod
    async def delete(self, id: str) -> None:
        """Delete a memory for good; one that is not there is fine."""

    @abstractmethod
    async def delete_all(self, entity: Entity) -> None:
        """Delete all that is the entity's, and what mem0 keeps beside it."""

    @abstractmethod
    async def history(self, id: str) -> list[Change]:
        """Oldest first; the first is how it was made. May be empty where mem0 keeps none."""

    async def progress(self, event: str) -> Progress:
        """How far an `Added.event` has come. "failed": mem0 has given it up. Only asked where `add` gave an event."""
        raise ServiceError(f"{self.name} has no event {event}", retry=False)

    async def remains(self, entity: Entity) -> Mapping[str, int]:
        """What mem0 still holds of the entity beside its memories (history, messages), by table; empty: nothing, or not
        to be known."""
        return {}

    async def connect(self) -> None:
        """Do now what the first call would have to wait for."""

    async def scrub(self) -> str | None:
        """Leave nothing in files of one's own of what was deleted: None, or in words what may still hold it."""
        return None

    async def aclose(self) -> None:
        """Release what is held. Using it afterwards is an error."""


def moment(value: object) -> datetime:
    """A time as mem0 writes it: ISO 8601, or seconds since the epoch; the epoch where it is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return _EPOCH


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
