"""Executors that others wrote."""

from __future__ import annotations

from collections.abc import Sequence

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.types import SendMessageRequest, Task

from retinue_server.runtime.executor import TurnExecutor
from retinue_server.runtime.turn import MemoryWrite

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


def turn_executor(executor: AgentExecutor) -> TurnExecutor:
    """Return a configured executor as the runtime runs it: itself, or wrapped."""
    return executor if isinstance(executor, TurnExecutor) else ForeignExecutor(executor)
