"""Everything that the runtime stores of one owner: to export, import and erase it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from a2a.types import Task

from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import load_queries

from .rows import SQL_FOLDER, task_of
from .tasks import TABLES

_SQL = load_queries(SQL_FOLDER, "owner_data.sql")


@dataclass(frozen=True, slots=True)
class OwnedTask:
    """A task as its owner exports it. `place` grows from task to task of one owner."""

    place: int
    agent: str
    task: Task


def owned(tenant: str, owner: str, after: int, limit: int, db: Connection) -> list[OwnedTask]:
    rows = db.execute(_SQL["owned"], {"tenant": tenant, "owner": owner, "after": after, "limit": limit})
    return [OwnedTask(place, agent, task_of(snapshot, memory)) for place, agent, snapshot, memory in rows]


def restore(tenant: str, owner: str, agent: str, task: Task, db: Connection) -> bool:
    values = {
        "task_id": task.id,
        "agent": agent,
        "tenant": tenant,
        "owner": owner,
        "context_id": task.context_id,
        "state": task.status.state,
        "now": task.status.timestamp.ToMicroseconds(),
        "snapshot": task.SerializeToString(),
    }
    return db.execute(_SQL["restore"], values).rowcount == 1


def disown_writes(tenant: str, owner: str, db: Connection) -> int:
    return db.execute(_SQL["erase_memory_outbox"], {"tenant": tenant, "owner": owner}).rowcount


def erase(tenant: str, owner: str, db: Connection) -> dict[str, int]:
    values = {"tenant": tenant, "owner": owner}
    return {table: db.execute(_SQL[f"erase_{table}"], values).rowcount for table in TABLES}


def remains(tenant: str, owner: str, db: Connection) -> dict[str, int]:
    values = {"tenant": tenant, "owner": owner}
    counts = {table: db.execute(_SQL[f"count_{table}"], values).fetchone()[0] for table in TABLES}
    return {table: count for table, count in counts.items() if count}


class OwnerData:
    """The rows of one owner. Everything raises StoreError if the database fails."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def owned(self, tenant: str, owner: str, after: int, limit: int) -> list[OwnedTask]:
        """An owner's tasks of every agent, oldest first, starting behind the place `after`."""
        return await self._db.read(partial(owned, tenant, owner, after, limit))

    async def restore(self, tenant: str, owner: str, agent: str, task: Task) -> bool:
        """Store an exported task. Returns False and writes nothing if its id is taken."""
        return await self._db.write(partial(restore, tenant, owner, agent, task))

    async def disown_writes(self, tenant: str, owner: str) -> int:
        """Delete an owner's pending and given-up memory writes. Returns how many there were."""
        return await self._db.write(partial(disown_writes, tenant, owner))

    async def erase(self, tenant: str, owner: str) -> dict[str, int]:
        """Delete an owner's tasks with all of their rows. Returns the number of deleted rows by table."""
        return await self._db.write(partial(erase, tenant, owner))

    async def remains(self, tenant: str, owner: str) -> dict[str, int]:
        """The number of rows of an owner by table, without the tables that have none."""
        return await self._db.read(partial(remains, tenant, owner))
