"""Coalescing of streamed text: many pieces of one artifact become few events, before they are numbered."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.types import Part, TaskArtifactUpdateEvent

WINDOW_S = 0.02
"""Pieces that follow another within this time are held and published as one event."""
_MAX_HELD_CHARS = 4096


class TextPieces:
    """The text pieces of one turn. The first is published at once; those that follow within WINDOW_S are held."""

    def __init__(self) -> None:
        self._published: tuple[str, str, str] | None = None
        self._published_at = 0.0
        self._first: TaskArtifactUpdateEvent | None = None
        self._texts: list[str] = []
        self._chars = 0

    def continues(self, event: TaskArtifactUpdateEvent) -> bool:
        """Whether `event` is a piece that appends plain text to the artifact that was published last."""
        artifact = event.artifact
        return (
            event.append
            and (artifact.artifact_id, event.task_id, event.context_id) == self._published
            and is_plain_text(artifact.parts)
            and not (event.HasField("metadata") or artifact.HasField("metadata"))
        )

    def add(self, event: TaskArtifactUpdateEvent, now: float) -> TaskArtifactUpdateEvent | None:
        """Take a piece. Returns the event to publish now, which is `event` joined with what was held before it, or None if
        the piece is held. `now` is the event loop's time."""
        if self._first is None:
            if event.last_chunk or now - self._published_at >= WINDOW_S:
                return event
            self._first = event
        text = event.artifact.parts[0].text
        self._texts.append(text)
        self._chars += len(text)
        return self.take(last_chunk=event.last_chunk) if event.last_chunk or self._chars >= _MAX_HELD_CHARS else None

    def take(self, *, last_chunk: bool = False) -> TaskArtifactUpdateEvent | None:
        """Return the held pieces as one event, or None if none is held. The executor's own events are not changed."""
        if self._first is None:
            return None
        joined = TaskArtifactUpdateEvent()
        joined.CopyFrom(self._first)
        joined.artifact.parts[0].text = "".join(self._texts)
        joined.last_chunk = last_chunk
        self._first = None
        self._texts.clear()
        self._chars = 0
        return joined

    def published(self, event: TaskArtifactUpdateEvent, now: float) -> None:
        """Note the artifact event that was published last."""
        streams = not event.last_chunk and is_plain_text(event.artifact.parts)
        self._published = (event.artifact.artifact_id, event.task_id, event.context_id) if streams else None
        self._published_at = now


def is_plain_text(parts: Sequence[Part]) -> bool:
    if len(parts) != 1:
        return False
    part = parts[0]
    return part.HasField("text") and not (part.HasField("metadata") or part.filename or part.media_type)
