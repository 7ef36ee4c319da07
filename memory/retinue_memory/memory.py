"""The contracts that every other module is written against: messages, scopes, memories, models, embedders.

A memory is anything with `retrieve` and `update`. It is told for whom by an `InvocationContext`, from which the
`Scope`, the key under which things are remembered, follows.
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

from retinue_memory.messages import Message

from .errors import IdentityError

if TYPE_CHECKING:
    from .database.base import Database

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no id may hold: control characters, and halves of surrogate pairs, which no database can store."""


@dataclass(frozen=True, slots=True)
class InvocationContext:
    """Whose turn this is. Without a user, what is remembered belongs to the session."""

    session_id: str
    user_id: str | None = None
    tenant: str = ""
    agent: str = ""
    task_id: str | None = None
    turn_id: str | None = None
    """Writes are idempotent by it: the same turn written again changes nothing. None: no such promise is asked for."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Scope:
    """The key a memory lives under: a user of a tenant in a space, or a session where no user is known.

    `space` is the memory's name in the config: agents that name the same memory share it.
    """

    tenant: str
    space: str
    owner: Literal["user", "session"]
    id: str

    @classmethod
    def of(cls, ctx: InvocationContext | None, space: str = "default") -> Self:
        """The scope of a turn. Raises IdentityError where neither a user nor a session is named: no scope, no access.

        Ids compare byte for byte; one that holds a control character, or is not a string, is refused.
        """
        if ctx is None:
            raise IdentityError("no InvocationContext: pass ctx=InvocationContext(session_id=..., user_id=...)")
        if ctx.user_id is not None:
            owner, id_ = "user", ctx.user_id
        else:
            owner, id_ = "session", ctx.session_id
        if not id_:
            raise IdentityError(f"the {owner}_id is empty: a memory needs someone whose it is")
        for name, part in ((f"{owner}_id", id_), ("tenant", ctx.tenant), ("space", space)):
            if not isinstance(part, str) or _UNFIT.search(part):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise IdentityError(f"the {name} {part!r} is not a string without control characters")
        return cls(ctx.tenant, space, owner, id_)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """The scope as one string, different for different scopes whatever characters their ids hold."""
        return "/".join(quote(part, safe="") for part in (self.owner, self.tenant, self.space, self.id))


class Memory(ABC):
    """A long-term memory. Both methods get `ctx: InvocationContext` as a keyword."""

    name: str = "memory"
    database: Database | None = None
    """The database of the memory's rows if `update` takes `alongside: Alongside`, an operation of the same database, into its
    commit; else None."""
    queues_writes: bool = False
    """Whether `update(..., wait=False)` returns once the write is durably queued, and raises only if it is not: the memory
    itself then delivers it, and retries. The runtime keeps no outbox row of such a write once `update` has returned."""

    @abstractmethod
    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """The memories that matter for `query`, best first, at most `top_k`.

        Each is a `role="system"` message with `metadata["memory"]` as `Provenance` describes. What was accepted by
        `update` before is findable. Raises MemoryBackendError, whose `found` is used all the same, or IdentityError where
        there is no scope.
        """

    @abstractmethod
    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """Remember these messages. Writing the same `ctx.turn_id` again changes nothing.

        Returning means accepted: the messages survive the process. Raises MemoryBackendError or IdentityError.
        """

    def take(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        """Take what `update` would be given, to write it later; False, as by default: nothing was taken, `update` is to be
        awaited. Raises IdentityError where there is no scope."""
        return False

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        """Whether this turn is there, as far as the memory can tell; asked before a write that may have been made before.

        For a memory whose `update` cannot tell by `ctx.turn_id`. By default False: `update` sees to it.
        """
        return False

    def at_hand(self, query: str, *, top_k: int, ctx: InvocationContext) -> list[Message]:
        """What can be said at once, where `retrieve` fails or does not answer in time. By default nothing."""
        return []

    async def aclose(self) -> None:
        """Release what the memory holds. Using it afterwards is an error. By default there is nothing to release."""

    @property
    def ready(self) -> bool:
        """Whether the memory is constructed, so that `managed` says what it is. A wrapper that constructs it late may say no."""
        return True

    @property
    def managed(self) -> ManagedMemory | None:
        """The memory as its owner sees it; None where it offers no such thing. What wraps a memory says what that one is."""
        return None


class MemoryKind(StrEnum):
    """What a remembered thing is."""

    RECENT_MESSAGE = "RecentMessage"
    SUMMARY = "Summary"
    ENTITY = "Entity"
    PREFERENCE = "Preference"


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One memory as a `MemoryBackend` returns it. `relevance` is 0..1, higher is better; `timestamp_ns` since the epoch."""

    key: str
    content: str
    kind: MemoryKind
    relevance: float
    timestamp_ns: int


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One memory as its owner sees it. Times carry a zone."""

    id: str
    kind: MemoryKind
    content: str
    role: str
    """Who said it: "user", "assistant", or "system" for what was made from what they said."""
    speaker: str
    session_id: str
    created_at: datetime
    """When it was first said."""
    valid_from: datetime
    valid_to: datetime | None = None
    """When it stopped being true: superseded, or corrected. None: it holds."""
    superseded_by: str | None = None
    """The id of the memory that took its place."""
    sources: tuple[str, ...] = ()
    """Ids of the messages it was made from, oldest first."""
    pinned: bool = False
    """Pinned memories neither expire nor fade."""
    expires_at: datetime | None = None
    quarantined: str | None = None
    """Why it is kept from every prompt; None: it is not."""
    version: int = 1
    """Raised by every edit; the earlier ones are its history."""


@dataclass(frozen=True, slots=True)
class MemoryHit:
    """A record that a search found. `signals` add up to `score`, which is 0..1 within one answer, higher is better."""

    record: MemoryRecord
    score: float
    signals: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MemoryFilter:
    """Which memories are meant; every condition that is set must hold. Without conditions: the current ones.

    `as_of`: what held at that time, whatever holds now. `superseded` and `quarantined`: those too.
    """

    kinds: frozenset[MemoryKind] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None
    superseded: bool = False
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPage:
    """Some records, newest first, and where the next page begins; None: there is none."""

    records: tuple[MemoryRecord, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure or a forgetting took away, table by table, and what it could not reach (backups, a WAL elsewhere)."""

    scope: str
    at: datetime
    deleted: Mapping[str, int]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A user in one read: what holds of them in the long run, and what they are busy with now."""

    facts: tuple[MemoryRecord, ...]
    preferences: tuple[MemoryRecord, ...]
    focus: tuple[MemoryRecord, ...]
    summaries: tuple[MemoryRecord, ...]


ALL = MemoryFilter()


class ManagedMemory(Memory):
    """A memory whose owner can see, correct and erase everything in it.

    Every method names the whole scope, and reaches nothing outside it: the id of another's memory is not found. All raise
    MemoryBackendError or StoreError where the memory cannot be reached.
    """

    space: str = "default"
    """The space of its scopes: `Scope.of(ctx, memory.space)` is where `retrieve` and `update` of that turn look."""

    @property
    def managed(self) -> ManagedMemory:
        return self

    def open(self) -> None:
        """Begin now what the first use would have to wait for; a server calls it at its start. It may read a database, and does
        not wait for a network. By default there is nothing to do. Raises StoreError."""

    @abstractmethod
    async def browse(
        self, scope: Scope, where: MemoryFilter = ALL, *, limit: int = 50, cursor: str | None = None
    ) -> MemoryPage:
        """The scope's memories, newest first. `cursor` is the `next` of the page before, stable under writes."""

    @abstractmethod
    async def get(self, scope: Scope, id: str) -> MemoryRecord | None: ...

    @abstractmethod
    async def history(self, scope: Scope, id: str) -> list[MemoryRecord]:
        """The record's earlier versions and those it superseded, oldest first; the record itself last. Empty: no such id."""

    @abstractmethod
    async def search(
        self, scope: Scope, query: str, where: MemoryFilter = ALL, *, top_k: int = 5, budget: int | None = None
    ) -> list[MemoryHit]:
        """The memories that match, best first, explained; at most `top_k`, and at most `budget` tokens in all."""

    @abstractmethod
    async def add(self, scope: Scope, content: str, *, kind: MemoryKind = MemoryKind.ENTITY) -> MemoryRecord:
        """Remember a text by hand. What it supersedes is superseded, as if the user had said it."""

    @abstractmethod
    async def edit(self, scope: Scope, id: str, content: str) -> MemoryRecord | None:
        """Correct a memory's text; None: no such id."""

    @abstractmethod
    async def pin(self, scope: Scope, id: str, pinned: bool = True) -> MemoryRecord | None: ...

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
        """Delete for good: by id, by a query (all that contain its words), by when it was said. Nothing given: ValueError."""

    @abstractmethod
    async def erase(self, scope: Scope) -> Receipt:
        """Delete everything of the scope for good: rows, vectors, history, caches; on SQLite the bytes in the files too."""

    @abstractmethod
    async def remains(self, scope: Scope) -> Mapping[str, int]:
        """What is still there of a scope, table by table; empty: nothing. The verifier of `erase`."""

    @abstractmethod
    def export(self, scope: Scope) -> AsyncIterator[Mapping[str, Any]]:
        """Everything of the scope as JSON values, in an order in which `import_` takes them; a round trip is exact."""

    @abstractmethod
    async def import_(self, scope: Scope, values: AsyncIterator[Mapping[str, Any]]) -> int:
        """Take what `export` gave; what is there already stays. How many memories were new."""

    @abstractmethod
    async def profile(self, scope: Scope) -> Profile: ...
