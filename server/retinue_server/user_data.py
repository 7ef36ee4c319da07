"""All that the server keeps of a user: memories in every memory of the config, tasks, and what they left on the way."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from a2a.types import Task
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from retinue_memory import ManagedMemory, Memory, Scope
from retinue_memory.database.base import Database
from retinue_memory.errors import RetinueError

from .delivery.isolation import IsolatedMemory
from .delivery.memory_outbox import Outbox
from .runtime.engine import Engine
from .runtime.store.memory_outbox import MemoryOutboxRows
from .runtime.store.owner_data import OwnerData
from .runtime.turn import USER

log = logging.getLogger(__name__)

_TASKS_AT_ONCE = 100
_NOT_READY = "it could not be made yet"


class ImportFailed(RetinueError):
    """A line is not what an export writes: take the file as it was exported."""


class UserData:
    """Erases, exports and imports users, each with everything of theirs."""

    def __init__(
        self,
        memories: Mapping[str, Memory],
        *,
        owners: OwnerData,
        writes: MemoryOutboxRows,
        engine: Engine,
        outbox: Outbox,
        database: Database,
    ) -> None:
        self._memories = memories
        self._owners = owners
        self._writes = writes
        self._engine = engine
        self._outbox = outbox
        self._database = database

    async def erase(self, tenant: str, user: str, *, tasks: bool) -> dict[str, Any]:
        """Delete the user's memories for good and, where `tasks`, their tasks with journals and artifacts.

        It wins over turns that run: what they would have remembered is dropped. The receipt says what went by table, and
        what could not be reached; a memory that fails is in `failed` by its name, and holds up nothing else: erase again.
        """
        owner = USER + user
        await self._engine.disown(tenant, owner, cancel=tasks)
        deleted = {"memory_outbox": await self._owners.disown_writes(tenant, owner)}
        await self._outbox.drop(tenant, user)
        left: dict[str, None] = {}
        failed: list[str] = []
        for name, memory in self._memories.items():
            if _is_unmade(memory):
                failed.append(name)
                left[f"memory {name}: not erased ({_NOT_READY}): erase again"] = None
                continue
            if not isinstance(memory, ManagedMemory):
                left[f"memory {name}: its backend offers no way to erase"] = None
                continue
            try:
                receipt = await memory.erase(Scope(tenant, name, "user", user))
            except Exception as error:
                unexpected = not isinstance(error, RetinueError)
                log.warning("memory %s: a user could not be erased: %s", name, error, exc_info=unexpected)
                failed.append(name)
                left[f"memory {name}: not erased ({error or type(error).__name__}): erase again"] = None
                continue
            left |= dict.fromkeys(receipt.left)
            for table, count in receipt.deleted.items():
                deleted[table] = deleted.get(table, 0) + count
        if tasks:
            for table, count in (await self._owners.erase(tenant, owner)).items():
                deleted[table] = deleted.get(table, 0) + count
        problem = await self._database.scrub()
        left |= dict.fromkeys((problem,) if problem else ())
        at = datetime.now(UTC).isoformat()
        of = {"user": user, "tenant": tenant, "at": at, "tasks": tasks}
        return {**of, "deleted": deleted, "left": list(left), "failed": failed}

    async def remains(self, tenant: str, user: str) -> dict[str, int]:
        """What is there of a user, by table; empty: nothing."""
        found = await self._owners.remains(tenant, USER + user)
        for name, memory in self._memories.items():
            if isinstance(memory, ManagedMemory):
                for table, count in (await memory.remains(Scope(tenant, name, "user", user))).items():
                    found[table] = found.get(table, 0) + count
        return found

    @property
    def unmanaged(self) -> list[str]:
        """The memories that cannot tell what they keep of a user."""
        return [name for name, memory in self._memories.items() if not isinstance(memory, ManagedMemory)]

    async def failed_writes(self, limit: int) -> list[dict[str, Any]]:
        """The memory writes that were given up, of all users, oldest first, each with its task and its last problem."""
        return [
            {
                "memory": failed.write.memory,
                "user": failed.write.context.user_id,
                "task": failed.task_id,
                "tries": failed.tries,
                "problem": failed.problem,
            }
            for failed in await self._writes.failed_writes(limit)
        ]

    async def retry_writes(self) -> int:
        """Try again what was given up; how many writes."""
        return await self._outbox.retry()

    async def export(self, tenant: str, user: str) -> AsyncIterator[dict[str, Any]]:
        """Everything of the user as JSON values: `memory` lines with their space, `task` lines with their agent.

        A memory that fails keeps nothing else back: a `missing` line names its space, and stands for what it has not given.
        """
        for name, memory in self._memories.items():
            problem = _NOT_READY if _is_unmade(memory) else None
            if isinstance(memory, ManagedMemory):
                try:
                    async for value in memory.export(Scope(tenant, name, "user", user)):
                        yield {"type": "memory", "space": name, "memory": value}
                except Exception as error:
                    unexpected = not isinstance(error, RetinueError)
                    log.warning("memory %s: a user could not be exported: %s", name, error, exc_info=unexpected)
                    problem = str(error) if not unexpected else "it failed; the server's log says why"
            if problem is not None:
                yield {"type": "missing", "space": name, "problem": problem}
        place = 0
        while page := await self._owners.owned(tenant, USER + user, place, _TASKS_AT_ONCE):
            for owned in page:
                place = owned.place
                yield {"type": "task", "agent": owned.agent, "task": MessageToDict(owned.task)}

    async def import_(self, tenant: str, user: str, values: AsyncIterator[Mapping[str, Any]]) -> dict[str, int]:
        """Take what `export` gave, for this user. What is there already stays. How much was new, by type.

        Raises ImportFailed at the first line that is not of an export; what was taken before it stays.
        """
        new = {"memory": 0, "task": 0}
        lines = _Lines(values)
        try:
            while (line := await lines.peek()) is not None:
                match line.get("type"):
                    case "memory":
                        space = str(line["space"])
                        memory = self._memories.get(space)
                        if not isinstance(memory, ManagedMemory):
                            raise ImportFailed(f"there is no memory {space!r} here that can import")
                        at = lines.number
                        new["memory"] += await memory.import_(Scope(tenant, space, "user", user), lines.memories(space))
                        if lines.number == at and await lines.peek() is line:
                            raise ImportFailed(f"memory {space} took nothing of it")
                    case "task":
                        task = ParseDict(dict(line["task"]), Task())
                        new["task"] += await self._owners.restore(tenant, USER + user, str(line["agent"]), task)
                        lines.take()
                    case "missing":  # what the export could not give either
                        lines.take()
                    case _:
                        raise ImportFailed("is neither a memory nor a task of an export")
        except (RetinueError, ParseError, KeyError, TypeError, ValueError) as error:
            raise ImportFailed(f"line {lines.number}: {error}") from error
        return new


def _is_unmade(memory: Memory) -> bool:
    """Whether it is too early to say what a memory keeps."""
    return isinstance(memory, IsolatedMemory) and not memory.ready


class _Lines:
    """The lines of an export, one looked at before it is taken. `number` is that line's."""

    def __init__(self, values: AsyncIterator[Mapping[str, Any]]) -> None:
        self._values = values
        self._next: Mapping[str, Any] | None = None
        self.number = 0

    async def peek(self) -> Mapping[str, Any] | None:
        """The next line; None: there is none."""
        if self._next is None:
            self._next = await anext(self._values, None)
            self.number += 1
        return self._next

    def take(self) -> None:
        self._next = None

    async def memories(self, space: str) -> AsyncIterator[Mapping[str, Any]]:
        """The memories of one space that follow each other from here on."""
        while (line := await self.peek()) is not None and (line.get("type"), line.get("space")) == ("memory", space):
            self.take()
            yield line["memory"]
