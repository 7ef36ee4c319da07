"""Request bodies: JSON as RFC 8259 has it, of limited size and depth."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from a2a.utils.errors import ContentTypeNotSupportedError, InvalidRequestError, JSONParseError
from starlette.requests import ClientDisconnect, Request

from retinue_server.a2a.json_values import MAX_DEPTH

MAX_BODY_BYTES = 10 * 2**20
_MAX_BODY_DEPTH = MAX_DEPTH + 8  # a value in a message in a call
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MEDIA_TYPES = ("application/json", "application/a2a+json")


class StrictRequest(Request):
    """A request whose body must be UTF-8 JSON without NaN and without repeated keys, of at most MAX_BODY_BYTES."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._check_headers()
            chunks: list[bytes] = []
            size, more = 0, True
            while more:
                received = await self.receive()
                if received["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = received.get("body", b""), received.get("more_body", False)
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise _too_long()
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json

    def _check_headers(self) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type and media_type not in _MEDIA_TYPES:
            raise ContentTypeNotSupportedError(f"Content-Type: expected application/json, got {media_type}")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise _too_long()


def loads(body: bytes) -> Any:
    """Parse a body. Raises JSONParseError with the reason."""
    try:
        value = _decode(body.decode())
        _check_depth(body, value)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate, wherever it is
        return value
    except UnicodeEncodeError as error:
        raise JSONParseError("the JSON holds a lone surrogate") from error
    except RecursionError as error:
        raise JSONParseError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise JSONParseError(f"the body is not JSON: {error}") from error


def _too_long() -> InvalidRequestError:
    return InvalidRequestError(f"the body is longer than {MAX_BODY_BYTES} bytes")


def _check_depth(body: bytes, value: Any) -> None:
    """Raise RecursionError for a value that is deeper than the parsers behind this one may go."""
    if body.count(b"[") + body.count(b"{") <= _MAX_BODY_DEPTH:
        return
    level = [value]
    for _ in range(_MAX_BODY_DEPTH):
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
        raise ValueError("an object repeats a key")
    return found


_decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_repeats).decode
