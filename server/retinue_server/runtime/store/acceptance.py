"""Accepting a message: a new turn, of a new task or of the one that the message follows up, or the replay of an old turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from a2a.types import Message, SendMessageRequest, Task, TaskState
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError, UnsupportedOperationError

from retinue_memory.clock import now_us
from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import load_queries
from retinue_memory.ids import new_id
from retinue_server.auth.owners import USER_ID
from retinue_server.runtime.turn import TERMINAL, USER, Accepted, Caller, Turn, TurnState

from . import push
from .rows import SQL_FOLDER, accepted_of, digest_of, named, scope_of, task_of

_SQL = load_queries(SQL_FOLDER, "acceptance.sql")


def accept(
    caller: Caller, request: SendMessageRequest, user: str | None, extensions: frozenset[str], db: Connection
) -> Accepted:
    """Store a message and its turn, and a new task if the message names none. Raises before its first write, or not at all.

    Fills in the ids of `request.message`, and the user in the metadata of `request`.
    """
    message = request.message
    followed = _followed(caller, message, user, db) if message.task_id else None
    owner = followed.owner if followed else _owner(caller, message.context_id, message.message_id, user, db)
    scope = {"agent": caller.agent, "tenant": caller.tenant, "owner": owner}
    digest = digest_of(message)
    before = db.execute(_SQL["turn_of_message"], scope | {"message_id": message.message_id}).fetchone()
    if before is not None:
        return _replay(caller, digest, before, db)
    if owner.startswith(USER):
        request.metadata[USER_ID] = owner.removeprefix(USER)
    target = followed.target() if followed else _new_target(request, scope, db)
    message.context_id = target.task.context_id
    # from here on nothing may be refused
    turn_id = _insert_turn(request, scope, target, digest, extensions, follows=followed is not None, db=db)
    if followed is None:
        _insert_task(target.task, scope, place=turn_id, db=db)
    pushes = request.configuration.HasField("task_push_notification_config")
    if pushes:
        config = request.configuration.task_push_notification_config
        config.task_id = target.task.id
        push.insert_config(config, db)
    turn = Turn(
        id=turn_id,
        attempt=1,
        caller=caller,
        owner=owner,
        task_id=target.task.id,
        context_id=target.task.context_id,
        request=request,
        new_task=followed is None,
        new_context=target.new_context,
        extensions=extensions,
    )
    return Accepted(turn, target.task, generation=target.generation, pushes=pushes or target.pushes)


@dataclass(frozen=True, slots=True)
class _Target:
    """The task that gets the turn. `new_context`: nothing was said in its context before."""

    task: Task
    new_context: bool
    generation: int = 1
    pushes: bool = False


@dataclass(frozen=True, slots=True)
class _Followed:
    """The row of the task that a message follows up."""

    owner: str
    context_id: str
    state: TaskState
    snapshot: bytes
    memory: str | None
    generation: int
    pushes: bool

    def target(self) -> _Target:
        task = task_of(self.snapshot, self.memory)
        if self.state in TERMINAL:
            name = TaskState.Name(self.state).removeprefix("TASK_STATE_").lower()
            raise UnsupportedOperationError(f"task {task.id} has ended ({name}): send a message without a taskId")
        return _Target(task, new_context=False, generation=self.generation, pushes=bool(self.pushes))


def _followed(caller: Caller, message: Message, user: str | None, db: Connection) -> _Followed:
    row = db.execute(_SQL["task_for_turn"], scope_of(caller) | {"task_id": message.task_id}).fetchone()
    if row is None:
        raise TaskNotFoundError(f"there is no task {message.task_id}")
    followed = _Followed(*row)
    if message.context_id and message.context_id != followed.context_id:
        raise InvalidParamsError(f"contextId: task {message.task_id} is of another context")
    if user is not None and followed.owner != caller.owner(user):
        raise InvalidParamsError("user_id: a follow-up cannot name another user than the one its task began with")
    return followed


def _new_target(request: SendMessageRequest, scope: Mapping[str, Any], db: Connection) -> _Target:
    message = request.message
    given = {**scope, "context_id": message.context_id}
    known = message.context_id and db.execute(_SQL["context_is_known"], given).fetchone() is not None
    message.task_id = new_id()
    message.context_id = message.context_id or new_id()
    task = Task(id=message.task_id, context_id=message.context_id, history=[message])
    task.status.state = TaskState.TASK_STATE_SUBMITTED
    task.status.timestamp.FromMicroseconds(now_us())
    if USER_ID in request.metadata:
        task.metadata[USER_ID] = request.metadata[USER_ID]
    return _Target(task, new_context=not known)


def _owner(caller: Caller, context_id: str, message_id: str, user: str | None, db: Connection) -> str:
    """The owner of a message without a taskId: its user, else the owner of its context, else the caller itself.

    A message that was accepted before keeps its owner, whoever has used a context of that name since.
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
    return replace(accepted_of(row, caller), replay=True, over=row["state"] == TurnState.DONE, answer=message)


def _insert_turn(
    request: SendMessageRequest,
    scope: Mapping[str, Any],
    target: _Target,
    digest: bytes,
    extensions: frozenset[str],
    *,
    follows: bool,
    db: Connection,
) -> int:
    values = {
        **scope,
        "task_id": target.task.id,
        "context_id": target.task.context_id,
        "message_id": request.message.message_id,
        "digest": digest,
        "request": request.SerializeToString(),
        "extensions": " ".join(sorted(extensions)) if extensions else "",
        "follows": follows,
    }
    (turn_id,) = db.execute(_SQL["insert_turn"], values).fetchone()
    return int(turn_id)


def _insert_task(task: Task, scope: Mapping[str, Any], *, place: int, db: Connection) -> None:
    values = {
        **scope,
        "place": place,
        "task_id": task.id,
        "context_id": task.context_id,
        "state": task.status.state,
        "now": task.status.timestamp.ToMicroseconds(),
        "snapshot": task.SerializeToString(),
    }
    db.execute(_SQL["insert_task"], values)
