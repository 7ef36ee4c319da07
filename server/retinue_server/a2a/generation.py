"""The extension `urn:retinue:a2a:generation:v1`: metadata.generation of tasks and of streamed events."""

from __future__ import annotations

import copy

from a2a.server.context import ServerCallContext
from a2a.types import Message

from retinue_server.runtime.events import EventT_co, Numbered

GENERATION_EXTENSION = "urn:retinue:a2a:generation:v1"
GENERATION = "generation"
"""The metadata key of the extension."""
LATEST = "retinue.generation"
"""The key of `ServerCallContext.state` that holds the generation of the event that a stream yielded last."""


def shown(numbered: Numbered[EventT_co], context: ServerCallContext) -> EventT_co:
    """Return the event as the caller gets it: with its generation, on a copy, if the request activates the extension."""
    event = numbered.event
    if GENERATION_EXTENSION not in context.requested_extensions or isinstance(event, Message):
        return event
    copied = copy.deepcopy(event)
    copied.metadata[GENERATION] = numbered.generation
    return copied
