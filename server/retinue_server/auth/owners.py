"""Owners: the caller of a request, and the user whose tasks and memories it is about."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from a2a.server.context import ServerCallContext
from a2a.utils.errors import InvalidParamsError
from google.protobuf.struct_pb2 import Struct

from retinue_server.runtime.turn import Caller

USER_ID = "user_id"
"""The metadata key that names the user."""
_MAX_ID_LENGTH = 512
_MAX_NUMBER = 2**53
"""JSON numbers arrive as floats: from here on, two numbers may be one float."""
_ABSENT = object()

Metadata = Mapping[str, object] | Struct


def user_of(request: Metadata, message: Metadata | None = None, task: Metadata | None = None) -> str | None:
    """The user of a turn, looked for in the metadata of the request, of its message and of the stored task it continues.

    Returns None if none of them names one. Raises InvalidParamsError for an id that is neither a non-empty string nor a
    whole number below 2^53, and for one that differs from the stored task's.
    """
    stored = _lookup(task)
    named = _lookup(request)
    if named is _ABSENT:
        named = _lookup(message)
    if named is _ABSENT:
        return None if stored is _ABSENT else str(stored)
    user = _user_id(named)
    if task is not None and stored != user:
        raise InvalidParamsError("user_id: a follow-up cannot name another user than its task's")
    return user


def _lookup(metadata: Metadata | None) -> object:
    if metadata is None or USER_ID not in metadata:
        return _ABSENT
    try:
        return metadata[USER_ID]
    except ValueError:  # a protobuf Value without a kind, which JSON writes as null
        return None


def _user_id(value: object) -> str:
    match value:
        case bool():
            found = "a boolean"
        case int() | float() if value % 1 == 0 and abs(value) < _MAX_NUMBER:
            return str(int(value))
        case int() | float():
            found = "a fraction or a larger number"
        case str() if value.strip():
            return checked_id(value, USER_ID)
        case str():
            found = "an empty string"
        case None:
            found = "null"
        case _:
            found = "a list or an object"
    raise InvalidParamsError(f"user_id: expected a non-empty string or a whole number below 2^53, got {found}")


def checked_id(value: str, field: str) -> str:
    """Return `value` if it may be an id: ids compare byte for byte, so control characters are refused."""
    if len(value) > _MAX_ID_LENGTH:
        raise InvalidParamsError(f"{field}: expected at most {_MAX_ID_LENGTH} characters, got {len(value)}")
    if value.isascii() and value.isprintable():
        return value
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise InvalidParamsError(f"{field}: control characters are not allowed")
    return value


def caller_of(context: ServerCallContext, agent: str) -> Caller:
    """The caller of an agent. With `auth: {mode: none}` every caller may act for every user of the tenant."""
    return Caller(agent, context.tenant, context.user.user_name, None)
