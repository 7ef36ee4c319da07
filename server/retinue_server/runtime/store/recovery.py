"""Resuming turns: after a crash, or after they waited."""

from __future__ import annotations

from a2a.types import Task

from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import load_queries
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import Accepted, Caller, Turn

from .rows import SQL_FOLDER, accepted_of, named, numbered

_SQL = load_queries(SQL_FOLDER, "recovery.sql")


def recover(db: Connection) -> list[Accepted]:
    """The open turns, oldest first, each with its attempt raised and marked as waiting."""
    for name in ("drop_turns_of_ended_tasks", "close_turns_that_asked", "raise_attempts"):
        db.execute(_SQL[name])
    cursor = db.execute(_SQL["open_turns"])
    rows = [named(cursor, row) for row in cursor.fetchall()]
    return [accepted_of(row, Caller(row["agent"], row["tenant"], row["owner"], row["owner"])) for row in rows]


def reload(turn: Turn, db: Connection) -> Numbered[Task] | None:
    """The task of a turn that waited. Returns None if it was deleted."""
    row = db.execute(_SQL["reload"], {"task_id": turn.task_id, "owner": turn.owner}).fetchone()
    return numbered(*row) if row else None


def steps(turn: Turn, db: Connection) -> dict[str, str | None]:
    """The journal of a turn: results as JSON by key; None for a step that was started and must not be repeated."""
    return dict(db.execute(_SQL["steps_of_turn"], (turn.id,)).fetchall())
