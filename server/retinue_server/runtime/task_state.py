"""Changes of a task's state that no turn makes."""

from __future__ import annotations

from a2a.types import Task, TaskState, TaskStatusUpdateEvent

from retinue_memory.clock import now_us

from .events import Numbered, Snapshot


def cancel_task(task: Task, generation: int) -> Numbered[TaskStatusUpdateEvent]:
    """Cancel a task that has no turn. Changes `task`, and returns the event with its new generation."""
    event = TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id)
    event.status.state = TaskState.TASK_STATE_CANCELED
    event.status.timestamp.FromMicroseconds(now_us())
    snapshot = Snapshot(task, generation)
    snapshot.apply(event)
    return Numbered(event, snapshot.generation)
