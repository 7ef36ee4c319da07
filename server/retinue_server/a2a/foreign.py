"""Executors that others wrote, and what a configured agent runs on."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.types import SendMessageRequest, Task

from retinue_agents import Agent
from retinue_server.runtime.executor import TurnExecutor
from retinue_server.runtime.turn import MemoryWrite

from .executor import A2AExecutor, History
from .validation import require_parts


class ForeignExecutor(TurnExecutor):
    """Runs any a2a-sdk `AgentExecutor`. It takes every message that has parts, and leaves nothing to a memory."""

    def __init__(self, executor: AgentExecutor) -> None:
        self._executor = executor

    def check(self, request: SendMessageRequest) -> None:
        require_parts(request)

    def pending_writes(self, task: Task, tenant: str, written: Sequence[MemoryWrite]) -> list[MemoryWrite]:
        return []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        await self._executor.execute(context, event_queue)

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await self._executor.cancel(context, event_queue)


def turn_executor(served: Agent | AgentExecutor, history: History) -> TurnExecutor:
    """Return the executor of a configured agent: of ours, of a `TurnExecutor`, or of any other `AgentExecutor`."""
    match served:
        case Agent():
            return A2AExecutor(served, history=history)
        case TurnExecutor():
            return served
        case _:
            return ForeignExecutor(served)
