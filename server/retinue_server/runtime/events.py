"""A2A events: how each changes its task (spec 1.0, section 4.2), how many become few, and who listens."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.types import (
    Message,
    Part,
    StreamResponse,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import InvalidAgentResponseError

from retinue_server.a2a.validation import stamp

Event = Task | Message | TaskStatusUpdateEvent | TaskArtifactUpdateEvent


class Snapshot:
    """A task as its events leave it. Text that is appended bit by bit is kept as one part, joined when it is read."""

    def __init__(self, task: Task, seq: int = 0) -> None:
        self._task = task
        self._tail: list[str] = []
        self._tail_id = ""
        self.seq = seq

    @property
    def task(self) -> Task:
        """The task itself, not a copy."""
        if self._tail:
            self._task.artifacts[-1].parts[-1].text += "".join(self._tail)
            self._tail.clear()
        return self._task

    def copy(self) -> Task:
        copied = Task()
        copied.CopyFrom(self.task)
        return copied

    def hear(self, message: Message) -> None:
        """Add what the user says next to the history, behind the question that it answers; once, however often it is told."""
        task = self.task
        if any(known.message_id == message.message_id for known in task.history):
            return
        if task.status.HasField("message"):
            task.history.append(task.status.message)
            task.status.ClearField("message")
        task.history.append(message)

    def apply(self, event: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        """Change the task as `event` says. Raises InvalidAgentResponseError for one that it cannot follow."""
        task = self._task
        named = event.id if isinstance(event, Task) else event.task_id
        if named != task.id or event.context_id != task.context_id:
            raise InvalidAgentResponseError(
                f"the agent spoke of task {named!r} in context {event.context_id!r}, but its task is {task.id!r} in "
                f"{task.context_id!r}"
            )
        match event:
            case TaskArtifactUpdateEvent():
                self._artifact(event)
            case TaskStatusUpdateEvent():
                if task.status.HasField("message"):
                    task.history.append(task.status.message)
                if not event.status.HasField("timestamp"):
                    event.status.timestamp.CopyFrom(stamp())
                task.status.CopyFrom(event.status)
                if event.HasField("metadata"):
                    task.metadata.MergeFrom(event.metadata)
            case _:
                self._replace(event)
        self.seq += 1

    def _artifact(self, event: TaskArtifactUpdateEvent) -> None:
        artifact, artifacts = event.artifact, self._task.artifacts
        if event.append and self._tail_id == artifact.artifact_id and _is_plain_text(artifact.parts):
            self._tail.append(artifact.parts[0].text)
            return
        existing = next((known for known in self.task.artifacts if known.artifact_id == artifact.artifact_id), None)
        if not event.append:
            if existing is None:
                artifacts.append(artifact)
            else:
                existing.CopyFrom(artifact)
        elif existing is None:
            raise InvalidAgentResponseError(
                f"the agent appended to artifact {artifact.artifact_id!r} before it sent it"
            )
        else:
            existing.metadata.MergeFrom(artifact.metadata)
            if _is_plain_text(artifact.parts) and existing.parts and _is_plain_text(existing.parts[-1:]):
                existing.parts[-1].text += artifact.parts[0].text
            else:
                existing.parts.extend(artifact.parts)
        last = artifacts[-1]
        streams = last.artifact_id == artifact.artifact_id and len(last.parts) > 0 and _is_plain_text(last.parts[-1:])
        self._tail_id = artifact.artifact_id if streams else ""

    def _replace(self, event: Task) -> None:
        """An executor's own Task: its state, artifacts and metadata are taken; what was said is only ever added to."""
        task = self.task
        if not event.status.HasField("timestamp"):
            event.status.timestamp.CopyFrom(task.status.timestamp)
        task.status.CopyFrom(event.status)
        if event.HasField("metadata"):
            task.metadata.MergeFrom(event.metadata)
        known = {message.message_id for message in task.history}
        task.history.extend(message for message in event.history if message.message_id not in known)
        for artifact in event.artifacts:
            self._artifact(TaskArtifactUpdateEvent(artifact=artifact))


def payload_of(event: Event) -> bytes:
    """The StreamResponse that carries the event, serialised: as it is streamed, pushed and logged.

    Put together from its parts, since a message that is set into another is copied.
    """
    content = event.SerializeToString()
    return _FIELDS[type(event)] + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_FIELDS: dict[type[Event], bytes] = {
    kind: _varint(StreamResponse.DESCRIPTOR.fields_by_name[name].number << 3 | 2)  # 2: a message, behind its length
    for kind, name in {
        Task: "task",
        Message: "message",
        TaskStatusUpdateEvent: "status_update",
        TaskArtifactUpdateEvent: "artifact_update",
    }.items()
}


def coalesce(events: Sequence[Event]) -> list[Event]:
    """The same events in fewer: text appended to one artifact in a row becomes one event. The given ones stay as they are."""
    found: list[Event] = []
    texts: list[str] = []
    for event in events:
        last = found[-1] if found else None
        if (
            isinstance(event, TaskArtifactUpdateEvent)
            and event.append
            and isinstance(last, TaskArtifactUpdateEvent)
            and last.artifact.artifact_id == event.artifact.artifact_id
            and _is_plain_text(event.artifact.parts)
            and _is_plain_text(last.artifact.parts)
        ):
            if not texts:
                copied = TaskArtifactUpdateEvent()
                copied.CopyFrom(last)
                last = found[-1] = copied
                texts.append(last.artifact.parts[0].text)
            texts.append(event.artifact.parts[0].text)
            last.last_chunk = event.last_chunk
        else:
            _join(found, texts)
            found.append(event)
    _join(found, texts)
    return found


def _join(events: list[Event], texts: list[str]) -> None:
    if texts:
        last = events[-1]
        assert isinstance(last, TaskArtifactUpdateEvent)  # noqa: S101 - for the type checkers: texts come from one
        last.artifact.parts[0].text = "".join(texts)
        texts.clear()


def _is_plain_text(parts: Sequence[Part]) -> bool:
    if len(parts) != 1:
        return False
    part = parts[0]
    return part.HasField("text") and not (part.HasField("metadata") or part.filename or part.media_type)
