"""Which JSON values of a message may be stored: those that every binding can write down and read again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from a2a.utils.constants import PROTOCOL_VERSION_1_0
from a2a.utils.errors import (
    VersionNotSupportedError,
)

if TYPE_CHECKING:
    pass

import time
from collections.abc import Iterable

from a2a.types import Artifact, Message, Part
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

DEEPEST = 28
"""How deep lists and objects may stand in each other: protobuf reads 100 levels, and an object costs three."""


def stamp() -> Timestamp:
    """The time, in whole microseconds."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def unfit(*structs: Struct) -> str | None:
    """Why one of these cannot be stored; None: they can."""
    level: list[Struct | ListValue | Value] = list(structs)
    for _ in range(DEEPEST):
        values = [inner for outer in level for inner in _inside(outer)]
        if any(value.HasField("number_value") and not math.isfinite(value.number_value) for value in values):
            return "a number is not finite, which JSON cannot say"
        level = [
            value.struct_value if value.HasField("struct_value") else value.list_value
            for value in values
            if value.HasField("struct_value") or value.HasField("list_value")
        ]
        if not level:
            return None
    return f"lists and objects stand more than {DEEPEST} deep in each other"


def unfit_message(message: Message) -> str | None:
    """`unfit` for all that a message carries."""
    return _unfit(message, message.parts)


def unfit_artifact(artifact: Artifact) -> str | None:
    """`unfit` for all that an artifact carries."""
    return _unfit(artifact, artifact.parts)


def _unfit(whole: Message | Artifact, parts: Iterable[Part]) -> str | None:
    found = [whole.metadata] if whole.HasField("metadata") else []
    for part in parts:
        if part.HasField("data"):
            found.append(Struct(fields={"data": part.data}))
        if part.HasField("metadata"):
            found.append(part.metadata)
    return unfit(*found) if found else None


def _inside(outer: Struct | ListValue | Value) -> Iterable[Value]:
    if isinstance(outer, Struct):
        return outer.fields.values()
    return outer.values if isinstance(outer, ListValue) else (outer,)


def check_version(given: str | None) -> None:
    """Raise VersionNotSupportedError unless a request speaks version 1 of the protocol; without a word, it speaks 0.3."""
    if (given or "0.3").partition(".")[0] != PROTOCOL_VERSION_1_0.partition(".")[0]:
        raise VersionNotSupportedError(f"A2A version {given or '0.3'} is not supported here: send A2A-Version: 1.0")
