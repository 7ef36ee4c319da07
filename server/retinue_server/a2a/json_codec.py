"""JSON of SendMessage requests and responses, without protobuf's reflection.

`ParseDict` and `MessageToDict` look up every field in the message's descriptor; here the fields are in the code, with the same
results. Gain: a request is read in 4 instead of 20 us, and a task written in 8 instead of 20 us. In `benchmarks.server`, echo
without memory at 32 clients, that is 4 % (reading) and 7 % (writing) of the CPU a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from a2a.types import Artifact, Message, Part, Role, SendMessageRequest, Task, TaskState, TaskStatus
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

_ID_FIELDS = {"messageId": "message_id", "contextId": "context_id", "taskId": "task_id"}
_ROLES: Mapping[int, str] = {number: name for name, number in Role.items() if number}
_STATES: Mapping[int, str] = {number: name for name, number in TaskState.items() if number}


# -- reading -------------------------------------------------------------------------------------------------------------


def send_request(params: Any) -> SendMessageRequest | None:
    """Read a plain request: a user's message of text parts and ids, metadata of strings, returnImmediately, tenant.

    Returns None for any other, valid or not: leave it to `ParseDict`.
    """
    match params:
        case {"message": dict()}:
            fields = cast("dict[str, Any]", params)
        case _:
            return None
    request = SendMessageRequest()
    try:
        plain = all(key in _READERS and _READERS[key](value, request) for key, value in fields.items())
    except (TypeError, ValueError):
        return None
    return request if plain else None


def _read_message(given: Any, request: SendMessageRequest) -> bool:
    message = request.message
    message.SetInParent()
    for key, value in given.items():
        if key == "parts":
            if not _read_parts(value, message):
                return False
        elif key == "role":
            if value != "ROLE_USER":
                return False
            message.role = Role.ROLE_USER
        elif key in _ID_FIELDS and type(value) is str:
            setattr(message, _ID_FIELDS[key], value)
        else:
            return False
    return True


def _read_parts(given: Any, message: Message) -> bool:
    if type(given) is not list:
        return False
    for part in cast("Iterable[Any]", given):
        match part:
            case {"text": str(text)} if len(part) == 1:  # pyright: ignore[reportUnknownArgumentType]
                message.parts.add(text=text)
            case _:
                return False
    return True


def _read_metadata(given: Any, request: SendMessageRequest) -> bool:
    if type(given) is not dict:
        return False
    request.metadata.SetInParent()
    for key, value in cast("dict[str, Any]", given).items():
        if type(value) is not str:
            return False
        request.metadata[key] = value
    return True


def _read_configuration(given: Any, request: SendMessageRequest) -> bool:
    match given:
        case {"returnImmediately": bool(immediately)} if len(given) == 1:  # pyright: ignore[reportUnknownArgumentType]
            request.configuration.return_immediately = immediately
        case {} if not given:
            pass
        case _:
            return False
    request.configuration.SetInParent()
    return True


def _read_tenant(given: Any, request: SendMessageRequest) -> bool:
    if type(given) is not str:
        return False
    request.tenant = given
    return True


_READERS: Mapping[str, Callable[[Any, SendMessageRequest], bool]] = {
    "message": _read_message,
    "metadata": _read_metadata,
    "configuration": _read_configuration,
    "tenant": _read_tenant,
}


# -- writing -------------------------------------------------------------------------------------------------------------


def send_response(answer: Task | Message) -> dict[str, Any]:
    """`MessageToDict` of the SendMessageResponse that carries `answer`."""
    return {"task": task_json(answer)} if isinstance(answer, Task) else {"message": message_json(answer)}


def task_json(task: Task) -> dict[str, Any]:
    """`MessageToDict(task)`. Raises SerializeToJsonError for numbers that JSON does not have."""
    found: dict[str, Any] = {}
    if task.id:
        found["id"] = task.id
    if task.context_id:
        found["contextId"] = task.context_id
    if task.HasField("status"):
        found["status"] = _status(task.status)
    if artifacts := task.artifacts:
        found["artifacts"] = [_artifact(artifact) for artifact in artifacts]
    if history := task.history:
        found["history"] = [message_json(message) for message in history]
    return _with_metadata(task, found)


def message_json(message: Message) -> dict[str, Any]:
    """`MessageToDict(message)`. Raises SerializeToJsonError as `task_json` does."""
    found: dict[str, Any] = {}
    if message.message_id:
        found["messageId"] = message.message_id
    if message.context_id:
        found["contextId"] = message.context_id
    if message.task_id:
        found["taskId"] = message.task_id
    if role := message.role:
        found["role"] = _ROLES.get(role, role)
    if parts := message.parts:
        found["parts"] = [_part(part) for part in parts]
    if message.extensions:
        found["extensions"] = list(message.extensions)
    if message.reference_task_ids:
        found["referenceTaskIds"] = list(message.reference_task_ids)
    return _with_metadata(message, found)


def _status(status: TaskStatus) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if state := status.state:
        found["state"] = _STATES.get(state, state)
    if status.HasField("message"):
        found["message"] = message_json(status.message)
    if status.HasField("timestamp"):
        found["timestamp"] = time_json(status.timestamp)
    return found


def _artifact(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if artifact.artifact_id:
        found["artifactId"] = artifact.artifact_id
    if artifact.name:
        found["name"] = artifact.name
    if artifact.description:
        found["description"] = artifact.description
    if parts := artifact.parts:
        found["parts"] = [_part(part) for part in parts]
    if artifact.extensions:
        found["extensions"] = list(artifact.extensions)
    return _with_metadata(artifact, found)


def _part(part: Part) -> dict[str, Any]:
    if not part.HasField("text") or part.HasField("metadata"):
        return MessageToDict(part)
    found = {"text": part.text}
    if part.filename:
        found["filename"] = part.filename
    if part.media_type:
        found["mediaType"] = part.media_type
    return found


def _with_metadata(message: Task | Message | Artifact, found: dict[str, Any]) -> dict[str, Any]:
    if message.HasField("metadata"):
        found["metadata"] = struct_json(message.metadata)
    return found


def struct_json(struct: Struct) -> dict[str, Any]:
    """`MessageToDict(struct)`. Raises ValueError for numbers that JSON does not have."""
    fields = struct.fields
    return {key: _value_json(fields[key]) for key in fields}


def _value_json(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "struct_value":
        return struct_json(value.struct_value)
    if kind == "number_value" and math.isfinite(number := value.number_value):
        return number
    if kind == "list_value":
        return [_value_json(one) for one in value.list_value.values]
    return MessageToDict(value)


def time_json(stamp: Timestamp) -> str:
    """`stamp.ToJsonString()`: RFC 3339 in UTC, with 0, 3, 6 or 9 decimals of a second."""
    nanos = stamp.nanos
    if not 0 < nanos < 1_000_000_000:
        return stamp.ToJsonString()
    if nanos % 1000:
        return f"{_second(stamp.seconds)}.{nanos:09}Z"
    if nanos % 1_000_000:
        return f"{_second(stamp.seconds)}.{nanos // 1000:06}Z"
    return f"{_second(stamp.seconds)}.{nanos // 1_000_000:03}Z"


@lru_cache(64)
def _second(seconds: int) -> str:
    return Timestamp(seconds=seconds).ToJsonString()[:-1]
