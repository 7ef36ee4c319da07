"""The bindings of one handler: JSON-RPC (1.0 and 0.3), REST and gRPC. They refuse what is not the protocol."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    InvalidRequestError,
    JSONParseError,
)
from starlette.requests import ClientDisconnect, Request

from retinue_server.a2a.validation import DEEPEST

if TYPE_CHECKING:
    pass

LONGEST_BODY = 10 * 2**20
"""Bytes of a request's body; a longer one is refused before it is read."""
_DEEPEST = DEEPEST + 8
"""How deep lists and objects of a body may stand in each other: what a message may hold, and the call around it."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MEDIA_TYPES = ("application/json", "application/a2a+json")


class StrictRequest(Request):
    """A request whose body is JSON as RFC 8259 has it: UTF-8, no NaN, no key twice, and not longer than allowed."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._check_headers()
            chunks: list[bytes] = []
            size, more = 0, True
            while more:  # what `stream` does, without a generator
                received = await self.receive()
                if received["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = received.get("body", b""), received.get("more_body", False)
                size += len(chunk)
                if size > LONGEST_BODY:
                    raise InvalidRequestError(f"the body is longer than {LONGEST_BODY} bytes")
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json

    def _check_headers(self) -> None:
        given = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given and given not in _MEDIA_TYPES:
            raise ContentTypeNotSupportedError(f"Content-Type {given}: send application/json")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > LONGEST_BODY:
            raise InvalidRequestError(f"the body is longer than {LONGEST_BODY} bytes")


def loads(body: bytes) -> Any:
    """The JSON value of a body. Raises JSONParseError, which says what is wrong with it."""
    try:
        value = _decode(body.decode())
        _check_depth(body, value)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()  # refuses halves of pairs, wherever they are
        return value
    except UnicodeEncodeError as error:
        raise JSONParseError("the JSON holds half a character: a surrogate without its other half") from error
    except RecursionError as error:
        raise JSONParseError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise JSONParseError(f"the body is not JSON: {error}") from error


def _check_depth(body: bytes, value: Any) -> None:
    """Raise RecursionError for a value that is deeper than what parses it further on may go."""
    if body.count(b"[") + body.count(b"{") <= _DEEPEST:
        return
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # pyright: ignore[reportUnknownVariableType]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_repeats).decode
