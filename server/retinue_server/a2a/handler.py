"""The request handler: the A2A operations over the turn runtime. What is refused here is not stored."""

from __future__ import annotations

import base64
import json
import uuid
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
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    ExtendedAgentCardNotConfiguredError,
    ExtensionSupportRequiredError,
    InvalidParamsError,
    TaskNotFoundError,
)

from retinue_server.auth.owners import caller_of, checked_id, user_of
from retinue_server.delivery.push import Pusher
from retinue_server.runtime.engine import Engine, Submission
from retinue_server.runtime.events import Event, Numbered
from retinue_server.runtime.executor import TurnExecutor
from retinue_server.runtime.store.base import Listing, Store
from retinue_server.runtime.turn import Accepted, Caller

from .cards import ANY
from .errors import translated
from .generation import LATEST, shown
from .json_codec import struct_json
from .validation import unfit, unfit_message

_PAGE, _LONGEST_PAGE = 50, 100
_USER = Role.ROLE_USER  # to look a name up in a protobuf enumeration takes longer than to check it
_LONGEST_TOKEN = 512


class Handler(RequestHandler):
    """Serves one agent. `card` tells what it declares: extensions it requires, media types it takes."""

    def __init__(
        self, name: str, executor: TurnExecutor, card: AgentCard, *, engine: Engine, store: Store, pusher: Pusher
    ) -> None:
        self._name = name
        self._executor = executor
        self._engine = engine
        self._store = store
        self._pusher = pusher
        self._required = frozenset(found.uri for found in card.capabilities.extensions if found.required)
        self._modes = frozenset(card.default_input_modes).union(*(skill.input_modes for skill in card.skills))

    # -- messages ------------------------------------------------------------------------------------------------------

    @translated
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task | Message:
        submission = await self._submit(params, context)
        accepted, turn = submission.accepted, submission.turn
        length = _history_length(params.configuration)
        if turn is None:
            return accepted.answer or _shortened(shown(self._now(accepted, context), context), length)
        if params.configuration.return_immediately and turn.acknowledge():
            return _shortened(shown(self._now(accepted, context), context), length)
        answer = await turn.result()
        return answer if isinstance(answer, Message) else _shortened(shown(answer, context), length)

    @translated
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        submission = await self._submit(params, context)
        accepted, turn = submission.accepted, submission.turn
        length = _history_length(params.configuration)
        if turn is None:
            yield accepted.answer or _streamed(self._now(accepted, context), context, length)
            return
        replayed = self._now(accepted, context) if accepted.replay and turn.acknowledge() else None
        subscriber = turn.subscribe(after=replayed.generation if replayed else 0)
        try:
            if replayed is not None:
                yield _streamed(replayed, context, length)
            async for event in subscriber:
                yield _streamed(event, context, length)
        finally:
            subscriber.close()
        turn.result_now()  # raises the error if the turn was stopped

    async def _submit(self, params: SendMessageRequest, context: ServerCallContext) -> Submission:
        message = params.message
        _need(messageId=message.message_id)
        checked_id(message.message_id, "messageId")
        checked_id(message.context_id, "contextId")
        checked_id(message.task_id, "taskId")
        if message.role != _USER:
            raise InvalidParamsError("role: a message that is sent to an agent has the role ROLE_USER")
        self._executor.check(params)
        problem = unfit_message(message) or (unfit(params.metadata) if params.HasField("metadata") else None)
        if problem:
            raise InvalidParamsError(f"message: {problem}")
        self._check_modes(message)
        self._check_extensions(context)
        _history_length(params.configuration)
        caller = self._caller(context)
        user = user_of(struct_json(params.metadata), message.metadata)
        if params.configuration.HasField("task_push_notification_config"):
            await self._prepare(params.configuration.task_push_notification_config)
        extensions = frozenset(context.requested_extensions)
        return await self._engine.submit(caller, params, user=user, extensions=extensions)

    def _now(self, accepted: Accepted, context: ServerCallContext) -> Numbered[Task]:
        """The task as everyone sees it: a message that waits is no part of it before its turn."""
        live = self._engine.live(self._caller(context), accepted.turn.task_id)
        return live or Numbered(accepted.task, accepted.generation)

    def _check_modes(self, message: Message) -> None:
        for part in message.parts:
            if part.media_type and not self._modes & {part.media_type, ANY}:
                raise ContentTypeNotSupportedError(
                    f"mediaType {part.media_type}: this agent takes {', '.join(sorted(self._modes))}"
                )

    def _check_extensions(self, context: ServerCallContext) -> None:
        if self._required and (missing := self._required - context.requested_extensions):
            raise ExtensionSupportRequiredError(f"this agent requires the extensions {', '.join(sorted(missing))}")

    # -- tasks ---------------------------------------------------------------------------------------------------------

    @translated
    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task:
        _need(id=params.id)
        length = _history_length(params)
        caller = self._caller(context)
        task = self._engine.live(caller, params.id) or await self._store.task(caller, params.id)
        if task is None:
            raise TaskNotFoundError(f"there is no task {params.id}")
        return _shortened(shown(task, context), length)

    @translated
    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        length = _history_length(params)
        size = params.page_size if params.HasField("page_size") else _PAGE
        if not 1 <= size <= _LONGEST_PAGE:
            raise InvalidParamsError(f"pageSize: must be 1 to {_LONGEST_PAGE}, but is {size}")
        caller = self._caller(context)
        before, total = _read_token(params.page_token)
        listing = Listing(
            context_id=params.context_id,
            state=params.status,
            after=params.status_timestamp_after.ToMicroseconds() if params.HasField("status_timestamp_after") else -1,
            size=size + 1,
            before=before,
            count=total is None,
        )
        at_work = self._engine.active_tasks()
        tasks, counted = await self._store.tasks(caller, listing)
        more = len(tasks) > size
        page = tasks[:size]
        total = counted if total is None else total
        token = _write_token(page[-1].event, total) if more else ""
        newest = [await self._newest(caller, task, at_work) for task in page]
        listed = [_listed(shown(task, context), params.include_artifacts, length) for task in newest]
        return ListTasksResponse(tasks=listed, next_page_token=token, page_size=size, total_size=total)

    async def _newest(self, caller: Caller, task: Numbered[Task], at_work: frozenset[str]) -> Numbered[Task]:
        """A task of a page as it is by now: its turn may have ended after the page was read, and is not live any more then."""
        task_id = task.event.id
        live = self._engine.live(caller, task_id)
        if live is None and task_id in at_work:
            live = await self._store.task(caller, task_id)
        return live or task

    @translated
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        _need(id=params.id)
        return shown(await self._engine.cancel(self._caller(context), params.id), context)

    @translated
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        _need(id=params.id)
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
        _need(taskId=params.task_id)
        await self._prepare(params)
        caller = self._caller(context)
        if not await self._store.set_push_config(caller, params):
            raise TaskNotFoundError(f"there is no task {params.task_id}")
        self._engine.start_pushing(caller, params.task_id)
        return params

    @translated
    async def on_get_task_push_notification_config(
        self, params: GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        _need(id=params.id)
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
        _need(taskId=params.task_id, id=params.id)
        if not await self._store.delete_push_config(self._caller(context), params.task_id, params.id):
            raise TaskNotFoundError(f"there is no task {params.task_id}")

    async def _prepare(self, config: TaskPushNotificationConfig) -> None:
        _need(url=config.url)
        await self._pusher.check(config)
        config.id = checked_id(config.id, "id") or str(uuid.uuid4())

    async def _push_configs(self, task_id: str, context: ServerCallContext) -> list[TaskPushNotificationConfig]:
        _need(taskId=task_id)
        found = await self._store.push_configs(self._caller(context), task_id)
        if found is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return found

    # -- the rest --------------------------------------------------------------------------------------------------------

    @translated
    async def on_get_extended_agent_card(
        self, params: GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> AgentCard:
        raise ExtendedAgentCardNotConfiguredError("this agent has no card but its public one")

    def _caller(self, context: ServerCallContext) -> Caller:
        return caller_of(context, self._name)


def _need(**fields: str) -> None:
    """Raise InvalidParamsError, which names them, for fields that are not set."""
    missing = [{"field": name, "message": "Field is required."} for name, value in fields.items() if not value]
    if missing:
        raise InvalidParamsError(f"{missing[0]['field']}: is missing", {"errors": missing})


def _history_length(params: SendMessageConfiguration | GetTaskRequest | ListTasksRequest) -> int | None:
    """How many messages of the history are asked for; None: all. Raises InvalidParamsError for a negative number."""
    if not params.HasField("history_length"):
        return None
    if params.history_length < 0:
        raise InvalidParamsError(f"historyLength: must not be negative, but is {params.history_length}")
    return params.history_length


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


def _write_token(last: Task, total: int) -> str:
    place = [last.status.timestamp.ToMicroseconds(), last.id, total]
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode()


def _read_token(token: str) -> tuple[tuple[int, str] | None, int | None]:
    """Where the page before ended, and how many tasks there were when the first page was read."""
    if not token:
        return None, None
    try:
        if len(token) > _LONGEST_TOKEN:
            raise ValueError("it is too long")
        at, task_id, total = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if not (type(at) is int and isinstance(task_id, str) and type(total) is int):
            raise ValueError("it holds something else")
        if abs(at) > 2**62 or not 0 <= total < 2**31 or not task_id.isascii():
            raise ValueError("it is out of range")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidParamsError("pageToken: is not one that this server gave") from error
    return (at, task_id), total
