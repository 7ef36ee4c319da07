"""The request handler: what a message must be before anything is stored or run for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.server.events import Event
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore, TaskStore
from a2a.types import AgentCard, ListTasksRequest, SendMessageRequest, Task
from a2a.types import Message as A2AMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from recollect_memory import Message

from .executor import A2AExecutor, History, conversation
from .identity import USER_ID, user_of

HISTORY_TASKS = 20
"""How many earlier tasks of a context a model may see."""
HISTORY_CHARACTERS = 8_000
"""How much of them, counted from the latest word back: about 2,000 tokens of English."""


class Handler(DefaultRequestHandler):
    """The SDK's handler, which refuses a message that could not be run before it makes a task of it."""

    def __init__(self, executor: AgentExecutor, store: TaskStore, card: AgentCard) -> None:
        super().__init__(agent_executor=executor, task_store=store, agent_card=card)
        self._executor = executor
        self._store = store

    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> A2AMessage | Task:
        await self._screen(params, context)
        answer: Any = await super().on_message_send(params, context)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return cast("A2AMessage | Task", answer)

    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        await self._screen(params, context)
        events: Any = super().on_message_send_stream(params, context)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        async for event in cast("AsyncGenerator[Event, None]", events):
            yield event

    async def _screen(self, params: SendMessageRequest, context: ServerCallContext) -> None:
        """Raise InvalidParamsError for what could not be run, and give a follow-up the context of its task."""
        message = params.message
        stored = await self._store.get(message.task_id, context) if message.task_id else None
        user_of(MessageToDict(params.metadata), message.metadata, stored.metadata if stored else None)
        if isinstance(self._executor, A2AExecutor):
            self._executor.check(message)
        if stored is not None and not message.context_id:
            message.context_id = stored.context_id


def task_store() -> TaskStore:
    """Tasks in memory, each seen by the principal and the tenant it belongs to."""
    return InMemoryTaskStore(
        owner_resolver=lambda context: f"{len(context.tenant)}:{context.tenant}{context.user.user_name}"
    )


def history_from(store: TaskStore) -> History:
    """What was said before in a request's context by and to its user, from the stored tasks, oldest first."""

    async def history(request: RequestContext) -> list[Message]:
        message, current = request.message, request.current_task
        if message is None:
            return []
        user = user_of(request.metadata, message.metadata, current.metadata if current else None)
        query = ListTasksRequest(context_id=request.context_id or "", page_size=HISTORY_TASKS, include_artifacts=True)
        page = await store.list(query, request.call_context)
        earlier = [task for task in reversed(page.tasks) if _user(task.metadata) == user]
        said = [entry for task in earlier for entry in conversation(task) if entry.id != message.message_id]
        return _latest(said)

    return history


def _user(metadata: Struct) -> str | None:
    return str(metadata[USER_ID]) if USER_ID in metadata else None


def _latest(messages: list[Message]) -> list[Message]:
    """The messages at the end that fit together into what a prompt may spend on the past."""
    left = HISTORY_CHARACTERS
    for index in range(len(messages) - 1, -1, -1):
        left -= len(messages[index].content)
        if left < 0:
            return messages[index + 1 :]
    return messages
