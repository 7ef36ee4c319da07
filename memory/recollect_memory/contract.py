"""The contracts that every other module is written against: messages, scopes, memories, models, embedders.

A memory is anything with `retrieve` and `update`. It is told for whom by an `InvocationContext`, from which the
`Scope`, the key under which things are remembered, follows.
"""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict
from urllib.parse import quote

from .errors import IdentityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no id may hold: control characters, and halves of surrogate pairs, which no database can store."""


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asked for. `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


class Provenance(TypedDict):
    """What `metadata["memory"]` of a retrieved message says: why it is there, and where it came from."""

    id: str
    kind: str
    """A `MemoryKind` value."""
    score: float
    """0..1 within one answer, higher is better; comparable between the hits of one query only."""
    sources: list[str]
    """Ids of the messages that this memory was made from."""
    created_at: str
    """ISO 8601 with time zone."""
    backend: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. `name` is the speaker; `tool_call_id` the call that a tool message answers."""

    role: Role
    content: str
    id: str = field(default_factory=_new_id)
    name: str | None = None
    created_at: datetime = field(default_factory=_now)
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


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

    @abstractmethod
    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        """The memories that matter for `query`, best first, at most `top_k`.

        Each is a `role="system"` message with `metadata["memory"]` as `Provenance` describes. What was accepted by
        `update` before is findable. Raises MemoryBackendError, or IdentityError where there is no scope.
        """

    @abstractmethod
    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        """Remember these messages. Writing the same `ctx.turn_id` again changes nothing.

        Returning means accepted: the messages survive the process. Raises MemoryBackendError or IdentityError.
        """

    async def aclose(self) -> None:
        """Release what the memory holds. Using it afterwards is an error. By default there is nothing to release."""


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
class ToolSpec:
    """A tool as a model is told of it. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one model call used."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelDelta:
    """A piece of a model's answer. Pieces of text add up; `tool_calls` come whole; `usage` and `finish` come last."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    finish: str | None = None
    """Why the model stopped: "stop", "length", "tool_calls", ... None: it has not."""


class ChatModel(ABC):
    """A model that answers a conversation."""

    name: str = "model"

    @abstractmethod
    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        """The answer, piece by piece. `schema` asks for a JSON object of that JSON Schema. Raises ModelError only."""

    async def aclose(self) -> None:
        """Release what the model holds. By default there is nothing to release."""


class Embedder(ABC):
    """Turns texts into vectors. `name` identifies the model: vectors of different names are never compared."""

    name: str
    dimensions: int

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One L2-normalised row a text: shape (len(texts), dimensions). Called from worker threads, several at a time.

        Raises ModelError where the texts cannot be embedded.
        """
