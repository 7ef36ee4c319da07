"""Push notification configs of tasks, and the push outbox."""

from __future__ import annotations

from functools import partial

from a2a.types import TaskPushNotificationConfig

from retinue_memory.clock import now_us
from retinue_memory.database.base import Connection, Database
from retinue_memory.database.migrations import load_queries
from retinue_server.runtime.turn import Caller, DuePush

from .rows import SQL_FOLDER, config_of, scope_of

_SQL = load_queries(SQL_FOLDER, "push.sql")


def insert_config(config: TaskPushNotificationConfig, db: Connection) -> None:
    values = {"task_id": config.task_id, "id": config.id, "config": config.SerializeToString()}
    db.execute(_SQL["set_push_config"], values)


def set_config(caller: Caller, config: TaskPushNotificationConfig, db: Connection) -> bool:
    visible = _is_visible(caller, config.task_id, db)
    if visible:
        insert_config(config, db)
    return visible


def configs(caller: Caller, task_id: str, db: Connection) -> list[TaskPushNotificationConfig] | None:
    if not _is_visible(caller, task_id, db):
        return None
    return [config_of(blob) for (blob,) in db.execute(_SQL["push_configs"], {"task_id": task_id})]


def delete_config(caller: Caller, task_id: str, config_id: str, db: Connection) -> bool:
    """Delete a config and the pushes to it."""
    visible = _is_visible(caller, task_id, db)
    if visible:
        for name in ("delete_push_config", "delete_pushes_of_config"):
            db.execute(_SQL[name], {"task_id": task_id, "id": config_id})
    return visible


def insert(task_id: str, payload: bytes, due_at: int, db: Connection) -> None:
    """Add a push of `payload`, a serialised StreamResponse, to each of the task's configs."""
    db.execute(_SQL["insert_push"], {"task_id": task_id, "payload": payload, "now": due_at})


def due_pushes(limit: int, db: Connection) -> list[DuePush]:
    rows = db.execute(_SQL["due_pushes"], {"now": now_us(), "limit": limit})
    return [DuePush(id, tries, payload, config_of(config)) for id, tries, payload, config in rows]


def next_push(db: Connection) -> int | None:
    due_at: int | None = db.execute(_SQL["next_push"]).fetchone()[0]
    return due_at


def push_done(due: DuePush, db: Connection) -> None:
    db.execute(_SQL["delete_push"], (due.id,))


def push_failed(due: DuePush, problem: str, retry_at: int | None, db: Connection) -> None:
    name = "bury_push" if retry_at is None else "retry_push"
    db.execute(_SQL[name], {"id": due.id, "problem": problem, "due_at": retry_at})


def push_later(due: DuePush, at: int, db: Connection) -> None:
    db.execute(_SQL["delay_push"], {"id": due.id, "due_at": at})


def _is_visible(caller: Caller, task_id: str, db: Connection) -> bool:
    return db.execute(_SQL["task_is_visible"], scope_of(caller) | {"task_id": task_id}).fetchone() is not None


class PushRows:
    """The rows of push configs and of the push outbox. Times are in microseconds since the epoch. Everything raises StoreError
    if the database fails.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    async def set_push_config(self, caller: Caller, config: TaskPushNotificationConfig) -> bool:
        """Add or replace a config. Returns False if the caller has no such task."""
        return await self._db.write(partial(set_config, caller, config))

    async def push_configs(self, caller: Caller, task_id: str) -> list[TaskPushNotificationConfig] | None:
        """The configs of a task by id. Returns None if the caller has no such task."""
        return await self._db.read(partial(configs, caller, task_id))

    async def delete_push_config(self, caller: Caller, task_id: str, config_id: str) -> bool:
        """Delete a config and the pushes to it. Returns False if the caller has no such task."""
        return await self._db.write(partial(delete_config, caller, task_id, config_id))

    async def due_pushes(self, limit: int) -> list[DuePush]:
        """The first undelivered push of each config, if it is due."""
        return await self._db.read(partial(due_pushes, limit))

    async def next_push(self) -> int | None:
        """The time at which the next push is due. Returns None if none is pending."""
        return await self._db.read(next_push)

    async def push_done(self, due: DuePush) -> None:
        await self._db.write(partial(push_done, due))

    async def push_failed(self, due: DuePush, problem: str, retry_at: int | None) -> None:
        """Retry a push at `retry_at`, or give it up if that is None."""
        await self._db.write(partial(push_failed, due, problem, retry_at))

    async def push_later(self, due: DuePush, at: int) -> None:
        """Delay a push without counting a try."""
        await self._db.write(partial(push_later, due, at))
