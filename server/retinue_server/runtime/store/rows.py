"""The values of the store's rows: what is written into them, and what they are read as."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from a2a.types import Message, SendMessageRequest, Task, TaskPushNotificationConfig, TaskState

from retinue_memory import InvocationContext
from retinue_memory.database.base import Cursor
from retinue_memory.messages import message_json, message_of
from retinue_server.auth.owners import USER_ID
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import Caller, MemoryWrite, Turn

_CONTEXT = tuple(field.name for field in fields(InvocationContext))


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def digest_of(message: Message) -> bytes:
    """What makes two messages with one id the same: who says what; not where it was sent to."""
    content = Message(role=message.role, parts=message.parts, metadata=message.metadata)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def new_task(request: SendMessageRequest) -> Task:
    message = request.message
    task = Task(id=message.task_id, context_id=message.context_id, history=[message])
    task.status.state = TaskState.TASK_STATE_SUBMITTED
    task.status.timestamp.FromMicroseconds(now())
    if USER_ID in request.metadata:
        task.metadata[USER_ID] = request.metadata[USER_ID]
    return task


def scope_of(caller: Caller) -> dict[str, Any]:
    return {"tenant": caller.tenant, "agent": caller.agent, "reach": caller.reach}


def task_of(snapshot: bytes, memory: str | None) -> Task:
    task = Task.FromString(snapshot)
    if memory is not None:
        task.metadata.get_or_create_struct("memory")["update"] = memory
    return task


def numbered(snapshot: bytes, memory: str | None, generation: int) -> Numbered[Task]:
    return Numbered(task_of(snapshot, memory), generation)


def named(cursor: Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
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


def write_values(write: MemoryWrite) -> tuple[str, str, str]:
    """The memory, the context and the messages, as `write_of` takes them."""
    context = {field: getattr(write.context, field) for field in _CONTEXT}
    return write.memory, json.dumps(context), json.dumps([message_json(message) for message in write.messages])


def write_of(memory: str, context: str, messages: str) -> MemoryWrite:
    said = [message_of(value) for value in json.loads(messages)]
    return MemoryWrite(memory, InvocationContext(**json.loads(context)), said)


def config_of(blob: bytes) -> TaskPushNotificationConfig:
    return TaskPushNotificationConfig.FromString(blob)
