"""python echo.py PORT: the same echo on nothing but a2a-sdk, as its documentation has it; tasks are kept in memory.

A program of its own that imports nothing of Retinue. Tracing is left as the SDK has it by default.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, Part, Task, TaskState, TaskStatus
from starlette.applications import Starlette
from starlette.routing import BaseRoute


class Echo(AgentExecutor):
    """Task, working, artifact, completed: the artifact in `chunks` pieces, `delay` seconds before each."""

    def __init__(self, *, chunks: int = 1, delay: float = 0.0) -> None:
        self._chunks = chunks
        self._delay = delay

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message
        assert context.task_id
        assert context.context_id
        submitted = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        task = Task(id=context.task_id, context_id=context.context_id, status=submitted, history=[context.message])
        await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        text = context.get_user_input()
        size = -(-len(text) // self._chunks)
        for start in range(0, len(text), size):
            if self._delay:
                await asyncio.sleep(self._delay)
            await updater.add_artifact(
                [Part(text=text[start : start + size])],
                artifact_id="answer",
                append=start > 0,
                last_chunk=start + size >= len(text),
            )
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").cancel()


def main(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    card = AgentCard(
        name="echo",
        description="Says it again.",
        version="1.0.0",
        supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
    )
    executors = {"/": Echo(), "/agents/deltas/": Echo(chunks=200), "/agents/slow/": Echo(delay=0.2)}
    routes: list[BaseRoute] = [*create_agent_card_routes(card)]
    for path, executor in executors.items():
        handler = DefaultRequestHandler(agent_executor=executor, task_store=InMemoryTaskStore(), agent_card=card)
        routes += create_jsonrpc_routes(handler, path)
    uvicorn.run(Starlette(routes=routes), port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
