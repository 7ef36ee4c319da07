"""The task store on SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

from a2a.types import Message, SendMessageRequest, Task, TaskPushNotificationConfig, TaskState, TaskStatus
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError, UnsupportedOperationError

from retinue_memory import Memory
from retinue_memory.database.base import Alongside, Connection, Database
from retinue_memory.database.sqlite import named_queries
from retinue_memory.ids import new_id
from retinue_server.auth.owners import USER_ID
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import (
    TERMINAL,
    USER,
    Accepted,
    Caller,
    Continues,
    DuePush,
    DueWrite,
    FailedWrite,
    MemoryWrite,
    Progress,
    StaleAttempt,
    Turn,
    TurnState,
)

from .base import Listing, OwnedTask, Store
from .rows import (
    config_of,
    digest_of,
    named,
    new_task,
    now,
    numbered,
    scope_of,
    task_of,
    turn_of,
    write_of,
    write_values,
)

_FOLDER = files("retinue_server.runtime.store")
_SQL = named_queries(_FOLDER.joinpath("queries.sql").read_text(encoding="utf-8"))
_PURGED = ("steps", "turns", "events", "memory_outbox", "push_outbox", "push_configs", "tasks")
_LAST = (2**63 - 1, "")
_UNSORTED = (0, TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_COMPLETED)
"""What a list may ask for that no index has by itself: every state, and those that all tasks go through."""


class SQLiteStore(Store):
    """A `Store` in a `Database`, which it shares with whoever else keeps tables there."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def migrate(self) -> None:
        """Bring the tables up to date; blocks."""
        self._db.migrate("runtime", _FOLDER)

    async def accept(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Accepted:
        return await self._db.write(partial(_accept, caller, request, user, extensions), checked=True)

    async def record(self, progress: Progress) -> list[DueWrite]:
        return await self._db.write(partial(_record, progress), checked=True)

    async def mark(self, turn: Turn, state: TurnState) -> None:
        await self._write("mark_turn", {"id": turn.id, "attempt": turn.attempt, "state": state})

    async def reload(self, turn: Turn) -> Numbered[Task] | None:
        rows = await self._rows("reload", {"task_id": turn.task_id, "owner": turn.owner})
        return numbered(*rows[0]) if rows else None

    async def recover(self) -> list[Accepted]:
        return await self._db.write(_recover)

    async def steps(self, turn: Turn) -> dict[str, str | None]:
        return dict(await self._rows("steps_of_turn", (turn.id,)))

    async def task(self, caller: Caller, task_id: str) -> Numbered[Task] | None:
        rows = await self._rows("task", scope_of(caller) | {"task_id": task_id})
        return numbered(*rows[0]) if rows else None

    async def tasks(self, caller: Caller, listing: Listing) -> tuple[list[Numbered[Task]], int]:
        return await self._db.read(partial(_list, caller, listing))

    async def context(self, turn: Turn, limit: int) -> list[Task]:
        key = {"context_id": turn.context_id, "owner": turn.owner, "task_id": turn.task_id, "limit": limit}
        rows = await self._rows("context", scope_of(turn.caller) | key)
        return [task_of(*row) for row in reversed(rows)]

    async def end(
        self, caller: Caller, task: Task, found: TaskStatus, event: bytes, writes: Sequence[MemoryWrite] = ()
    ) -> list[DueWrite] | None:
        return await self._db.write(partial(_end, caller, task, found, event, writes))

    async def due_writes(self, memory: str, limit: int) -> list[DueWrite]:
        rows = await self._rows("due_writes", {"memory": memory, "now": now(), "limit": limit})
        return [DueWrite(id, task_id, tries, write_of(*write)) for id, task_id, tries, *write in rows]

    async def next_write(self, memory: str) -> int | None:
        return await self._first("next_write", (memory,))

    async def unconfirmed_writes(self) -> list[MemoryWrite]:
        return [write_of(*row) for row in await self._rows("unconfirmed_writes", ())]

    async def write_done(self, due: DueWrite) -> None:
        await self._db.write(partial(_write_done, due))

    def done_alongside(self, due: DueWrite, memory: Memory) -> Alongside | None:
        shared = getattr(memory, "database", None) is self._db
        return Alongside(partial(_write_done, due)) if shared else None

    async def write_failed(self, due: DueWrite, problem: str, retry_at: int | None) -> bool:
        return await self._db.write(partial(_write_failed, due, problem, retry_at))

    async def failed_writes(self, limit: int) -> list[FailedWrite]:
        rows = await self._rows("failed_writes", (limit,))
        return [FailedWrite(task_id, tries, problem, write_of(*write)) for task_id, tries, problem, *write in rows]

    async def retry_failed_writes(self, memory: str) -> list[MemoryWrite]:
        def operation(db: Connection) -> list[MemoryWrite]:
            db.execute(_SQL["tasks_of_failed_writes"], (memory,))
            return [write_of(*row) for row in db.execute(_SQL["retry_failed_writes"], {"memory": memory, "now": now()})]

        return await self._db.write(operation)

    async def due_pushes(self, limit: int) -> list[DuePush]:
        rows = await self._rows("due_pushes", {"now": now(), "limit": limit})
        return [DuePush(id, tries, payload, config_of(config)) for id, tries, payload, config in rows]

    async def next_push(self) -> int | None:
        return await self._first("next_push", ())

    async def push_done(self, due: DuePush) -> None:
        await self._write("delete_push", (due.id,))

    async def push_failed(self, due: DuePush, problem: str, retry_at: int | None) -> None:
        name = "bury_push" if retry_at is None else "retry_push"
        await self._write(name, {"id": due.id, "problem": problem, "due_at": retry_at})

    async def push_later(self, due: DuePush, at: int) -> None:
        await self._write("delay_push", {"id": due.id, "due_at": at})

    async def set_push_config(self, caller: Caller, config: TaskPushNotificationConfig) -> bool:
        key = {"task_id": config.task_id, "id": config.id, "config": config.SerializeToString()}

        def operation(db: Connection) -> bool:
            reachable = _reachable(db, caller, config.task_id)
            if reachable:
                db.execute(_SQL["set_push_config"], key)
            return reachable

        return await self._db.write(operation)

    async def push_configs(self, caller: Caller, task_id: str) -> list[TaskPushNotificationConfig] | None:
        def operation(db: Connection) -> list[TaskPushNotificationConfig] | None:
            if not _reachable(db, caller, task_id):
                return None
            return [config_of(row[0]) for row in db.execute(_SQL["push_configs"], {"task_id": task_id})]

        return await self._db.read(operation)

    async def delete_push_config(self, caller: Caller, task_id: str, config_id: str) -> bool:
        def operation(db: Connection) -> bool:
            reachable = _reachable(db, caller, task_id)
            if reachable:
                for name in ("delete_push_config", "delete_pushes_of_config"):
                    db.execute(_SQL[name], {"task_id": task_id, "id": config_id})
            return reachable

        return await self._db.write(operation)

    async def purge(self, before: int, limit: int) -> int:
        def operation(db: Connection) -> int:
            ids = db.execute(_SQL["purgeable"], {"before": before, "limit": limit}).fetchall()
            for table in _PURGED:
                db.executemany(_SQL[f"purge_{table}"], ids)
            return len(ids)

        return await self._db.write(operation)

    async def owned(self, tenant: str, owner: str, after: int, limit: int) -> list[OwnedTask]:
        values = {"tenant": tenant, "owner": owner, "after": after, "limit": limit}
        rows = await self._rows("owned", values)
        return [OwnedTask(place, agent, task_of(snapshot, memory)) for place, agent, snapshot, memory in rows]

    async def restore(self, tenant: str, owner: str, agent: str, task: Task) -> bool:
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
        return await self._db.write(lambda db: db.execute(_SQL["restore"], values).rowcount) == 1

    async def disown_writes(self, tenant: str, owner: str) -> int:
        values = {"tenant": tenant, "owner": owner}
        return await self._db.write(lambda db: db.execute(_SQL["erase_memory_outbox"], values).rowcount)

    async def erase(self, tenant: str, owner: str) -> dict[str, int]:
        values = {"tenant": tenant, "owner": owner}

        def operation(db: Connection) -> dict[str, int]:
            return {table: db.execute(_SQL[f"erase_{table}"], values).rowcount for table in _PURGED}

        return await self._db.write(operation)

    async def remains(self, tenant: str, owner: str) -> dict[str, int]:
        values = {"tenant": tenant, "owner": owner}

        def operation(db: Connection) -> dict[str, int]:
            counts = {table: db.execute(_SQL[f"count_{table}"], values).fetchone()[0] for table in _PURGED}
            return {table: count for table, count in counts.items() if count}

        return await self._db.read(operation)

    async def _rows(self, name: str, values: Mapping[str, Any] | tuple[Any, ...]) -> list[Any]:
        return await self._db.read(lambda db: db.execute(_SQL[name], values).fetchall())

    async def _first(self, name: str, values: tuple[Any, ...]) -> int | None:
        found: int | None = (await self._rows(name, values))[0][0]
        return found

    async def _write(self, name: str, values: Mapping[str, Any] | tuple[Any, ...]) -> None:
        await self._db.write(lambda db: db.execute(_SQL[name], values).rowcount)


# -- operations: each runs inside one transaction ------------------------------------------------------------------------


def _accept(
    caller: Caller, request: SendMessageRequest, user: str | None, extensions: frozenset[str], db: Connection
) -> Accepted:
    message = request.message
    found = _followed_up(caller, message, user, db) if message.task_id else None
    owner = found.owner if found else _owner(caller, message.context_id, message.message_id, user, db)
    scope = {"agent": caller.agent, "tenant": caller.tenant, "owner": owner}
    digest = digest_of(message)
    before = db.execute(_SQL["turn_of_message"], scope | {"message_id": message.message_id}).fetchone()
    if before is not None:
        return _replay(caller, digest, before, db)
    if owner.startswith(USER):
        request.metadata[USER_ID] = owner.removeprefix(USER)
    place = found.place() if found else _new_place(request, scope, db)
    message.context_id = place.task.context_id
    # from here on nothing may be refused
    values = scope | {
        "task_id": place.task.id,
        "context_id": place.task.context_id,
        "message_id": message.message_id,
        "digest": digest,
        "request": request.SerializeToString(),
        "extensions": " ".join(sorted(extensions)) if extensions else "",
        "follows": found is not None,
    }
    (turn_id,) = db.execute(_SQL["insert_turn"], values).fetchone()
    if found is None:
        values |= {
            "place": turn_id,
            "state": place.task.status.state,
            "now": place.task.status.timestamp.ToMicroseconds(),
            "snapshot": place.task.SerializeToString(),
        }
        db.execute(_SQL["insert_task"], values)
    pushes = request.configuration.HasField("task_push_notification_config")
    if pushes:
        config = request.configuration.task_push_notification_config
        config.task_id = place.task.id
        pushed = {"task_id": config.task_id, "id": config.id, "config": config.SerializeToString()}
        db.execute(_SQL["set_push_config"], pushed)
    turn = Turn(
        id=turn_id,
        attempt=1,
        caller=caller,
        owner=owner,
        task_id=place.task.id,
        context_id=place.task.context_id,
        request=request,
        new_task=found is None,
        new_context=place.new_context,
        extensions=extensions,
    )
    return Accepted(turn, place.task, generation=place.generation, pushes=pushes or place.pushes)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a message goes: its task, and whether nothing was said in the context before."""

    task: Task
    new_context: bool
    generation: int = 1
    pushes: bool = False


@dataclass(frozen=True, slots=True)
class _Followed:
    """The row of the task that a message names."""

    owner: str
    context_id: str
    state: TaskState
    snapshot: bytes
    memory: str | None
    generation: int
    pushes: bool

    def place(self) -> _Place:
        task = task_of(self.snapshot, self.memory)
        if self.state in TERMINAL:
            name = TaskState.Name(self.state).removeprefix("TASK_STATE_").lower()
            raise UnsupportedOperationError(f"task {task.id} has ended ({name}): send a message without a taskId")
        return _Place(task, new_context=False, generation=self.generation, pushes=bool(self.pushes))


def _followed_up(caller: Caller, message: Message, user: str | None, db: Connection) -> _Followed:
    row = db.execute(_SQL["task_for_turn"], scope_of(caller) | {"task_id": message.task_id}).fetchone()
    if row is None:
        raise TaskNotFoundError(f"there is no task {message.task_id}")
    found = _Followed(*row)
    if message.context_id and message.context_id != found.context_id:
        raise InvalidParamsError(f"contextId: task {message.task_id} is of another context")
    if user is not None and found.owner != caller.owner(user):
        raise InvalidParamsError("user_id: a follow-up cannot name another user than the one its task began with")
    return found


def _new_place(request: SendMessageRequest, scope: Mapping[str, Any], db: Connection) -> _Place:
    message = request.message
    given = {**scope, "context_id": message.context_id}
    known = message.context_id and db.execute(_SQL["context_is_known"], given).fetchone() is not None
    message.task_id = new_id()
    message.context_id = message.context_id or new_id()
    return _Place(new_task(request), new_context=not known)


def _owner(caller: Caller, context_id: str, message_id: str, user: str | None, db: Connection) -> str:
    """Whose a message without a taskId is: its user's, else its context's, else the caller's own.

    A message that was sent before stays whose it was, whoever uses a context of that name since.
    """
    own = caller.owner(user)
    if user is not None or not context_id:
        return own
    values = scope_of(caller) | {"context_id": context_id, "message_id": message_id}
    for name in ("owners_of_message", "owners_of_context"):
        owners = [row[0] for row in db.execute(_SQL[name], values)]
        if own in owners:
            return own
        if len(owners) == 1:
            found: str = owners[0]
            return found
    return own


def _replay(caller: Caller, digest: bytes, before: tuple[Any, ...], db: Connection) -> Accepted:
    turn_id, _, stored_digest, answer = before
    if digest != stored_digest:
        raise InvalidParamsError("messageId: it was used before, with another content; a new message needs a new id")
    cursor = db.execute(_SQL["turn_by_id"], (turn_id,))
    row = named(cursor, cursor.fetchone())
    message = None if answer is None else Message.FromString(answer)
    found = _accepted(row, caller)
    return replace(found, replay=True, over=row["state"] == TurnState.DONE, answer=message)


def _record(progress: Progress, db: Connection) -> list[DueWrite]:
    turn = progress.turn
    values: dict[str, Any] = {
        "id": turn.id,
        "attempt": turn.attempt,
        "task_id": turn.task_id,
        "state": progress.state,
        "status_at": progress.status_at,
        "snapshot": progress.snapshot,
        "seq": progress.generation,
        "hidden": progress.answer is not None,
        "memory": "pending" if progress.writes else None,
        "turn_state": TurnState.DONE if progress.done else TurnState.ASKED if progress.asked else TurnState.RUNNING,
        "answer": progress.answer.SerializeToString() if progress.answer is not None else None,
        "stepped": bool(progress.steps),
    }
    if db.execute(_SQL["record_task"], values).rowcount == 0:
        raise _obstacle(progress, values, db)
    # from here on nothing may be refused
    db.execute(_SQL["record_turn"], values)
    for step, result in progress.steps:
        db.execute(_SQL["record_step"], (turn.id, step, result))
    at = now()
    for payload in progress.pushes:
        db.execute(_SQL["record_push"], {"task_id": turn.task_id, "payload": payload, "now": at})
    return [DueWrite(_owe(turn.task_id, turn.id, write, at, db), turn.task_id, 0, write) for write in progress.writes]


def _owe(task_id: str, turn_id: int, write: MemoryWrite, at: int, db: Connection) -> int:
    values = (task_id, turn_id, *write_values(write), at)
    (write_id,) = db.execute(_SQL["record_write"], values).fetchone()
    return int(write_id)


def _obstacle(progress: Progress, values: Mapping[str, Any], db: Connection) -> StaleAttempt | Continues:
    """Why nothing was recorded."""
    turn = progress.turn
    ours, another_waits = db.execute(_SQL["obstacles"], values).fetchone()
    if not ours:
        return StaleAttempt(f"turn {turn.id}, attempt {turn.attempt}")
    if another_waits and progress.state == TaskState.TASK_STATE_COMPLETED:
        return Continues(turn.task_id)
    return StaleAttempt(f"task {turn.task_id} has ended")


def _recover(db: Connection) -> list[Accepted]:
    for name in ("drop_turns_of_ended_tasks", "close_turns_that_asked", "raise_attempts"):
        db.execute(_SQL[name])
    cursor = db.execute(_SQL["open_turns"])
    rows = [named(cursor, row) for row in cursor.fetchall()]
    return [_accepted(row, Caller(row["agent"], row["tenant"], row["owner"], row["owner"])) for row in rows]


def _accepted(row: Mapping[str, Any], caller: Caller) -> Accepted:
    """A turn that was accepted before."""
    turn = replace(turn_of(row, caller), new_context=False)
    return Accepted(turn, task_of(row["snapshot"], row["memory"]), generation=row["seq"], pushes=bool(row["pushes"]))


def _list(caller: Caller, listing: Listing, db: Connection) -> tuple[list[Numbered[Task]], int]:
    kind = "context" if listing.context_id else "agent" if caller.reach is None else "owner"
    before_at, before_id = listing.before or _LAST
    values = scope_of(caller) | {
        "context_id": listing.context_id,
        "state": listing.state,
        "after": listing.after,
        "before_at": before_at,
        "before_id": before_id,
    }
    found = kind if listing.context_id or listing.state in _UNSORTED else f"{kind}_by_state"
    counted = f"total_of_{kind}" if listing.after <= 0 and not listing.context_id else f"count_of_{found}"
    db.execute("BEGIN")  # page and total are of one moment
    try:
        total = db.execute(_SQL[counted], values).fetchone()[0] if listing.count else 0
        most = min(listing.size, total) if listing.count else listing.size  # what is not there is not looked for
        rows = db.execute(_SQL[f"tasks_of_{found}"], values | {"size": most}).fetchall()
    finally:
        db.execute("COMMIT")
    return [numbered(*row) for row in rows], total


def _end(
    caller: Caller,
    task: Task,
    found: TaskStatus,
    event: bytes,
    writes: Sequence[MemoryWrite],
    db: Connection,
) -> list[DueWrite] | None:
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
    at = now()
    db.execute(_SQL["record_push"], {"task_id": task.id, "payload": event, "now": at})
    ((began,),) = rows  # the turn that did: a task's place is its id
    return [DueWrite(_owe(task.id, began, write, at, db), task.id, 0, write) for write in writes]


def _write_done(due: DueWrite, db: Connection) -> None:
    db.execute(_SQL["delete_write"], (due.id,))
    db.execute(_SQL["write_stored"], {"task_id": due.task_id})


def _write_failed(due: DueWrite, problem: str, retry_at: int | None, db: Connection) -> bool:
    if retry_at is not None:
        values = {"id": due.id, "due_at": retry_at, "problem": problem}
        return bool(db.execute(_SQL["retry_write"], values).rowcount)
    found = bool(db.execute(_SQL["bury_write"], {"id": due.id, "problem": problem}).rowcount)
    if found:
        db.execute(_SQL["write_buried"], (due.task_id,))
    return found


def _reachable(db: Connection, caller: Caller, task_id: str) -> bool:
    return db.execute(_SQL["task_is_reachable"], scope_of(caller) | {"task_id": task_id}).fetchone() is not None
