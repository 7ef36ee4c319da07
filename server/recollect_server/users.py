"""All that the server keeps of a user: memories in every memory of the config, tasks, and what they left on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from a2a.types import Task
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from recollect_memory import ManagedMemory, Memory, Scope
from recollect_memory.errors import RecollectError
from recollect_memory.sqlite import Database

from .runtime.engine import Engine
from .runtime.outbox import Outbox
from .runtime.store import Store
from .runtime.turn import USER

_TASKS_AT_ONCE = 100


class ImportFailed(RecollectError):
    """A line is not what an export writes: take the file as it was exported."""


class Users:
    """Erases, exports and imports users, each with everything of theirs."""

    def __init__(
        self, memories: Mapping[str, Memory], *, store: Store, engine: Engine, outbox: Outbox, database: Database
    ) -> None:
        self._memories = memories
        self._store = store
        self._engine = engine
        self._outbox = outbox
        self._database = database

    async def erase(self, tenant: str, user: str, *, tasks: bool) -> dict[str, Any]:
        """Delete the user's memories for good and, where `tasks`, their tasks with events, journals and artifacts.

        It wins over turns that run: what they would have remembered is dropped. The receipt says what went by table, and
        what could not be reached.
        """
        owner = USER + user
        await self._engine.disown(tenant, owner, cancel=tasks)
        deleted = {"memory_outbox": await self._store.disown_writes(tenant, owner)}
        await self._outbox.drop(tenant, user)
        left: list[str] = []
        for name, memory in self._memories.items():
            if isinstance(memory, ManagedMemory):
                receipt = await memory.erase(Scope(tenant, name, "user", user))
                left += receipt.left
                for table, count in receipt.deleted.items():
                    deleted[table] = deleted.get(table, 0) + count
            else:
                left.append(f"memory {name}: its backend offers no way to erase")
        if tasks:
            for table, count in (await self._store.erase(tenant, owner)).items():
                deleted[table] = deleted.get(table, 0) + count
        await self._database.scrub()
        at = datetime.now(UTC).isoformat()
        return {"user": user, "tenant": tenant, "at": at, "tasks": tasks, "deleted": deleted, "left": left}

    async def remains(self, tenant: str, user: str) -> dict[str, int]:
        """What is there of a user, by table; empty: nothing."""
        found = await self._store.remains(tenant, USER + user)
        for name, memory in self._memories.items():
            if isinstance(memory, ManagedMemory):
                for table, count in (await memory.remains(Scope(tenant, name, "user", user))).items():
                    found[table] = found.get(table, 0) + count
        return found

    async def export(self, tenant: str, user: str) -> AsyncIterator[dict[str, Any]]:
        """Everything of the user as JSON values: `memory` lines with their space, `task` lines with their agent."""
        for name, memory in self._memories.items():
            if isinstance(memory, ManagedMemory):
                async for value in memory.export(Scope(tenant, name, "user", user)):
                    yield {"type": "memory", "space": name, "memory": value}
        place = 0
        while page := await self._store.owned(tenant, USER + user, place, _TASKS_AT_ONCE):
            for owned in page:
                place = owned.place
                yield {"type": "task", "agent": owned.agent, "task": MessageToDict(owned.task)}

    async def import_(self, tenant: str, user: str, values: AsyncIterator[Mapping[str, Any]]) -> dict[str, int]:
        """Take what `export` gave, for this user. How much was new, by type, and how much was known and stays as it is.

        Raises ImportFailed at the first line that is not of an export; the lines before it are taken.
        """
        new = {"memory": 0, "task": 0, "known": 0}
        number = 0
        async for value in values:
            number += 1
            try:
                new[await self._import_one(tenant, user, value)] += 1
            except (ImportFailed, ParseError, KeyError, TypeError, ValueError) as error:
                raise ImportFailed(f"line {number}: {error}") from error
        return new

    async def _import_one(self, tenant: str, user: str, value: Mapping[str, Any]) -> str:
        """Take one line; what was new: "memory", "task", or "known"."""
        kind = value.get("type")
        content = value.get(str(kind))
        if kind == "memory" and isinstance(content, dict):
            scope = Scope(tenant, str(value["space"]), "user", user)
            return kind if await self._import_memory(scope, cast("dict[str, Any]", content)) else "known"
        if kind == "task" and isinstance(content, dict):
            task = ParseDict(cast("dict[str, Any]", content), Task())
            return kind if await self._store.restore(tenant, USER + user, str(value["agent"]), task) else "known"
        raise ImportFailed("is neither a memory nor a task of an export")

    async def _import_memory(self, scope: Scope, value: Mapping[str, Any]) -> int:
        memory = self._memories.get(scope.space)
        if not isinstance(memory, ManagedMemory):
            raise ImportFailed(f"there is no memory {scope.space!r} here that can import")

        async def one() -> AsyncIterator[Mapping[str, Any]]:
            yield value

        return await memory.import_(scope, one())
