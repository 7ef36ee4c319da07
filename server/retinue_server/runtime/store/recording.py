"""Writing what a turn did, and the end of a task that has no running turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from a2a.types import Task, TaskState, TaskStatus

from retinue_memory.clock import now_us
from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import load_queries
from retinue_server.runtime.turn import (
    Caller,
    Continues,
    DueWrite,
    MemoryWrite,
    Progress,
    StaleAttempt,
    Turn,
    TurnState,
)

from . import memory_outbox, push
from .rows import SQL_FOLDER, scope_of

_SQL = load_queries(SQL_FOLDER, "recording.sql")


def record(progress: Progress, db: Connection) -> list[DueWrite]:
    """Write what a turn did. Returns its memory writes, now pending. Raises before its first write, or not at all."""
    turn = progress.turn
    values: dict[str, Any] = {
        "id": turn.id,
        "attempt": turn.attempt,
        "task_id": turn.task_id,
        "state": progress.state,
        "status_at": progress.status_at,
        "snapshot": progress.snapshot,
        "generation": progress.generation,
        "hidden": progress.answer is not None,
        "memory": "pending" if progress.writes else None,
        "turn_state": TurnState.DONE if progress.done else TurnState.ASKED if progress.asked else TurnState.RUNNING,
        "answer": progress.answer.SerializeToString() if progress.answer is not None else None,
        "stepped": bool(progress.steps),
    }
    if db.execute(_SQL["record_task"], values).rowcount == 0:
        raise _refusal(progress, values, db)
    # from here on nothing may be refused
    db.execute(_SQL["record_turn"], values)
    for step, result in progress.steps:
        db.execute(_SQL["record_step"], (turn.id, step, result))
    at = now_us()
    for payload in progress.pushes:
        push.insert(turn.task_id, payload, at, db)
    return [memory_outbox.insert(turn.task_id, turn.id, write, at, db) for write in progress.writes]


def end(
    caller: Caller, task: Task, found: TaskStatus, event: bytes, writes: Sequence[MemoryWrite], db: Connection
) -> list[DueWrite] | None:
    """Write the end of a task that has no running turn. Returns its memory writes, now pending.

    Returns None and writes nothing if the task's status is not `found` any more. `event` is pushed to the task's configs.
    """
    values = scope_of(caller) | {
        "task_id": task.id,
        "state": task.status.state,
        "status_at": task.status.timestamp.ToMicroseconds(),
        "snapshot": task.SerializeToString(),
        "memory": "pending" if writes else None,
        "found": found.state,
        "found_at": found.timestamp.ToMicroseconds(),
    }
    rows = db.execute(_SQL["end_task"], values).fetchall()
    if not rows:
        return None
    at = now_us()
    push.insert(task.id, event, at, db)
    ((first_turn,),) = rows  # a task's place is the id of its first turn
    return [memory_outbox.insert(task.id, first_turn, write, at, db) for write in writes]


def mark(turn: Turn, state: TurnState, db: Connection) -> None:
    """Set the state of an open turn, unless another attempt owns it."""
    db.execute(_SQL["mark_turn"], {"id": turn.id, "attempt": turn.attempt, "state": state})


def _refusal(progress: Progress, values: Mapping[str, Any], db: Connection) -> StaleAttempt | Continues:
    """The reason why nothing was recorded."""
    turn = progress.turn
    current, another_waits = db.execute(_SQL["obstacles"], values).fetchone()
    if not current:
        return StaleAttempt(f"turn {turn.id}, attempt {turn.attempt}")
    if another_waits and progress.state == TaskState.TASK_STATE_COMPLETED:
        return Continues(turn.task_id)
    return StaleAttempt(f"task {turn.task_id} has ended")
