"""Handler: the A2A operations of one agent, over the engine and the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import RequestHandler
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils.errors import ExtendedAgentCardNotConfiguredError, InvalidParamsError, TaskNotFoundError

from retinue_server.auth.owners import caller_of
from retinue_server.delivery.push import Pusher
from retinue_server.runtime.engine import Engine, Submission
from retinue_server.runtime.events import Event, Numbered
from retinue_server.runtime.executor import TurnExecutor
from retinue_server.runtime.store.push import PushRows
from retinue_server.runtime.store.tasks import Listing, Tasks
from retinue_server.runtime.turn import Accepted, Caller

from .errors import translated
from .generation import LATEST, shown
from .page_token import PageToken
from .validation import IncomingMessage, MessageValidator, complete_push_config, history_length, require

_DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE = 50, 100


class Handler(RequestHandler):
    """Serves the agent `name`. A request that is refused leaves nothing in the store."""

    def __init__(
        self,
        name: str,
        executor: TurnExecutor,
        card: AgentCard,
        engine: Engine,
        tasks: Tasks,
        push: PushRows,
        pusher: Pusher,
    ) -> None:
        self._name = name
        self._engine = engine
        self._tasks = tasks
        self._push = push
        self._pusher = pusher
        self._validator = MessageValidator(card, executor.check)

    # -- messages ------------------------------------------------------------------------------------------------------

    @translated
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task | Message:
        caller = self._caller(context)
        incoming = await self._validated(params, context)
        submission = await self._submit(caller, incoming)
        accepted, turn, length = submission.accepted, submission.turn, incoming.history_length
        if turn is None:
            return accepted.answer or _shortened(shown(self._now(caller, accepted), context), length)
        if params.configuration.return_immediately and turn.acknowledge():
            return _shortened(shown(self._now(caller, accepted), context), length)
        answer = await turn.result()
        return answer if isinstance(answer, Message) else _shortened(shown(answer, context), length)

    @translated
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        caller = self._caller(context)
        incoming = await self._validated(params, context)
        submission = await self._submit(caller, incoming)
        accepted, turn, length = submission.accepted, submission.turn, incoming.history_length
        if turn is None:
            yield accepted.answer or _streamed(self._now(caller, accepted), context, length)
            return
        replayed = self._now(caller, accepted) if accepted.replay and turn.acknowledge() else None
        subscriber = turn.subscribe(after=replayed.generation if replayed else 0)
        try:
            if replayed is not None:
                yield _streamed(replayed, context, length)
            async for event in subscriber:
                yield _streamed(event, context, length)
        finally:
            subscriber.close()
        turn.result_now()  # raises the error if the turn was stopped

    async def _validated(self, params: SendMessageRequest, context: ServerCallContext) -> IncomingMessage:
        incoming = self._validator.validate(params, context.requested_extensions)
        if incoming.push is not None:
            await self._pusher.check(incoming.push)
        return incoming

    async def _submit(self, caller: Caller, incoming: IncomingMessage) -> Submission:
        return await self._engine.submit(caller, incoming.request, user=incoming.user, extensions=incoming.extensions)

    def _now(self, caller: Caller, accepted: Accepted) -> Numbered[Task]:
        """The task as every caller sees it: a message that waits becomes part of it when its turn starts."""
        live = self._engine.live(caller, accepted.turn.task_id)
        return live or Numbered(accepted.task, accepted.generation)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @translated
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task:
        require(id=params.id)
        length = history_length(params)
        caller = self._caller(context)
        task = self._engine.live(caller, params.id) or await self._tasks.get(caller, params.id)
        if task is None:
            raise TaskNotFoundError(f"there is no task {params.id}")
        return _shortened(shown(task, context), length)

    @translated
    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        length = history_length(params)
        size = params.page_size if params.HasField("page_size") else _DEFAULT_PAGE_SIZE
        if not 1 <= size <= _MAX_PAGE_SIZE:
            raise InvalidParamsError(f"pageSize: expected 1 to {_MAX_PAGE_SIZE}, got {size}")
        caller = self._caller(context)
        last = PageToken.decode(params.page_token)
        listing = Listing(
            context_id=params.context_id,
            state=params.status,
            after=params.status_timestamp_after.ToMicroseconds() if params.HasField("status_timestamp_after") else -1,
            size=size + 1,
            before=(last.at_us, last.task_id) if last else None,
            count=last is None,
        )
        if listing.state:
            await self._engine.commit_states(caller)
        at_work = self._engine.active_tasks()
        tasks, counted = await self._tasks.page(caller, listing)
        page, more = tasks[:size], len(tasks) > size
        total = last.total if last else counted
        token = PageToken.after(page[-1].event, total).encode() if more else ""
        newest = [await self._newest(caller, task, at_work) for task in page]
        listed = [_listed(shown(task, context), params.include_artifacts, length) for task in newest]
        return ListTasksResponse(tasks=listed, next_page_token=token, page_size=size, total_size=total)

    async def _newest(self, caller: Caller, task: Numbered[Task], at_work: frozenset[str]) -> Numbered[Task]:
        """The current state of a listed task: its turn may have ended, and not be live any more, since the page was read."""
        task_id = task.event.id
        live = self._engine.live(caller, task_id)
        if live is None and task_id in at_work:
            live = await self._tasks.get(caller, task_id)
        return live or task

    @translated
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        require(id=params.id)
        return shown(await self._engine.cancel(self._caller(context), params.id), context)

    @translated
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        require(id=params.id)
        task, subscriber = await self._engine.subscribe(self._caller(context), params.id)
        try:
            yield _streamed(task, context)
            async for event in subscriber:
                yield _streamed(event, context)
        finally:
            self._engine.unsubscribe(params.id, subscriber)

    # -- push notification configs --------------------------------------------------------------------------------------

    @translated
    async def on_create_task_push_notification_config(
        self, params: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        require(taskId=params.task_id)
        complete_push_config(params)
        await self._pusher.check(params)
        caller = self._caller(context)
        if not await self._push.set_push_config(caller, params):
            raise TaskNotFoundError(f"there is no task {params.task_id}")
        self._engine.start_pushing(caller, params.task_id)
        return params

    @translated
    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        require(id=params.id)
        for config in await self._push_configs(params.task_id, context):
            if config.id == params.id:
                return config
        raise TaskNotFoundError(f"task {params.task_id} has no push notification config {params.id}")

    @translated
    async def on_list_task_push_notification_configs(
        self, params: ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> ListTaskPushNotificationConfigsResponse:
        return ListTaskPushNotificationConfigsResponse(configs=await self._push_configs(params.task_id, context))

    @translated
    async def on_delete_task_push_notification_config(
        self, params: DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        require(taskId=params.task_id, id=params.id)
        if not await self._push.delete_push_config(self._caller(context), params.task_id, params.id):
            raise TaskNotFoundError(f"there is no task {params.task_id}")

    async def _push_configs(self, task_id: str, context: ServerCallContext) -> list[TaskPushNotificationConfig]:
        require(taskId=task_id)
        found = await self._push.push_configs(self._caller(context), task_id)
        if found is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return found

    # -- the rest --------------------------------------------------------------------------------------------------------

    @translated
    async def on_get_extended_agent_card(
        self, params: GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> AgentCard:
        raise ExtendedAgentCardNotConfiguredError("this agent has only its public card")

    def _caller(self, context: ServerCallContext) -> Caller:
        return caller_of(context, self._name)


def _streamed(numbered: Numbered[Event], context: ServerCallContext, length: int | None = None) -> Event:
    """Return the event to stream, and leave its generation to the binding."""
    context.state[LATEST] = numbered.generation
    event = shown(numbered, context)
    return _shortened(event, length) if isinstance(event, Task) else event


def _shortened(task: Task, length: int | None) -> Task:
    if length is None or len(task.history) <= length:
        return task
    copied = Task()
    copied.CopyFrom(task)
    del copied.history[: len(copied.history) - length]
    return copied


def _listed(task: Task, artifacts: bool, length: int | None) -> Task:
    if not artifacts:
        task.ClearField("artifacts")
    return _shortened(task, length)
