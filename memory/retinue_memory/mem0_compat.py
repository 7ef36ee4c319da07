"""Any managed memory with the interface of mem0's library: change the import to `from retinue_memory.mem0_compat import Memory`.

`Memory` is for code without an event loop, `AsyncMemory` has the same methods as coroutines. Results have mem0's shape:
`{"results": [item, ...]}`, an item with `id`, `memory`, `hash`, `user_id`, `agent_id`, `run_id`, `role`, `actor_id`,
`created_at`, `updated_at` and, from a search, `score` (0..1, comparable within one search). mem0 need not be installed.
Differences:

- An id has the form "user/alice/3f2a..." and names the owner; it never reaches another user's memory.
- Messages are remembered; whether a model extracts facts is the memory's setting (`mode: llm`), not `infer`'s.
- `search` and `get_all` take `user_id` as an argument or in `filters`; `limit` is another name of `top_k`.
- `metadata` is not stored, which is logged as a warning; filtering by it is a ValueError.
- There is no `reset`, and no listing of all users' memories.
- A `run_id` without a `user_id` or an `agent_id` is a session with memories of its own.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast
from urllib.parse import quote, unquote

from .background import wait_for
from .clock import now
from .errors import ConfigError
from .memory import (
    InvocationContext,
    ManagedMemory,
    MemoryFilter,
    MemoryRecord,
    Scope,
)
from .messages import Message
from .registry import open_memory

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

_EVERYTHING = MemoryFilter(superseded=True, quarantined=True)
_PAGE_SIZE = 500
_MAX_HITS = 1000  # searched for those of one run or agent


class AsyncMemory:
    """mem0's `AsyncMemory` on a `ManagedMemory`, by default the native one with its default database.

    `tenant` and the memory's space complete every scope. Methods raise ValueError for invalid ids and filters, and what the
    memory raises.
    """

    def __init__(self, memory: ManagedMemory | None = None, *, tenant: str = "") -> None:
        self.memory = memory if memory is not None else _open("native")
        self._tenant = tenant
        self._space = self.memory.space

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any] | str) -> Self:
        """Open the memory of a config entry of Retinue, see `open_memory`. Raises ConfigError."""
        return cls(_open(config_dict))

    async def add(
        self,
        messages: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: float | datetime | None = None,
        infer: bool = True,
    ) -> dict[str, Any]:
        """Remember messages except system messages. `timestamp` is when they were said (seconds since the epoch, or a datetime).

        The results are the new memories, oldest first; a message that repeats a memory adds none. `infer` has no effect.
        """
        owner = _Owner.of(user_id, agent_id, run_id)
        _warn_about(metadata)
        at = datetime.fromtimestamp(timestamp, UTC) if isinstance(timestamp, int | float) else timestamp
        said = [_message(one, at or now()) for one in _messages(messages) if one.get("role") != "system"]
        if not said:
            return {"results": []}
        await self.memory.update(said, ctx=owner.context(self._tenant))
        ids = {message.id for message in said}
        times = [message.created_at for message in said]
        where = MemoryFilter(since=min(times), until=max(times) + timedelta(microseconds=1))
        added = [record async for record in self._records(owner, where) if ids & set(record.sources)]
        return {"results": [self._item(record, owner) | {"event": "ADD"} for record in reversed(added)]}

    async def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        top_k: int = 20,
        limit: int | None = None,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        rerank: bool = False,
        explain: bool = False,
        show_expired: bool = False,
    ) -> dict[str, Any]:
        """The memories that match the query, best first. `explain` adds `score_details`, which add up to the score.

        `threshold` is the lowest score. `show_expired` includes superseded and expired memories. `rerank` has no effect.
        """
        if not query.strip():
            raise ValueError("the query is empty")
        owner = _owner_of(filters, user_id, agent_id, run_id)
        top_k = _checked_count(limit if limit is not None else top_k)
        where = MemoryFilter(superseded=show_expired)
        hits = await self.memory.search(
            owner.scope(self._tenant, self._space), query, where, top_k=_MAX_HITS if owner.is_narrow else top_k
        )
        found = [
            self._item(hit.record, owner)
            | {"score": hit.score}
            | ({"score_details": dict(hit.signals)} if explain else {})
            for hit in hits
            if owner.has(hit.record) and hit.score >= (threshold or 0.0)
        ]
        return {"results": found[:top_k]}

    async def get_all(
        self,
        *,
        filters: Mapping[str, Any] | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        top_k: int = 20,
        limit: int | None = None,
        show_expired: bool = False,
    ) -> dict[str, Any]:
        """The memories of a user, an agent or a run, newest first, at most `top_k`."""
        owner = _owner_of(filters, user_id, agent_id, run_id)
        top_k = _checked_count(limit if limit is not None else top_k)
        found: list[dict[str, Any]] = []
        async for record in self._records(owner, MemoryFilter(superseded=show_expired)):
            found.append(self._item(record, owner))
            if len(found) == top_k:
                break
        return {"results": found}

    async def get(self, memory_id: str) -> dict[str, Any] | None:
        """One memory. Returns None if there is none with this id."""
        place = _place(memory_id)
        if place is None:
            return None
        owner, id_ = place
        record = await self.memory.get(owner.scope(self._tenant, self._space), id_)
        return None if record is None else self._item(record, owner)

    async def update(
        self,
        memory_id: str,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        data: str | None = None,
    ) -> dict[str, Any]:
        """Replace a memory's text (`data` is mem0's older name of it). Raises ValueError if there is no such memory."""
        _warn_about(metadata)
        new = text if text is not None else data
        if new is None:
            raise ValueError("update got no text")
        owner, id_ = _checked_place(memory_id)
        if await self.memory.edit(owner.scope(self._tenant, self._space), id_, new) is None:
            raise ValueError(f"there is no memory {memory_id!r}")
        return {"message": "updated"}

    async def delete(self, memory_id: str) -> dict[str, Any]:
        """Delete a memory permanently. Raises ValueError if there is no such memory."""
        owner, id_ = _checked_place(memory_id)
        scope = owner.scope(self._tenant, self._space)
        if await self.memory.get(scope, id_) is None:
            raise ValueError(f"there is no memory {memory_id!r}")
        await self.memory.forget(scope, ids=[id_])
        return {"message": "deleted"}

    async def delete_all(
        self, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None
    ) -> dict[str, Any]:
        """Delete all memories of a user, an agent or a run permanently."""
        owner = _Owner.of(user_id, agent_id, run_id)
        scope = owner.scope(self._tenant, self._space)
        if not owner.is_narrow:
            await self.memory.erase(scope)
        elif ids := [record.id async for record in self._records(owner, _EVERYTHING)]:
            await self.memory.forget(scope, ids=ids)
        return {"message": "deleted"}

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """The versions of a memory and those it superseded, oldest first. Empty if there is none with this id."""
        place = _place(memory_id)
        if place is None:
            return []
        owner, id_ = place
        before: str | None = None
        found: list[dict[str, Any]] = []
        for record in await self.memory.history(owner.scope(self._tenant, self._space), id_):
            item = self._item(record, owner)
            found.append(
                {
                    "id": f"{item['id']}/{record.version}",
                    "memory_id": memory_id,
                    "old_memory": before,
                    "new_memory": record.content,
                    "event": "ADD" if before is None else "UPDATE",
                    "is_deleted": False,
                }
                | {name: item[name] for name in ("created_at", "updated_at", "actor_id", "role")}
            )
            before = record.content
        return found

    async def close(self) -> None:
        """Close the memory."""
        await self.memory.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _records(self, owner: _Owner, where: MemoryFilter) -> AsyncIterator[MemoryRecord]:
        scope, cursor = owner.scope(self._tenant, self._space), None
        while True:
            page = await self.memory.browse(scope, where, limit=_PAGE_SIZE, cursor=cursor)
            for record in page.records:
                if owner.has(record):
                    yield record
            cursor = page.next
            if cursor is None:
                return

    def _item(self, record: MemoryRecord, owner: _Owner) -> dict[str, Any]:
        agent, run = _session(record.session_id)
        return {
            "id": f"{owner.key}/{record.id}",
            "memory": record.content,
            "hash": hashlib.md5(record.content.encode("utf-8", "replace"), usedforsecurity=False).hexdigest(),
            "metadata": None,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.valid_from.isoformat(),
            "user_id": owner.user,
            "agent_id": agent if owner.user is not None else owner.agent,
            "run_id": (run or None) if owner.agent is None or owner.user is not None else None,
            "role": record.role,
            "actor_id": record.speaker or None,
        }


def _blocking(
    method: Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Memory, P], R]:
    def call(self: Memory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(method, self.async_memory, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class Memory:
    """mem0's `Memory`: `AsyncMemory` for code without an event loop. Usable from any thread."""

    def __init__(self, memory: ManagedMemory | None = None, *, tenant: str = "") -> None:
        self.async_memory = AsyncMemory(memory, tenant=tenant)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any] | str) -> Self:
        """Open the memory of a config entry of Retinue, see `open_memory`. Raises ConfigError."""
        return cls(_open(config_dict))

    add = _blocking(AsyncMemory.add)
    search = _blocking(AsyncMemory.search)
    get_all = _blocking(AsyncMemory.get_all)
    get = _blocking(AsyncMemory.get)
    update = _blocking(AsyncMemory.update)
    delete = _blocking(AsyncMemory.delete)
    delete_all = _blocking(AsyncMemory.delete_all)
    history = _blocking(AsyncMemory.history)
    close = _blocking(AsyncMemory.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Owner:
    """A user, perhaps restricted to one agent or run; or an agent; or a run, which is a session."""

    user: str | None
    agent: str | None
    run: str | None

    @classmethod
    def of(cls, user: object, agent: object, run: object) -> Self:
        given = {"user_id": user, "agent_id": agent, "run_id": run}
        for name, value in given.items():
            if value is not None and (not isinstance(value, str) or not value.strip() or value == "*"):
                raise ValueError(f"{name} is {value!r}: expected a text that is not empty")
        if user is None and agent is None and run is None:
            raise ValueError("the owner is missing: expected user_id, agent_id or run_id")
        if user is None and agent is not None and run is not None:
            raise ValueError("an agent's own memories have no runs: leave out run_id, or name a user_id")
        return cls(*cast("tuple[str | None, str | None, str | None]", (user, agent, run)))

    @property
    def is_narrow(self) -> bool:
        """Whether it has only some of the scope's memories."""
        return self.user is not None and (self.agent is not None or self.run is not None)

    @property
    def key(self) -> str:
        """The prefix of ids."""
        return f"user/{quote(self.user, safe='')}" if self.user is not None else f"session/{quote(self._id, safe='')}"

    @property
    def _id(self) -> str:
        return _session_id(self.agent, self.run or "")

    def context(self, tenant: str) -> InvocationContext:
        return InvocationContext(self._id, self.user, tenant=tenant)

    def scope(self, tenant: str, space: str) -> Scope:
        return Scope.of(self.context(tenant), space)

    def has(self, record: MemoryRecord) -> bool:
        agent, run = _session(record.session_id)
        return not self.is_narrow or (self.agent in (None, agent) and self.run in (None, run))


def _session_id(agent: str | None, run: str) -> str:
    """Agent and run as the id of a session; a run alone is one already. `_session` is the inverse."""
    return f"{quote(run, safe='')}@{quote(agent or '', safe='')}" if agent is not None or "@" in run else run


def _session(id_: str) -> tuple[str | None, str]:
    run, at, agent = id_.partition("@")
    return (unquote(agent) or None, unquote(run)) if at else (None, id_)


def _place(memory_id: str) -> tuple[_Owner, str] | None:
    """The owner that an id names, and the memory's own id. Returns None if it has another form."""
    parts = memory_id.split("/", 2)
    if len(parts) != 3 or parts[0] not in ("user", "session") or not parts[1]:
        return None
    name, id_ = unquote(parts[1]), parts[2]
    return (_Owner(name, None, None) if parts[0] == "user" else _Owner(None, *_session(name))), id_


def _checked_place(memory_id: str) -> tuple[_Owner, str]:
    place = _place(memory_id)
    if place is None:
        raise ValueError(f"there is no memory {memory_id!r}")
    return place


def _owner_of(filters: Mapping[str, Any] | None, user: object, agent: object, run: object) -> _Owner:
    """The owner that arguments or `filters` (also `{"AND": [...]}`) name. Raises ValueError for any other filter."""
    given = {"user_id": user, "agent_id": agent, "run_id": run}
    conditions: list[Any] = [filters or {}]
    while conditions:
        for name, value in cast("Mapping[str, Any]", conditions.pop()).items():
            if name == "AND" and isinstance(value, list):
                conditions += value
            elif name not in given:
                raise ValueError(f"memories cannot be filtered by {name!r}: expected one of {', '.join(given)}")
            elif given[name] not in (None, value):
                raise ValueError(f"{name} is given twice: {given[name]!r} and {value!r}")
            else:
                given[name] = value
    return _Owner.of(*given.values())


def _messages(messages: object) -> list[Mapping[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    listed: list[Any] = [*messages] if isinstance(messages, Sequence) else [messages]
    if not all(isinstance(one, Mapping) for one in listed):
        raise ValueError("expected a text, a message, or a list of messages, each with a role and a content")
    return listed


def _message(value: Mapping[str, Any], at: datetime) -> Message:
    role, name = value.get("role"), value.get("name")
    content: Any = value.get("content")
    if isinstance(content, list):  # parts: texts among images and the like
        parts = cast("list[Mapping[str, Any]]", content)
        content = "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)  # pyright: ignore[reportUnnecessaryIsInstance]
    if role not in ("user", "assistant", "tool") or not isinstance(content, str):
        raise ValueError(f"expected a message with a role (user, assistant, tool) and a content: {value!r:.80}")
    return Message(role, content, name=None if name is None else str(name), created_at=at)


def _warn_about(metadata: Mapping[str, Any] | None) -> None:
    if metadata:
        log.warning("metadata is not stored: %s", ", ".join(map(str, metadata)))


def _checked_count(top_k: object) -> int:
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}: expected a whole number, at least 1")
    return top_k


def _open(config: Mapping[str, Any] | str) -> ManagedMemory:
    memory = open_memory(config)
    if memory.managed is None:
        raise ConfigError(f"the memory {memory.name!r} cannot be managed", key="backend", value=config)
    return memory.managed
