"""How a task ends that no turn ends, and what is left to memory then."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.server.agent_execution import AgentExecutor
from a2a.types import Task, TaskState, TaskStatusUpdateEvent

from retinue_server.a2a.executor import A2AExecutor
from retinue_server.a2a.validation import stamp
from retinue_server.delivery.memory_outbox import OutboxMemory

from .events import Snapshot
from .turn import MemoryWrite


def canceled(task: Task) -> TaskStatusUpdateEvent:
    """End the task, now; the event that says so."""
    event = TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id)
    event.status.state = TaskState.TASK_STATE_CANCELED
    event.status.timestamp.CopyFrom(stamp())
    Snapshot(task).apply(event)
    return event


def owed_at_end(
    executor: AgentExecutor, tenant: str, task: Task, written: Sequence[MemoryWrite] = ()
) -> list[MemoryWrite]:
    """What the user said that was answered with a question, so far as it is not `written` with the task's end anyway."""
    left = executor.unremembered(task, tenant) if isinstance(executor, A2AExecutor) else None
    if left is None or not isinstance(executor, A2AExecutor):
        return []
    context, said = left
    found: list[MemoryWrite] = []
    for memory in executor.agent.memories:
        if isinstance(memory, OutboxMemory):
            known = {told.id for write in written if write.memory == memory.name for told in write.messages}
            if messages := [one for one in said if one.id not in known]:
                found.append(MemoryWrite(memory.name, context, messages))
    return found
