"""A2A events: how each changes its task (spec 1.0, section 4.2), and the generation that it leads to."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeGuard, TypeVar

from a2a.types import (
    Message,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import InvalidAgentResponseError
from a2a.utils.proto_utils import to_stream_response

from retinue_memory.clock import now_us

from .pieces import is_plain_text

Event = Task | Message | TaskStatusUpdateEvent | TaskArtifactUpdateEvent
EventT_co = TypeVar("EventT_co", bound=Event, covariant=True)


class Numbered(NamedTuple, Generic[EventT_co]):
    """An event with the generation that its task has after it, or a task with its own."""

    event: EventT_co
    generation: int


class Snapshot:
    """A task as its events leave it. Text that is appended piece by piece is joined only when the task is read."""

    def __init__(self, task: Task, generation: int) -> None:
        self.load(task, generation)

    def load(self, task: Task, generation: int) -> None:
        """Start again from a task as it is stored or as another turn left it."""
        self._task = task
        self._tail: list[str] = []
        self._tail_id = ""
        self.generation = generation

    @property
    def task(self) -> Task:
        """The task itself, not a copy."""
        if self._tail:
            self._task.artifacts[-1].parts[-1].text += "".join(self._tail)
            self._tail.clear()
        return self._task

    def copy(self) -> Numbered[Task]:
        copied = Task()
        copied.CopyFrom(self.task)
        return Numbered(copied, self.generation)

    def add_message(self, message: Message) -> None:
        """Append a user's message to the history, after the question that it answers; does nothing if it is there already."""
        task = self.task
        if any(known.message_id == message.message_id for known in task.history):
            return
        if task.status.HasField("message"):
            task.history.append(task.status.message)
            task.status.ClearField("message")
        task.history.append(message)

    def describe(self, event: Task) -> None:
        """Take over an executor's description of the task that was just accepted. The task does not change by it, so its
        generation stays."""
        self._check_ids(event)
        self._replace(event)

    def apply(self, event: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        """Change the task as `event` says, which raises its generation by one.

        Raises InvalidAgentResponseError if the event is of another task, or appends to an artifact that is not there.
        """
        task = self._task
        self._check_ids(event)
        match event:
            case TaskArtifactUpdateEvent():
                self._update_artifact(event)
            case TaskStatusUpdateEvent():
                if task.status.HasField("message"):
                    task.history.append(task.status.message)
                if not event.status.HasField("timestamp"):
                    event.status.timestamp.FromMicroseconds(now_us())
                task.status.CopyFrom(event.status)
                if event.HasField("metadata"):
                    task.metadata.MergeFrom(event.metadata)
            case _:
                self._replace(event)
        self.generation += 1

    def _check_ids(self, event: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        task = self._task
        task_id = event.id if isinstance(event, Task) else event.task_id
        if task_id != task.id or event.context_id != task.context_id:
            raise InvalidAgentResponseError(
                f"expected an event of task {task.id!r} in context {task.context_id!r}, got one of task {task_id!r} in "
                f"context {event.context_id!r}"
            )

    def _update_artifact(self, event: TaskArtifactUpdateEvent) -> None:
        artifact, artifacts = event.artifact, self._task.artifacts
        if event.append and self._tail_id == artifact.artifact_id and is_plain_text(artifact.parts):
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
            if is_plain_text(artifact.parts) and existing.parts and is_plain_text(existing.parts[-1:]):
                existing.parts[-1].text += artifact.parts[0].text
            else:
                existing.parts.extend(artifact.parts)
        last = artifacts[-1]
        streams = last.artifact_id == artifact.artifact_id and len(last.parts) > 0 and is_plain_text(last.parts[-1:])
        self._tail_id = artifact.artifact_id if streams else ""

    def _replace(self, event: Task) -> None:
        """Take the state, artifacts and metadata of an executor's own Task; its history only adds to ours."""
        task = self.task
        if not event.status.HasField("timestamp"):
            event.status.timestamp.CopyFrom(task.status.timestamp)
        task.status.CopyFrom(event.status)
        if event.HasField("metadata"):
            task.metadata.MergeFrom(event.metadata)
        known = {message.message_id for message in task.history}
        task.history.extend(message for message in event.history if message.message_id not in known)
        for artifact in event.artifacts:
            self._update_artifact(TaskArtifactUpdateEvent(artifact=artifact))


def only_describes(event: Event) -> TypeGuard[Task]:
    """Whether an executor's first event describes the task as it was accepted, and changes nothing."""
    return (
        isinstance(event, Task)
        and event.status.state in (TaskState.TASK_STATE_UNSPECIFIED, TaskState.TASK_STATE_SUBMITTED)
        and not event.artifacts
    )


def payload_of(event: Event) -> bytes:
    """The serialised StreamResponse that carries the event, as it is pushed."""
    return to_stream_response(event).SerializeToString()
