"""The parameters of an HTTP request: values from its query, its path and its JSON body, or InvalidParamsError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, cast
from urllib.parse import unquote

from a2a.utils.errors import InvalidParamsError
from starlette.requests import Request

from retinue_memory import MemoryFilter, MemoryKind
from retinue_server.auth.owners import checked_id

from .body import StrictRequest, loads

# -- query and path --------------------------------------------------------------------------------------------------------


def query_text(request: Request, name: str) -> str:
    given = request.query_params.get(name, "")
    if not given.strip():
        raise InvalidParamsError(f"{name}: is missing")
    return given


def query_number(request: Request, name: str, default: int, most: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given) <= most:
        raise InvalidParamsError(f"{name}: expected a whole number from 1 to {most}, got {given!r}")
    return int(given)


def query_flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false").lower()
    if given not in ("true", "false"):
        raise InvalidParamsError(f"{name}: expected true or false, got {given!r}")
    return given == "true"


def query_filter(request: Request) -> MemoryFilter:
    query = request.query_params
    return MemoryFilter(
        kinds=frozenset(memory_kind(kind) for kind in query.getlist("kind")),
        since=moment("since", query.get("since")),
        until=moment("until", query.get("until")),
        as_of=moment("as_of", query.get("as_of")),
        superseded=query_flag(request, "superseded"),
        quarantined=query_flag(request, "quarantined"),
    )


def path_text(request: Request, name: str) -> str:
    return unquote(request.path_params[name])


def path_user(request: Request) -> tuple[str, str]:
    """The tenant of the query and the user of the path."""
    tenant = checked_id(request.query_params.get("tenant", ""), "tenant")
    return tenant, checked_id(path_text(request, "user"), "user")


# -- bodies ----------------------------------------------------------------------------------------------------------------


async def body_object(request: Request, known: set[str]) -> dict[str, Any]:
    """The body, which must be an object that has no other keys than the known ones."""
    body = _object(await StrictRequest(request.scope, request.receive).json(), "the body")
    unknown = set(body) - known
    if unknown:
        raise InvalidParamsError(f"{sorted(unknown)[0]}: unknown; expected: {', '.join(sorted(known))}")
    return body


async def body_lines(request: Request) -> AsyncIterator[Mapping[str, Any]]:
    """The objects of a body of JSON Lines, as they arrive."""
    pending = b""
    async for chunk in request.stream():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _object(loads(line), "a line")
    if pending.strip():
        yield _object(loads(pending), "a line")


def content(body: Mapping[str, Any]) -> str:
    given = body.get("content")
    if not isinstance(given, str) or not given.strip():
        raise InvalidParamsError("content: expected a text that is not empty")
    return given


def optional_text(body: Mapping[str, Any], name: str) -> str | None:
    given = body.get(name)
    if not isinstance(given, str | None):
        raise InvalidParamsError(f"{name}: expected a text")
    return given


def flag(body: Mapping[str, Any], name: str) -> bool:
    given = body[name]
    if not isinstance(given, bool):
        raise InvalidParamsError(f"{name}: expected true or false")
    return given


def id_list(body: Mapping[str, Any], name: str) -> list[str]:
    given = body.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in cast("list[object]", given)):
        raise InvalidParamsError(f"{name}: expected a list of ids")
    return cast("list[str]", given)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidParamsError(f"{what}: expected a JSON object")
    return cast("dict[str, Any]", value)


# -- values of both --------------------------------------------------------------------------------------------------------


def memory_kind(value: object) -> MemoryKind:
    try:
        return MemoryKind(str(value))
    except ValueError:
        raise InvalidParamsError(f"kind: expected one of {', '.join(MemoryKind)}, got {value!r}") from None


def moment(name: str, value: object) -> datetime | None:
    """A date or a time in ISO 8601, local unless it names its zone. Returns None if there is none."""
    if value is None or value == "":
        return None
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidParamsError(
            f"{name}: expected a time like 2026-01-31 or 2026-01-31T12:00:00Z, got {value!r}"
        ) from None
    return found if found.tzinfo is not None else found.astimezone()
