"""Our memories under the call shapes of mem0's library: `from retinue_memory.mem0_compat import Memory`, and a program runs on.

`Memory` is for code without an event loop, `AsyncMemory` the same as coroutines. Results have mem0's shape: `{"results":
[item, ...]}`, an item with `id`, `memory`, `hash`, `user_id`, `agent_id`, `run_id`, `role`, `actor_id`, `created_at`,
`updated_at` and, from a search, `score` (0..1 within one answer). Nothing of mem0 is needed. What differs:

- An id is of the form "user/alice/3f2a..." and says whose the memory is: no id reaches another user's.
- What was said is remembered; whether a model draws facts from it is the memory's setting (`mode: llm`), not `infer`'s.
- `user_id` may be given to `search` and `get_all` as such or in `filters`; `limit` is another name of `top_k`.
- `metadata` is not kept: giving it is logged as a warning, and a filter by it is refused.
- Everybody's memories at once cannot be listed or deleted: there is no `reset`.
- Where there is neither a `user_id` nor an `agent_id`, a `run_id` is the session whose memory it is.
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
_PAGE = 500
_MOST = 1000
"""Hits that are looked at for those of one run or agent."""


class AsyncMemory:
    """mem0's `AsyncMemory` over a `ManagedMemory`. `tenant` and the memory's own space complete every scope.

    Without a memory, the native one on its default database. Raises ValueError for ids and filters that it cannot heed, and
    what the memory raises.
    """

    def __init__(self, memory: ManagedMemory | None = None, *, tenant: str = "") -> None:
        self.memory = memory if memory is not None else _managed("native")
        self._tenant = tenant
        self._space = str(getattr(self.memory, "space", "default"))

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any] | str) -> Self:
        """From a config entry of ours, as `open_memory` takes it. Raises ConfigError."""
        return cls(_managed(config_dict))

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
        """Remember messages; system messages are left out. `timestamp` (seconds since the epoch) is when they were said.

        The results are the memories made of them, oldest first; what only said again what is known is none. `infer` changes
        nothing.
        """
        whose = _Whose.of(user_id, agent_id, run_id)
        _warn_of(metadata)
        at = datetime.fromtimestamp(timestamp, UTC) if isinstance(timestamp, int | float) else timestamp
        said = [_message(one, at or datetime.now(UTC)) for one in _listed(messages) if one.get("role") != "system"]
        if not said:
            return {"results": []}
        await self.memory.update(said, ctx=whose.context(self._tenant))
        ids = {message.id for message in said}
        times = [message.created_at for message in said]
        where = MemoryFilter(since=min(times), until=max(times) + timedelta(microseconds=1))
        added = [record async for record in self._records(whose, where) if ids & set(record.sources)]
        return {"results": [self._item(record, whose) | {"event": "ADD"} for record in reversed(added)]}

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
        """What matters for the query, best first. `explain` adds `score_details`, which add up to the score; there is no second
        ranking for `rerank`. `threshold`: the lowest score; `show_expired`: also what was superseded or has expired."""
        if not query.strip():
            raise ValueError("the query is empty")
        whose, most = _asked(filters, user_id, agent_id, run_id), _positive(limit if limit is not None else top_k)
        where = MemoryFilter(superseded=show_expired)
        hits = await self.memory.search(
            whose.scope(self._tenant, self._space), query, where, top_k=_MOST if whose.narrow else most
        )
        found = [
            self._item(hit.record, whose)
            | {"score": hit.score}
            | ({"score_details": dict(hit.signals)} if explain else {})
            for hit in hits
            if whose.has(hit.record) and hit.score >= (threshold or 0.0)
        ]
        return {"results": found[:most]}

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
        whose, most = _asked(filters, user_id, agent_id, run_id), _positive(limit if limit is not None else top_k)
        found: list[dict[str, Any]] = []
        async for record in self._records(whose, MemoryFilter(superseded=show_expired)):
            found.append(self._item(record, whose))
            if len(found) == most:
                break
        return {"results": found}

    async def get(self, memory_id: str) -> dict[str, Any] | None:
        """One memory; None: there is none of that id."""
        place = _place(memory_id)
        if place is None:
            return None
        whose, id_ = place
        record = await self.memory.get(whose.scope(self._tenant, self._space), id_)
        return None if record is None else self._item(record, whose)

    async def update(
        self,
        memory_id: str,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        data: str | None = None,
    ) -> dict[str, Any]:
        """Correct a memory's text (`data` is an older name of it). Raises ValueError where there is no such memory."""
        _warn_of(metadata)
        new = text if text is not None else data
        if new is None:
            raise ValueError("say what the memory is to say: text")
        whose, id_ = _known(memory_id)
        if await self.memory.edit(whose.scope(self._tenant, self._space), id_, new) is None:
            raise ValueError(f"there is no memory {memory_id!r}")
        return {"message": "updated"}

    async def delete(self, memory_id: str) -> dict[str, Any]:
        """Delete a memory for good. Raises ValueError where there is no such memory."""
        whose, id_ = _known(memory_id)
        scope = whose.scope(self._tenant, self._space)
        if await self.memory.get(scope, id_) is None:
            raise ValueError(f"there is no memory {memory_id!r}")
        await self.memory.forget(scope, ids=[id_])
        return {"message": "deleted"}

    async def delete_all(
        self, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None
    ) -> dict[str, Any]:
        """Delete all that is remembered of a user, an agent or a run, for good."""
        whose = _Whose.of(user_id, agent_id, run_id)
        scope = whose.scope(self._tenant, self._space)
        if not whose.narrow:
            await self.memory.erase(scope)
        elif ids := [record.id async for record in self._records(whose, _EVERYTHING)]:
            await self.memory.forget(scope, ids=ids)
        return {"message": "deleted"}

    async def history(self, memory_id: str) -> list[dict[str, Any]]:
        """What the memory said, and what it took the place of, oldest first; empty: there is none of that id."""
        place = _place(memory_id)
        if place is None:
            return []
        whose, id_ = place
        before: str | None = None
        found: list[dict[str, Any]] = []
        for record in await self.memory.history(whose.scope(self._tenant, self._space), id_):
            item = self._item(record, whose)
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
        """Close the memory beneath."""
        await self.memory.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _records(self, whose: _Whose, where: MemoryFilter) -> AsyncIterator[MemoryRecord]:
        scope, cursor = whose.scope(self._tenant, self._space), None
        while True:
            page = await self.memory.browse(scope, where, limit=_PAGE, cursor=cursor)
            for record in page.records:
                if whose.has(record):
                    yield record
            cursor = page.next
            if cursor is None:
                return

    def _item(self, record: MemoryRecord, whose: _Whose) -> dict[str, Any]:
        agent, run = _session(record.session_id)
        return {
            "id": f"{whose.key}/{record.id}",
            "memory": record.content,
            "hash": hashlib.md5(record.content.encode("utf-8", "replace"), usedforsecurity=False).hexdigest(),
            "metadata": None,
            "created_at": record.created_at.isoformat(),
            "updated_at": record.valid_from.isoformat(),
            "user_id": whose.user,
            "agent_id": agent if whose.user is not None else whose.agent,
            "run_id": (run or None) if whose.agent is None or whose.user is not None else None,
            "role": record.role,
            "actor_id": record.speaker or None,
        }


def _blocking(
    method: Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Memory, P], R]:
    def call(self: Memory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(method, self.beneath, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call


class Memory:
    """mem0's `Memory`: what `AsyncMemory` does, for code without an event loop. From any thread."""

    def __init__(self, memory: ManagedMemory | None = None, *, tenant: str = "") -> None:
        self.beneath = AsyncMemory(memory, tenant=tenant)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any] | str) -> Self:
        """From a config entry of ours, as `open_memory` takes it. Raises ConfigError."""
        return cls(_managed(config_dict))

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
class _Whose:
    """Of a user, perhaps with one agent, in one run; or of an agent by itself; or of a run, the session."""

    user: str | None
    agent: str | None
    run: str | None

    @classmethod
    def of(cls, user: object, agent: object, run: object) -> Self:
        given = {"user_id": user, "agent_id": agent, "run_id": run}
        for name, value in given.items():
            if value is not None and (not isinstance(value, str) or not value.strip() or value == "*"):
                raise ValueError(f"{name} is {value!r}: an id is a text, and not empty")
        if user is None and agent is None and run is None:
            raise ValueError("say whose memory it is: user_id, agent_id or run_id")
        if user is None and agent is not None and run is not None:
            raise ValueError("an agent's own memory is not told apart by runs: leave out run_id, or name a user_id")
        return cls(*cast("tuple[str | None, str | None, str | None]", (user, agent, run)))

    @property
    def narrow(self) -> bool:
        """Whether only some of the scope's memories are meant."""
        return self.user is not None and (self.agent is not None or self.run is not None)

    @property
    def key(self) -> str:
        """What an id begins with."""
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
        return not self.narrow or (self.agent in (None, agent) and self.run in (None, run))


def _session_id(agent: str | None, run: str) -> str:
    """Agent and run as the id of a session; a run alone is its own. `_session` is the inverse."""
    return f"{quote(run, safe='')}@{quote(agent or '', safe='')}" if agent is not None or "@" in run else run


def _session(id_: str) -> tuple[str | None, str]:
    run, at, agent = id_.partition("@")
    return (unquote(agent) or None, unquote(run)) if at else (None, id_)


def _place(memory_id: str) -> tuple[_Whose, str] | None:
    """Whose memory an id names, and its own id; None: it is none of ours."""
    parts = memory_id.split("/", 2)
    if len(parts) != 3 or parts[0] not in ("user", "session") or not parts[1]:
        return None
    owner, id_ = unquote(parts[1]), parts[2]
    return (_Whose(owner, None, None) if parts[0] == "user" else _Whose(None, *_session(owner))), id_


def _known(memory_id: str) -> tuple[_Whose, str]:
    place = _place(memory_id)
    if place is None:
        raise ValueError(f"there is no memory {memory_id!r}")
    return place


def _asked(filters: Mapping[str, Any] | None, user: object, agent: object, run: object) -> _Whose:
    """Of whom is asked, by arguments or `filters` (also `{"AND": [...]}`). Raises ValueError for a filter by anything else."""
    given = {"user_id": user, "agent_id": agent, "run_id": run}
    conditions: list[Any] = [filters or {}]
    while conditions:
        for name, value in cast("Mapping[str, Any]", conditions.pop()).items():
            if name == "AND" and isinstance(value, list):
                conditions += value
            elif name not in given:
                raise ValueError(f"memories cannot be filtered by {name!r}: there is {', '.join(given)}")
            elif given[name] not in (None, value):
                raise ValueError(f"{name} is given twice: {given[name]!r} and {value!r}")
            else:
                given[name] = value
    return _Whose.of(*given.values())


def _listed(messages: object) -> list[Mapping[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    listed: list[Any] = [*messages] if isinstance(messages, Sequence) else [messages]
    if not all(isinstance(one, Mapping) for one in listed):
        raise ValueError("messages are a text, a message, or a list of messages, each with a role and a content")
    return listed


def _message(value: Mapping[str, Any], at: datetime) -> Message:
    role, name = value.get("role"), value.get("name")
    content: Any = value.get("content")
    if isinstance(content, list):  # text among images and the like
        parts = cast("list[Mapping[str, Any]]", content)
        content = "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)  # pyright: ignore[reportUnnecessaryIsInstance]
    if role not in ("user", "assistant", "tool") or not isinstance(content, str):
        raise ValueError(f"a message has a role (user, assistant, tool) and a content: {value!r:.80}")
    return Message(role, content, name=None if name is None else str(name), created_at=at)


def _warn_of(metadata: Mapping[str, Any] | None) -> None:
    if metadata:
        log.warning("metadata is not kept: %s", ", ".join(map(str, metadata)))


def _positive(most: object) -> int:
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ValueError(f"top_k is {most!r}: it is a whole number, at least 1")
    return most


def _managed(config: Mapping[str, Any] | str) -> ManagedMemory:
    memory = open_memory(config)
    if not isinstance(memory, ManagedMemory):
        raise ConfigError(f"{memory.name!r} is a memory that cannot be managed", key="backend", value=config)
    return memory
