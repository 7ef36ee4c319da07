"""The memory contracts: `Memory`, `ManagedMemory`, and the values they exchange.

A `Memory` retrieves and updates. An `InvocationContext` says for whom; from it follows the `Scope`, the key under which
memories live. Datetimes that a memory returns carry a time zone; one that it is given without a zone is taken as UTC.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from .errors import IdentityError
from .messages import Message

if TYPE_CHECKING:
    from .database.base import Database

# -- for whom -----------------------------------------------------------------------------------------------------------

_REFUSED_IN_IDS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters; lone surrogates: not storable


@dataclass(frozen=True, slots=True)
class InvocationContext:
    """The session, user and turn of a call. `agent`, `task_id` and `metadata` are for the memory's information only."""

    session_id: str
    user_id: str | None = None
    """None: no user is known, and the memories belong to the session."""
    tenant: str = ""
    """The tenant of the user or session; "" is the default tenant."""
    agent: str = ""
    task_id: str | None = None
    turn_id: str | None = None
    """Makes updates idempotent: a turn that was written is not written again. None: every update is a new one."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Scope:
    """The key that memories live under: (tenant, space, user), or (tenant, space, session) if no user is known.

    `space` is the memory's name in the config; agents that name the same memory share it.
    """

    tenant: str
    space: str
    owner: Literal["user", "session"]
    id: str
    """The user's or the session's id. Ids compare byte for byte."""

    @classmethod
    def of(cls, ctx: InvocationContext | None, space: str = "default") -> Self:
        """The scope of a call.

        Raises IdentityError if `ctx` is None, if the id is empty, or if a part is not a string or holds control characters.
        """
        if ctx is None:
            raise IdentityError("no InvocationContext: pass ctx=InvocationContext(session_id=..., user_id=...)")
        if ctx.user_id is not None:
            owner, id_ = "user", ctx.user_id
        else:
            owner, id_ = "session", ctx.session_id
        if not id_:
            raise IdentityError(f"the {owner}_id is empty: expected the id of the {owner} who owns the memories")
        for name, part in ((f"{owner}_id", id_), ("tenant", ctx.tenant), ("space", space)):
            if not isinstance(part, str) or _REFUSED_IN_IDS.search(part):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise IdentityError(f"the {name} is {part!r}: expected a string without control characters")
        return cls(ctx.tenant, space, owner, id_)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """The scope as one string; different scopes have different keys, whatever characters their ids hold."""
        return "/".join(quote(part, safe="") for part in (self.owner, self.tenant, self.space, self.id))


# -- a memory -----------------------------------------------------------------------------------------------------------


class Memory(ABC):
    """A long-term memory. `retrieve` and `update` take `ctx: InvocationContext` as a keyword argument."""

    name: str = "memory"
    """The name in log lines and in `Provenance.backend`; need not be unique."""
    database: Database | None = None
    """The database of the memory's rows if `update` takes `alongside: Alongside`, an operation of the same database, into its
    commit; else None."""
    queues_writes: bool = False
    """Whether `update(..., wait=False)` returns once the write is durably queued, and raises only if it is not: the memory
    itself then delivers it, and retries. The runtime keeps no outbox row of such a write once `update` has returned."""

    @abstractmethod
    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """Return the memories that matter for `query`: best first, at most `top_k`, none if nothing matters.

        Each is a message with `role="system"` and a `Provenance` as `metadata["memory"]`. Includes what an earlier `update`
        of the same scope accepted. Raises IdentityError if `ctx` names no scope, and MemoryBackendError if the memory cannot
        be read; the error's `found` holds what is known all the same.
        """

    @abstractmethod
    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """Remember the messages of a turn, in the order given. A `ctx.turn_id` that was written before changes nothing.

        Returns once they are accepted: they survive a crash of the process. Raises IdentityError or MemoryBackendError.
        """

    def take(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        """Accept the arguments of an `update` to write them later. Raises IdentityError.

        Returns False if nothing was taken, and the caller has to await `update`; by default always.
        """
        return False

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        """Whether this turn is stored already. Called before an `update` is retried.

        For a memory whose `update` does not recognise `ctx.turn_id`. By default False: `update` is idempotent.
        """
        return False

    def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
        """Return at once what can replace a `retrieve` that failed or timed out. Must not block. By default nothing."""
        return []

    async def aclose(self) -> None:
        """Release the memory's resources; it must not be used afterwards. By default there are none."""

    @property
    def ready(self) -> bool:
        """Whether the memory is constructed, so that `managed` says what it is. A wrapper that constructs it late may say no."""
        return True

    @property
    def managed(self) -> ManagedMemory | None:
        """The memory as a `ManagedMemory`, or None if it is none. A wrapper returns that of the memory it wraps."""
        return None


class MemoryKind(StrEnum):
    """The kind of a memory."""

    RECENT_MESSAGE = "RecentMessage"
    """A message as it was said."""
    SUMMARY = "Summary"
    """A summary of a session."""
    ENTITY = "Entity"
    """A fact about the user, or about a person or thing in their life."""
    PREFERENCE = "Preference"
    """A liking, or a standing instruction to the assistant."""


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One memory as a `MemoryBackend` returns it."""

    key: str
    content: str
    kind: MemoryKind
    relevance: float
    """0..1, higher is better."""
    timestamp_ns: int
    """Nanoseconds since the epoch, UTC."""


# -- a memory that its owner can see and change -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One memory as its owner sees it."""

    id: str
    kind: MemoryKind
    content: str
    role: str
    """Who said it: "user" or "assistant"; "system" if it was derived from what they said."""
    speaker: str
    """The speaker's name; "" if none was given."""
    session_id: str
    """The session in which it was first said; "" if unknown."""
    created_at: datetime
    """When it was first said."""
    valid_from: datetime
    """When it started to hold."""
    valid_to: datetime | None = None
    """When it stopped holding: it was superseded or corrected. None: it is current."""
    superseded_by: str | None = None
    """The id of the memory that replaced it; None if none did."""
    sources: tuple[str, ...] = ()
    """Ids of the messages that it was derived from, oldest first."""
    pinned: bool = False
    """Whether it is kept from expiring and fading."""
    expires_at: datetime | None = None
    """From then on it is not retrieved. None: never."""
    quarantined: str | None = None
    """Why it is kept out of every prompt. None: it is not."""
    version: int = 1
    """From 1; an edit raises it by one."""


@dataclass(frozen=True, slots=True)
class MemoryHit:
    """A record that a search found."""

    record: MemoryRecord
    score: float
    """0..1, higher is better; comparable only within one search."""
    signals: Mapping[str, float]
    """What each signal contributed, by its name; they add up to `score`."""


@dataclass(frozen=True, slots=True)
class MemoryFilter:
    """Which memories an operation is about; all conditions must hold. By default: those that are current."""

    kinds: frozenset[MemoryKind] = frozenset()
    """Empty: every kind."""
    since: datetime | None = None
    """First said at or after this time. None: no bound."""
    until: datetime | None = None
    """First said before this time. None: no bound."""
    as_of: datetime | None = None
    """What held at that time, whether or not it still holds. None: now."""
    superseded: bool = False
    """Include what no longer holds or has expired."""
    quarantined: bool = False
    """Include what is kept out of prompts."""


ALL = MemoryFilter()
"""No condition: all current memories."""


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """Some records, newest first."""

    records: tuple[MemoryRecord, ...]
    next: str | None
    """The cursor of the next page. None: this is the last page."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of a deletion."""

    scope: str
    """`Scope.key`."""
    at: datetime
    deleted: Mapping[str, int]
    """Deleted rows by table."""
    left: tuple[str, ...] = ()
    """What may still hold the deleted text and could not be reached, such as backups; in words, one place each."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a user at a glance. Pinned memories first, then newest first."""

    facts: tuple[MemoryRecord, ...]
    preferences: tuple[MemoryRecord, ...]
    focus: tuple[MemoryRecord, ...]
    """What the user said last."""
    summaries: tuple[MemoryRecord, ...]


class ManagedMemory(Memory):
    """A memory whose owner can see, correct and delete everything in it.

    Every operation takes a whole scope and touches nothing outside it; an id of another scope is not found. All raise
    MemoryBackendError or StoreError if the memory cannot be reached, and ValueError for an argument that makes no sense: a
    limit below 1, a cursor that no page returned, an empty text.
    """

    space: str = "default"
    """The space of its scopes: `Scope.of(ctx, memory.space)` is the scope that `retrieve` and `update` use."""

    @property
    def managed(self) -> ManagedMemory:
        return self

    def open(self) -> None:
        """Do now what the first use would wait for; servers call it at startup. By default nothing.

        May block to read a database, but not to reach a network. Raises StoreError.
        """

    @abstractmethod
    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        """One page of the memories that `where` selects, newest first. `limit` is 1 to 1000.

        `cursor` is the `next` of the previous page, None for the first page; pages stay consistent under writes.
        """

    @abstractmethod
    async def get(self, scope: Scope, id: str) -> MemoryRecord | None:
        """One memory. Returns None if there is none with this id."""

    @abstractmethod
    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        """The earlier versions of a memory and those it superseded, oldest first, then the memory itself.

        Returns an empty list if there is none with this id.
        """

    @abstractmethod
    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        """The memories that match `query`, best first, with an explanation: at most `top_k`.

        `budget` bounds their tokens in a prompt, all together and estimated; None: no bound.
        """

    @abstractmethod
    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        """Remember a text as if the user had said it now; it supersedes what it contradicts."""

    @abstractmethod
    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        """Replace a memory's text; the old one stays in its history. Returns None if there is none with this id."""

    @abstractmethod
    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None:
        """Keep a memory from expiring and fading, or no longer. Returns None if there is none with this id."""

    @abstractmethod
    async def forget(
        self,
        scope: Scope,
        *,
        ids: Sequence[str] = (),
        query: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Receipt:
        """Delete memories permanently, with their history: those that meet all conditions that are given.

        `query` selects what contains all of its words, `since` (inclusive) and `until` (exclusive) what was said then.
        Raises ValueError if there is no condition.
        """

    @abstractmethod
    async def erase(self, scope: Scope) -> Receipt:
        """Delete everything of the scope permanently: rows, vectors, history, caches, and the bytes in the memory's own files.

        Writes that started before it are dropped.
        """

    @abstractmethod
    async def remains(self, scope: Scope) -> Mapping[str, int]:
        """What is still stored of a scope: rows by table, without zeros. Empty after an `erase`."""

    @abstractmethod
    def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        """Everything of the scope as JSON objects, which `import_` restores exactly; the first one names the format."""

    @abstractmethod
    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """Store what `export` returned; memories that exist already are left as they are. Returns how many were new.

        Raises ValueError, naming the value, for one that no export returns; those before it stay stored.
        """

    @abstractmethod
    async def profile(self, scope: Scope) -> Profile:
        """What is known of the scope's user at a glance."""
