"""Conversions between the values of rows and the values of the runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any

from a2a.types import Message, SendMessageRequest, Task, TaskPushNotificationConfig

from retinue_memory import InvocationContext
from retinue_memory.database.base import Cursor
from retinue_memory.messages import message_json, message_of
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import Accepted, Caller, MemoryWrite, Turn

SQL_FOLDER = files("retinue_server.runtime.store")
_CONTEXT = tuple(field.name for field in fields(InvocationContext))


def digest_of(message: Message) -> bytes:
    """A hash of what a message says and who says it, not of where it is sent to."""
    content = Message(role=message.role, parts=message.parts, metadata=message.metadata)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def scope_of(caller: Caller) -> dict[str, Any]:
    """The parameters that confine a statement to what the caller may see."""
    return {"tenant": caller.tenant, "agent": caller.agent, "visible_owner": caller.visible_owner}


def task_of(snapshot: bytes, memory: str | None) -> Task:
    """The task of a snapshot, with the state of its memory writes in its metadata."""
    task = Task.FromString(snapshot)
    if memory is not None:
        task.metadata.get_or_create_struct("memory")["update"] = memory
    return task


def numbered(snapshot: bytes, memory: str | None, generation: int) -> Numbered[Task]:
    return Numbered(task_of(snapshot, memory), generation)


def named(cursor: Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    """A row as values by column name."""
    return dict(zip((column[0] for column in cursor.description or ()), row, strict=True))


def turn_of(row: Mapping[str, Any], caller: Caller) -> Turn:
    return Turn(
        id=row["id"],
        attempt=row["attempt"],
        caller=caller,
        owner=row["owner"],
        task_id=row["task_id"],
        context_id=row["context_id"],
        request=SendMessageRequest.FromString(row["request"]),
        new_task=not row["follows"],
        extensions=frozenset(row["extensions"].split()),
        crashes=row["crashes"],
    )


def accepted_of(row: Mapping[str, Any], caller: Caller) -> Accepted:
    """A turn that was accepted before, from a row of `turns` joined with its task."""
    turn = replace(turn_of(row, caller), new_context=False)
    task = task_of(row["snapshot"], row["memory"])
    return Accepted(turn, task, generation=row["generation"], pushes=bool(row["pushes"]))


def write_values(write: MemoryWrite) -> tuple[str, str, str]:
    """The memory, context and messages of a write, as `write_of` takes them."""
    context = {field: getattr(write.context, field) for field in _CONTEXT}
    return write.memory, json.dumps(context), json.dumps([message_json(message) for message in write.messages])


def write_of(memory: str, context: str, messages: str) -> MemoryWrite:
    said = [message_of(value) for value in json.loads(messages)]
    return MemoryWrite(memory, InvocationContext(**json.loads(context)), said)


def config_of(blob: bytes) -> TaskPushNotificationConfig:
    return TaskPushNotificationConfig.FromString(blob)
