"""Stored tasks: one, a page, the history of a context; and their purge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from a2a.types import Task, TaskState

from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import load_queries
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import Caller, Turn

from .rows import SQL_FOLDER, numbered, scope_of, task_of

_SQL = load_queries(SQL_FOLDER, "tasks.sql")
TABLES = ("steps", "turns", "memory_outbox", "push_outbox", "push_configs", "tasks")
"""The tables with rows of a task, in an order in which they can be deleted."""
_START = (2**63 - 1, "")
_STATES_WITHOUT_INDEX = (0, TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_COMPLETED)
"""0, any state, and the states that every task goes through: all tasks are read for them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of tasks. Times are in microseconds since the epoch."""

    context_id: str = ""
    """Empty: any."""
    state: int = 0
    """A TaskState; 0: any."""
    after: int = 0
    """Only tasks whose status is newer."""
    size: int = 50
    before: tuple[int, str] | None = None
    """Time of the status and id of the last task of the page before."""
    count: bool = True
    """Whether to count the tasks."""


def get(caller: Caller, task_id: str, db: Connection) -> Numbered[Task] | None:
    row = db.execute(_SQL["task"], scope_of(caller) | {"task_id": task_id}).fetchone()
    return numbered(*row) if row else None


def page(caller: Caller, listing: Listing, db: Connection) -> tuple[list[Numbered[Task]], int]:
    """The tasks of a page, newest status first, and the number of tasks on all pages; 0 if it is not to be counted."""
    rows_from, total_from = _statements(caller, listing)
    before_at, before_id = listing.before or _START
    values: dict[str, Any] = scope_of(caller) | {
        "context_id": listing.context_id,
        "state": listing.state,
        "after": listing.after,
        "before_at": before_at,
        "before_id": before_id,
    }
    total = db.execute(_SQL[total_from], values).fetchone()[0] if listing.count else 0
    size = min(listing.size, total) if listing.count else listing.size  # stops the search for rows that do not exist
    rows = db.execute(_SQL[rows_from], values | {"size": size}).fetchall()
    return [numbered(*row) for row in rows], total


def _statements(caller: Caller, listing: Listing) -> tuple[str, str]:
    """The statements for the rows and for the total, by the index that serves them best."""
    if listing.context_id:
        return "tasks_of_context", "count_of_context"
    kind = "agent" if caller.visible_owner is None else "owner"
    by = kind if listing.state in _STATES_WITHOUT_INDEX else f"{kind}_by_state"
    return f"tasks_of_{by}", f"total_of_{kind}" if listing.after <= 0 else f"count_of_{by}"


def context(turn: Turn, limit: int, db: Connection) -> list[Task]:
    """The newest tasks of the turn's context up to its own, oldest first, `limit` at most."""
    values = scope_of(turn.caller) | {
        "context_id": turn.context_id,
        "owner": turn.owner,
        "task_id": turn.task_id,
        "limit": limit,
    }
    return [task_of(*row) for row in reversed(db.execute(_SQL["context"], values).fetchall())]


def purge(before: int, limit: int, db: Connection) -> int:
    """Delete up to `limit` tasks that ended before a time in microseconds since the epoch. Returns how many were deleted."""
    ids = db.execute(_SQL["purgeable"], {"before": before, "limit": limit}).fetchall()
    for table in TABLES:
        db.executemany(_SQL[f"purge_{table}"], ids)
    return len(ids)


class Tasks:
    """Stored tasks as callers see them. Everything raises StoreError if the database fails; other owners' tasks do not exist."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def get(self, caller: Caller, task_id: str) -> Numbered[Task] | None:
        return await self._db.read(partial(get, caller, task_id))

    async def page(self, caller: Caller, listing: Listing) -> tuple[list[Numbered[Task]], int]:
        """The tasks of a page, newest status first, and the number of tasks on all pages; 0 if it is not to be counted."""
        return await self._db.read(partial(page, caller, listing))

    async def context(self, turn: Turn, limit: int) -> list[Task]:
        """The newest tasks of the turn's context up to its own, oldest first, `limit` at most."""
        return await self._db.read(partial(context, turn, limit))

    async def purge(self, before: int, limit: int) -> int:
        """Delete up to `limit` tasks that ended before a time in microseconds since the epoch, with all of their rows.

        Spares those that a turn, a memory write or a push still needs. Returns how many were deleted.
        """
        return await self._db.write(partial(purge, before, limit))
