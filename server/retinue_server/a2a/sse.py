"""Server-sent events: a task's generation as the `id:` of each event of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, cast

from a2a.server.context import ServerCallContext
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import Response

from .generation import LATEST


def with_event_ids(response: Response, request: Request) -> Response:
    """Number the events of a stream by their generations; any other response is returned as it is.

    The SDK's bindings write the stream, so the id is added to what they yield, before the next event is taken.
    """
    if isinstance(response, EventSourceResponse):
        context: ServerCallContext = request.state.call_context
        events = cast("AsyncIterable[Any]", response.body_iterator)  # pyright: ignore[reportUnknownMemberType]
        response.body_iterator = _numbered(events, context)
    return response


async def _numbered(events: AsyncIterable[Any], context: ServerCallContext) -> AsyncIterator[Any]:
    async for event in events:
        generation = context.state.get(LATEST)
        if generation:
            if isinstance(event, dict):
                if "event" not in event:  # an error is no event of the task
                    event["id"] = str(generation)
            elif event.event is None:
                event.id = str(generation)
        yield event
