"""UserData: erase, export and import everything that the server stores of a user."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2a.types import Task
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from retinue_memory import Memory, Scope
from retinue_memory.clock import now
from retinue_memory.errors import RetinueError

from .delivery.memory_outbox import Outbox
from .runtime.engine import Engine
from .runtime.store.store import Store
from .runtime.turn import USER

log = logging.getLogger(__name__)

_TASKS_PER_READ = 100
_NOT_READY = "it could not be created yet"


class ImportFailed(RetinueError):
    """A line is not one that `export` writes: import the file as it was exported."""


@dataclass(slots=True)
class _Erased:
    """What an erasure did so far."""

    deleted: Counter[str] = field(default_factory=Counter[str])
    """Rows by table."""
    left: dict[str, None] = field(default_factory=dict[str, None])
    """What could not be erased, and why: an ordered set."""
    failed: list[str] = field(default_factory=list[str])
    """The memories to erase again."""

    def fail(self, memory: str, reason: object) -> None:
        self.failed.append(memory)
        self.left[f"memory {memory}: not erased ({reason}): erase again"] = None


class UserData:
    """The memories and tasks of users, and their pending memory writes."""

    def __init__(self, memories: Mapping[str, Memory], store: Store, engine: Engine, outbox: Outbox) -> None:
        self._memories = memories
        self._owners = store.owners
        self._writes = store.memory_outbox
        self._database = store.database
        self._engine = engine
        self._outbox = outbox

    async def erase(self, tenant: str, user: str, *, tasks: bool) -> dict[str, Any]:
        """Delete the user's memories for good and, if `tasks`, also their tasks with steps and artifacts.

        Turns that run meanwhile write no memories of the user. The receipt counts the deleted rows by table, and names
        in `left` what was not reached; a memory that failed is in `failed`, and does not stop the others: erase again.
        """
        owner = USER + user
        await self._engine.disown(tenant, owner, cancel=tasks)
        erased = _Erased()
        erased.deleted["memory_outbox"] = await self._owners.disown_writes(tenant, owner)
        await self._outbox.drop(tenant, user)
        for name, memory in self._memories.items():
            await self._erase_memory(Scope(tenant, name, "user", user), memory, erased)
        if tasks:
            erased.deleted.update(await self._owners.erase(tenant, owner))
        if problem := await self._database.scrub():
            erased.left[problem] = None
        return {
            "user": user,
            "tenant": tenant,
            "at": now().isoformat(),
            "tasks": tasks,
            "deleted": dict(erased.deleted),
            "left": list(erased.left),
            "failed": erased.failed,
        }

    async def _erase_memory(self, scope: Scope, memory: Memory, erased: _Erased) -> None:
        name = scope.space
        if not memory.ready:
            erased.fail(name, _NOT_READY)
            return
        if memory.managed is None:
            erased.left[f"memory {name}: its backend cannot erase"] = None
            return
        try:
            receipt = await memory.managed.erase(scope)
        except Exception as error:
            log.warning("memory %s: erasing a user failed: %s", name, error, exc_info=_is_unexpected(error))
            erased.fail(name, error or type(error).__name__)
            return
        erased.left |= dict.fromkeys(receipt.left)
        erased.deleted.update(receipt.deleted)

    async def remains(self, tenant: str, user: str) -> dict[str, int]:
        """Count the user's rows by table. Tables without any are left out."""
        found = Counter(await self._owners.remains(tenant, USER + user))
        for name, memory in self._memories.items():
            if memory.managed is not None:
                found.update(await memory.managed.remains(Scope(tenant, name, "user", user)))
        return dict(found)

    @property
    def unmanaged(self) -> list[str]:
        """The memories that cannot say what they store of a user."""
        return [name for name, memory in self._memories.items() if memory.managed is None]

    async def failed_writes(self, limit: int) -> list[dict[str, Any]]:
        """The memory writes of all users that were given up, oldest first."""
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
        """Retry the memory writes that were given up. Returns their number."""
        return await self._outbox.retry()

    async def export(self, tenant: str, user: str) -> AsyncIterator[dict[str, Any]]:
        """Yield everything of the user as JSON values: `memory` lines with their space, `task` lines with their agent.

        If a memory fails, a `missing` line with its space stands for what it did not return, and the export goes on.
        """
        for name, memory in self._memories.items():
            problem = None if memory.ready else _NOT_READY
            if memory.managed is not None:
                try:
                    async for value in memory.managed.export(Scope(tenant, name, "user", user)):
                        yield {"type": "memory", "space": name, "memory": value}
                except Exception as error:
                    unexpected = _is_unexpected(error)
                    log.warning("memory %s: exporting a user failed: %s", name, error, exc_info=unexpected)
                    problem = "it failed; the server's log says why" if unexpected else str(error)
            if problem is not None:
                yield {"type": "missing", "space": name, "problem": problem}
        place = 0
        while page := await self._owners.owned(tenant, USER + user, place, _TASKS_PER_READ):
            for owned in page:
                place = owned.place
                yield {"type": "task", "agent": owned.agent, "task": MessageToDict(owned.task)}

    async def import_(self, tenant: str, user: str, values: AsyncIterator[Mapping[str, Any]]) -> dict[str, int]:
        """Store what `export` yielded as this user's, except what exists already. Returns the number of new rows by type.

        Raises ImportFailed at the first line that is not of an export; the lines before it stay imported.
        """
        new = {"memory": 0, "task": 0}
        lines = _Lines(values)
        try:
            while (line := await lines.peek()) is not None:
                match line.get("type"):
                    case "memory":
                        new["memory"] += await self._import_memories(tenant, user, lines, line)
                    case "task":
                        task = ParseDict(dict(line["task"]), Task())
                        new["task"] += await self._owners.restore(tenant, USER + user, str(line["agent"]), task)
                        lines.take()
                    case "missing":  # the export did not get it either
                        lines.take()
                    case _:
                        raise ImportFailed("expected a memory or a task of an export")
        except (RetinueError, ParseError, KeyError, TypeError, ValueError) as error:
            raise ImportFailed(f"line {lines.number}: {error}") from error
        return new

    async def _import_memories(self, tenant: str, user: str, lines: _Lines, line: Mapping[str, Any]) -> int:
        """Import the memories of one space that follow each other from `line` on."""
        space = str(line["space"])
        memory = self._memories.get(space)
        managed = memory.managed if memory is not None else None
        if managed is None:
            raise ImportFailed(f"there is no memory {space!r} here that can import")
        before = lines.number
        new: int = await managed.import_(Scope(tenant, space, "user", user), lines.memories(space))
        if lines.number == before and await lines.peek() is line:
            raise ImportFailed(f"memory {space} imported nothing of it")
        return new


def _is_unexpected(error: Exception) -> bool:
    """Whether the log needs the traceback."""
    return not isinstance(error, RetinueError)


class _Lines:
    """The lines of an export, with one line of lookahead."""

    def __init__(self, values: AsyncIterator[Mapping[str, Any]]) -> None:
        self._values = values
        self._next: Mapping[str, Any] | None = None
        self.number = 0
        """The number of the line that `peek` returned, from 1."""

    async def peek(self) -> Mapping[str, Any] | None:
        """The next line. Returns None after the last one."""
        if self._next is None:
            self._next = await anext(self._values, None)
            self.number += 1
        return self._next

    def take(self) -> None:
        self._next = None

    async def memories(self, space: str) -> AsyncIterator[Mapping[str, Any]]:
        """Take the memories of one space that follow each other from here on."""
        while (line := await self.peek()) is not None and (line.get("type"), line.get("space")) == ("memory", space):
            self.take()
            yield line["memory"]
