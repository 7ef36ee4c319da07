"""What a task that ends leaves to memory, although no turn of its has written it."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.server.agent_execution import AgentExecutor
from a2a.types import Task

from recollect_server.executor import A2AExecutor

from .outbox import OutboxMemory
from .turn import MemoryWrite


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
