"""The memory outbox: writes that finished steps and turns left for their memories."""

from __future__ import annotations

from functools import partial

from retinue_memory.clock import now_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import load_queries
from retinue_server.runtime.turn import DueWrite, FailedWrite, MemoryWrite

from .rows import SQL_FOLDER, write_of, write_values

_SQL = load_queries(SQL_FOLDER, "memory_outbox.sql")


def insert(task_id: str, turn_id: int, write: MemoryWrite, due_at: int, db: Connection) -> DueWrite:
    values = (task_id, turn_id, *write_values(write), due_at)
    (write_id,) = db.execute(_SQL["insert_write"], values).fetchone()
    return DueWrite(int(write_id), task_id, 0, write)


def due_writes(memory: str, limit: int, db: Connection) -> list[DueWrite]:
    rows = db.execute(_SQL["due_writes"], {"memory": memory, "now": now_us(), "limit": limit})
    return [DueWrite(id, task_id, tries, write_of(*write)) for id, task_id, tries, *write in rows]


def next_write(memory: str, db: Connection) -> int | None:
    due_at: int | None = db.execute(_SQL["next_write"], (memory,)).fetchone()[0]
    return due_at


def unconfirmed_writes(db: Connection) -> list[MemoryWrite]:
    return [write_of(*row) for row in db.execute(_SQL["unconfirmed_writes"])]


def write_done(due: DueWrite, db: Connection) -> None:
    """Delete a delivered write, and note on its task that it is stored. Does nothing if the write is gone already."""
    db.execute(_SQL["delete_write"], (due.id,))
    db.execute(_SQL["write_stored"], {"task_id": due.task_id})


def write_failed(due: DueWrite, problem: str, retry_at: int | None, db: Connection) -> bool:
    if retry_at is not None:
        values = {"id": due.id, "due_at": retry_at, "problem": problem}
        return bool(db.execute(_SQL["retry_write"], values).rowcount)
    pending = bool(db.execute(_SQL["bury_write"], {"id": due.id, "problem": problem}).rowcount)
    if pending:
        db.execute(_SQL["write_buried"], (due.task_id,))
    return pending


def failed_writes(limit: int, db: Connection) -> list[FailedWrite]:
    rows = db.execute(_SQL["failed_writes"], (limit,))
    return [FailedWrite(task_id, tries, problem, write_of(*write)) for task_id, tries, problem, *write in rows]


def retry_failed_writes(memory: str, db: Connection) -> list[MemoryWrite]:
    db.execute(_SQL["tasks_of_failed_writes"], (memory,))
    return [write_of(*row) for row in db.execute(_SQL["retry_failed_writes"], {"memory": memory, "now": now_us()})]


class MemoryOutboxRows:
    """The rows of the memory outbox. Times are in microseconds since the epoch. Everything raises StoreError if the database
    fails.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    async def due_writes(self, memory: str, limit: int) -> list[DueWrite]:
        """The writes to a memory that are due, oldest first. A scope's later writes wait for the retry of an earlier one."""
        return await self.database.read(partial(due_writes, memory, limit))

    async def next_write(self, memory: str) -> int | None:
        """The time at which the next write to a memory is due. Returns None if none is pending."""
        return await self.database.read(partial(next_write, memory))

    async def unconfirmed_writes(self) -> list[MemoryWrite]:
        """Every pending write, which recall has to overlay until it is done."""
        return await self.database.read(unconfirmed_writes)

    async def write_done(self, due: DueWrite) -> None:
        """Delete a delivered write, and note on its task that it is stored."""
        await self.database.write(partial(write_done, due))

    async def write_failed(self, due: DueWrite, problem: str, retry_at: int | None) -> bool:
        """Retry a write at `retry_at`, or give it up if that is None. Returns False if the write is not pending any more."""
        return await self.database.write(partial(write_failed, due, problem, retry_at))

    async def failed_writes(self, limit: int) -> list[FailedWrite]:
        """The writes that were given up, oldest first."""
        return await self.database.read(partial(failed_writes, limit))

    async def retry_failed_writes(self, memory: str) -> list[MemoryWrite]:
        """Make the given-up writes of a memory due again, each as tried once. Returns them in no order."""
        return await self.database.write(partial(retry_failed_writes, memory))
