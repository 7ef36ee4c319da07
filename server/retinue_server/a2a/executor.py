"""A2AExecutor: translate a request into an InvocationContext, and an agent's events into A2A events.

It is a plain a2a-sdk `AgentExecutor`: it runs under the SDK's `DefaultRequestHandler` as well as under ours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self, cast

from a2a.server.agent_execution import RequestContext
from a2a.server.events import EventQueue
from a2a.types import (
    Artifact,
    Part,
    Role,
    SendMessageRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatusUpdateEvent,
)
from a2a.types import Message as A2AMessage
from a2a.utils.errors import InvalidParamsError
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from retinue_agents import (
    Agent,
    Journal,
    NullJournal,
    State,
)
from retinue_agents.events import (
    Event,
    FinalAnswer,
    InputRequired,
    MemoryFailed,
    MemoryRetrieved,
    MemoryUpdated,
    StepLimitReached,
    TextDelta,
    ToolCalled,
)
from retinue_memory import InvocationContext, Message, provenance
from retinue_memory.clock import now_us
from retinue_memory.errors import RetinueError
from retinue_memory.recall import NO_ANSWER
from retinue_server.auth.owners import user_of
from retinue_server.runtime.executor import TurnExecutor
from retinue_server.runtime.turn import WRITES, MemoryWrite

logger = logging.getLogger(__name__)

History = Callable[[RequestContext], Awaitable[list[Message]]]
"""Loads the messages of the request's context before its own, oldest first, in a window that fits a prompt."""

JOURNAL = "retinue.journal"
"""The key of the turn's `Journal` in `call_context.state`; the runtime sets it."""
TURN = "retinue.turn"
"""The key of the `Turn` itself. The runtime also publishes the task of a new turn, which it has created."""
MEMORY = "memory"
"""The metadata key of the memory extension, in requests and in finished tasks."""
MEMORY_EXTENSION = "urn:retinue:a2a:memory:v1"
_MAX_TOP_K = 100


def text_of(message: A2AMessage) -> str:
    """Return the text parts of a message and its data parts as JSON, a line each."""
    return "\n".join(
        part.text if part.HasField("text") else json.dumps(MessageToDict(part.data), ensure_ascii=False)
        for part in message.parts
        if part.HasField("text") or part.HasField("data")
    )


def refuse_without_text(message: A2AMessage) -> None:
    """Raise InvalidParamsError if a message has no text for a model."""
    if not any(part.text.strip() for part in message.parts):
        reason = "has no parts" if not message.parts else "has no text"
        raise InvalidParamsError(f"the message {reason}: this agent reads text, so send at least one part with text")


def answer_to(message_id: str) -> str:
    """Return the id of the artifact that answers a message."""
    return f"answer-{message_id}"


def conversation(task: Task) -> list[Message]:
    """Return a stored task as the messages of a prompt: its history, then its artifacts as the agent's answers."""
    history = [_message(entry) for entry in task.history if entry.parts]
    answers = [
        Message("assistant", "".join(part.text for part in artifact.parts), id=f"{task.id}/{artifact.artifact_id}")
        for artifact in task.artifacts
    ]
    return [message for message in (*history, *answers) if message.content]


def asked_back(task: Task | None) -> list[Message]:
    """Return the user's latest messages in a task that the agent answered with a question.

    They are remembered when the task has an answer, or ends without one. Messages that must not be remembered are left out,
    and so are those before a message that got an answer.
    """
    found: list[Message] = []
    for message, reply in reversed(list(pairwise(task.history if task is not None else ()))):
        if message.role == Role.ROLE_USER and reply.role == Role.ROLE_USER:
            break
        if message.role == Role.ROLE_USER and MEMORY not in reply.metadata:
            found.append(_message(message))
    return found[::-1]


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory settings of a request, by the extension `urn:retinue:a2a:memory:v1`: `memory: {mode, top_k}`."""

    recall: bool = True
    remember: bool = True
    top_k: int | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        """Read them from a request's metadata. Raises InvalidParamsError for a value that the extension does not know."""
        given = metadata.get(MEMORY)
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise InvalidParamsError("memory: must be an object with mode and top_k")
        settings = cast("dict[str, Any]", given)
        mode, top_k = settings.get("mode", "on"), settings.get("top_k")
        if mode not in ("on", "read-only", "off"):
            raise InvalidParamsError('memory.mode: must be "on", "read-only" or "off"')
        if top_k is not None and not (isinstance(top_k, float | int) and top_k in range(1, _MAX_TOP_K + 1)):
            raise InvalidParamsError(f"memory.top_k: must be a whole number from 1 to {_MAX_TOP_K}")
        return cls(recall=mode != "off", remember=mode == "on", top_k=None if top_k is None else int(top_k))

    @property
    def mode(self) -> str:
        return "on" if self.remember else "read-only" if self.recall else "off"


class A2AExecutor(TurnExecutor):
    """Runs an agent for each request."""

    events_need_checks = False  # they hold text and JSON of ours

    def __init__(self, agent: Agent, *, history: History | None = None) -> None:
        """Without `history`, the agent gets the messages of the request's own task only."""
        self.agent = agent
        self._history = history or _of_task

    def check(self, request: SendMessageRequest) -> None:
        refuse_without_text(request.message)
        if MEMORY in request.metadata:
            MemoryUse.of(MessageToDict(request.metadata))

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        message = context.message
        if message is None:
            raise InvalidParamsError("the request carries no message")
        under_runtime = TURN in context.call_context.state
        if not under_runtime:
            refuse_without_text(message)  # else `check` has done it
        metadata = context.metadata  # a property that builds a new dictionary
        use = MemoryUse.of(metadata)
        task = context.current_task
        user = user_of(metadata, message.metadata, task.metadata if task else None)
        publish = _Publisher(context, event_queue, use)
        history = await self._history(context)
        if task is None and not under_runtime:
            await publish.task(message, user)
        await publish.status(TaskState.TASK_STATE_WORKING)
        turn = InvocationContext(
            session_id=message.context_id,
            user_id=user,
            tenant=context.tenant,
            agent=self.agent.name,
            task_id=message.task_id,
            turn_id=f"{message.task_id}/{message.message_id}",
            metadata=metadata,
        )
        state = State([*history, _message(message)])
        journal: Journal = context.call_context.state.get(JOURNAL) or NullJournal()
        try:
            stream = self.agent.stream(
                state,
                ctx=turn,
                journal=journal,
                recall=use.recall,
                remember=use.remember,
                top_k=use.top_k,
                earlier=asked_back(task),
            )
            write = await stream.run(publish.event)
            if under_runtime:
                for event in await stream.outcome(write):
                    await publish.event(event)
            elif write is not None:
                await publish.event(MemoryUpdated())  # it is in flight, and must not delay the answer
        except RetinueError as error:
            logger.warning("task %s failed: %s", message.task_id, error)
            await publish.failure(str(error))
        except Exception:
            logger.exception("task %s failed", message.task_id)
            await publish.failure("the agent failed unexpectedly; the server's log says why")
        else:
            await publish.end()

    def pending_writes(self, task: Task, tenant: str, written: Sequence[MemoryWrite]) -> list[MemoryWrite]:
        messages = asked_back(task) if self.agent.remembers else []
        if not messages:
            return []
        context = InvocationContext(
            session_id=task.context_id,
            user_id=user_of({}, None, task.metadata),
            tenant=tenant,
            agent=self.agent.name,
            task_id=task.id,
            turn_id=f"{task.id}/{messages[-1].id}",
        )
        found: list[MemoryWrite] = []
        outer = WRITES.set(found)
        try:
            for memory in self.agent.memories:
                memory.take(messages, ctx=context)
        finally:
            WRITES.reset(outer)
        return [write for one in found if (write := _without(one, written)) is not None]

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        await _Publisher(context, event_queue).status(TaskState.TASK_STATE_CANCELED)


class _Publisher:
    """Publishes an agent's events as A2A events. A text delta is held until the next one, so that the last can be marked."""

    def __init__(self, context: RequestContext, queue: EventQueue, use: MemoryUse | None = None) -> None:
        self._task_id = context.task_id or ""
        self._context_id = context.context_id or ""
        self._artifact_id = answer_to(context.message.message_id) if context.message else "answer"
        self._enqueue: Callable[[Any], Awaitable[None]] = queue.enqueue_event
        self._use = use or MemoryUse()
        self._held: str | None = None
        self._appends = False
        self._memory: dict[str, Any] = {}
        self._end: tuple[TaskState, str | None] | None = None

    async def event(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                await self._flush()
                self._held = text
            case ToolCalled():
                await self._flush()
                self._appends = False  # the model's next text replaces this one
            case MemoryRetrieved(messages):
                retrieved: list[Any] = self._memory.setdefault("retrieved", [])
                known = {one["id"] for one in retrieved}
                retrieved += [one for one in map(_provenance, messages) if one["id"] not in known]
            case MemoryUpdated():
                self._memory["update"] = "pending"
            case MemoryFailed(operation, memory, problem):
                failures: list[Any] = self._memory.setdefault("failed", [])
                public = problem.startswith(NO_ANSWER)  # other problems may reveal internals
                shown = problem if public else "it failed; the server's log says why"
                failures.append({"operation": operation, "memory": memory, "problem": shown})
            case FinalAnswer(content):
                if self._held is None and not self._appends:
                    self._held = content
                await self._flush(last=True)
                self._end = (TaskState.TASK_STATE_COMPLETED, None)
            case InputRequired(content):
                await self._flush(last=True)
                self._end = (TaskState.TASK_STATE_INPUT_REQUIRED, content)
            case StepLimitReached(steps):
                await self._flush(last=True)
                self._end = (
                    TaskState.TASK_STATE_FAILED,
                    f"the agent reached its limit of {steps} steps without an answer: raise max_steps, or ask for less",
                )
            case _:
                pass

    async def end(self) -> None:
        """Publish the end of the turn, with its use of memory."""
        state, text = self._end or (TaskState.TASK_STATE_FAILED, "the agent ended without an answer")
        await self.status(state, text, self._metadata())

    async def failure(self, reason: str) -> None:
        await self._flush(last=True)
        await self.status(TaskState.TASK_STATE_FAILED, reason, self._metadata())

    async def task(self, message: A2AMessage, user: str | None) -> None:
        task = Task(id=self._task_id, context_id=self._context_id, history=[message])
        task.status.state = TaskState.TASK_STATE_SUBMITTED
        task.status.timestamp.FromMicroseconds(now_us())
        if user is not None:
            task.metadata["user_id"] = user
        await self._enqueue(task)

    async def status(self, state: TaskState, text: str | None = None, metadata: Struct | None = None) -> None:
        event = TaskStatusUpdateEvent(task_id=self._task_id, context_id=self._context_id, metadata=metadata)
        event.status.state = state
        event.status.timestamp.FromMicroseconds(now_us())
        if text is not None:
            event.status.message.CopyFrom(
                A2AMessage(
                    message_id=f"{self._artifact_id}/status",
                    task_id=self._task_id,
                    context_id=self._context_id,
                    role=Role.ROLE_AGENT,
                    parts=[Part(text=text)],
                )
            )
            if state == TaskState.TASK_STATE_INPUT_REQUIRED and not self._use.remember:
                event.status.message.metadata.update({MEMORY: {"mode": self._use.mode}})  # for when the task ends
        await self._enqueue(event)

    async def _flush(self, *, last: bool = False) -> None:
        if self._held is None:
            return
        text, self._held = self._held, None
        await self._enqueue(
            TaskArtifactUpdateEvent(
                task_id=self._task_id,
                context_id=self._context_id,
                artifact=Artifact(artifact_id=self._artifact_id, name="answer", parts=[Part(text=text)]),
                append=self._appends,
                last_chunk=last,
            )
        )
        self._appends = True

    def _metadata(self) -> Struct | None:
        if not self._memory:
            return None
        found = Struct()
        found.update({MEMORY: self._memory})
        return found


async def _of_task(context: RequestContext) -> list[Message]:
    if context.current_task is None or context.message is None:
        return []
    latest = context.message.message_id
    return [message for message in conversation(context.current_task) if message.id != latest]


def _message(message: A2AMessage) -> Message:
    return Message("assistant" if message.role == Role.ROLE_AGENT else "user", text_of(message), id=message.message_id)


def _without(write: MemoryWrite, written: Sequence[MemoryWrite]) -> MemoryWrite | None:
    """Return the write without the messages that its memory gets with others. Returns None if it gets all of them."""
    known = {message.id for other in written if other.memory == write.memory for message in other.messages}
    left = [message for message in write.messages if message.id not in known]
    return MemoryWrite(write.memory, write.context, left) if left else None


def _provenance(message: Message) -> Mapping[str, Any]:
    known = provenance(message)
    return {"id": known["id"], "score": known["score"], "kind": known["kind"], "sources": known["sources"]}
