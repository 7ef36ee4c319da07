"""JSON values in messages and events: a value is stored only if every binding can write it as JSON and read it back."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable

from a2a.types import Artifact, Message, Part, Task, TaskArtifactUpdateEvent
from google.protobuf.struct_pb2 import Value

from retinue_server.runtime.events import Event

MAX_DEPTH = 28
"""The most levels of lists and objects in a value: protobuf parses 100 levels, and an object takes three of them."""


def values_problem(values: Iterable[Value]) -> str | None:
    """Why one of these values cannot be stored. Returns None if all can. Takes time linear in their number."""
    for _ in range(MAX_DEPTH):
        deeper: list[Value] = []
        nested = False
        for value in values:
            match value.WhichOneof("kind"):
                case "number_value":
                    if not math.isfinite(value.number_value):
                        return "a number is not finite, and JSON has no such numbers"
                case "struct_value":
                    nested = True
                    deeper += value.struct_value.fields.values()
                case "list_value":
                    nested = True
                    deeper += value.list_value.values
                case _:
                    pass
        if not nested:
            return None
        values = deeper
    return f"lists and objects are nested more than {MAX_DEPTH} levels deep"


def event_problem(event: Event) -> str | None:
    """Why an event cannot be stored. Returns None if it can."""
    return values_problem(_event_values(event))


def part_values(part: Part) -> Generator[Value]:
    """The data and the metadata of a part."""
    if part.HasField("data"):
        yield part.data
    if part.HasField("metadata"):
        yield from part.metadata.fields.values()


def _event_values(event: Event) -> Generator[Value]:
    if isinstance(event, Message):
        yield from _carried_values(event)
        return
    yield from event.metadata.fields.values()
    if isinstance(event, TaskArtifactUpdateEvent):
        yield from _carried_values(event.artifact)
        return
    yield from _carried_values(event.status.message)
    if isinstance(event, Task):
        for message in event.history:
            yield from _carried_values(message)
        for artifact in event.artifacts:
            yield from _carried_values(artifact)


def _carried_values(carrier: Message | Artifact) -> Generator[Value]:
    yield from carrier.metadata.fields.values()
    for part in carrier.parts:
        yield from part_values(part)
