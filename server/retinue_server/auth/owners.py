"""Who is asking, and for whom."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from a2a.server.context import ServerCallContext
from a2a.utils.errors import InvalidParamsError
from google.protobuf.struct_pb2 import Struct

from retinue_server.runtime.turn import Caller

USER_ID = "user_id"
"""The metadata key that names the user. It is looked for in the request's metadata, then in the message's."""
_LONGEST_ID = 512


def user_of(request: Mapping[str, Any], message: Struct | None = None, task: Struct | None = None) -> str | None:
    """The user whose memory a turn is about; None where nobody names one.

    Takes the metadata of the request, of its message and of the stored task it follows up. Raises InvalidParamsError for
    an id that is not a non-empty string or a whole number, and for one that differs from the stored task's.
    """
    stored = task[USER_ID] if task is not None and USER_ID in task else None
    if USER_ID in request:
        named = _user_id(request[USER_ID])
    elif message is not None and USER_ID in message:
        named = _user_id(message[USER_ID])
    else:
        return None if stored is None else str(stored)
    if task is not None and stored != named:
        raise InvalidParamsError("user_id: a follow-up cannot name another user than the one its task began with")
    return named


def _user_id(value: object) -> str:
    match value:
        case bool():
            problem = "a boolean"
        case int():
            return str(value)
        case float() if value.is_integer():  # JSON numbers arrive as floats
            return str(int(value))
        case str() if value.strip():
            return checked_id(value, USER_ID)
        case str():
            problem = "an empty string"
        case None:
            problem = "null"
        case _:
            problem = "a fraction" if isinstance(value, float) else "a list or an object"
    raise InvalidParamsError(f"user_id: must be a non-empty string or a whole number, but is {problem}")


def checked_id(value: str, what: str) -> str:
    """`value` as it is, if it may be an id: ids compare byte for byte, so what cannot be seen is refused."""
    if len(value) > _LONGEST_ID:
        raise InvalidParamsError(f"{what}: is {len(value)} characters long; the longest allowed is {_LONGEST_ID}")
    if value.isascii() and value.isprintable():
        return value
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise InvalidParamsError(f"{what}: holds control characters")
    return value


def caller_of(context: ServerCallContext, agent: str) -> Caller:
    """Who asks of an agent. With `auth: {mode: none}` everyone may act for every user of the tenant."""
    return Caller(agent, context.tenant, context.user.user_name, None)
