"""An a2a-sdk executor that does what the message tells it to, word by word: how tests direct a foreign agent.

`say:x`, `many:n` and `big:n` stream text, `work`, `ask`, `auth`, `done`, `fail` and `reject` change the state, `direct:x` answers
with a message, `wait:x` waits for the gate x, `hang` waits for ever, `deaf:x` does so and swallows its cancellation until gate x
is open, `block:x` waits in a thread, `nan` and `deep` say what JSON cannot, and `crash` raises.
"""

from __future__ import annotations

import asyncio
import math
import threading
import uuid
from collections.abc import Callable

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.types import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.struct_pb2 import ListValue, Value

BIG = 1000
STATES = {
    "work": TaskState.TASK_STATE_WORKING,
    "ask": TaskState.TASK_STATE_INPUT_REQUIRED,
    "auth": TaskState.TASK_STATE_AUTH_REQUIRED,
    "done": TaskState.TASK_STATE_COMPLETED,
    "fail": TaskState.TASK_STATE_FAILED,
    "reject": TaskState.TASK_STATE_REJECTED,
}


def _nested(levels: int) -> Value:
    value = Value(string_value="x")
    for _ in range(levels):
        value = Value(list_value=ListValue(values=[value]))
    return value


class Actor(AgentExecutor):
    """`gates` are opened by the test; `began` has the text of every message in the order in which they were begun."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.threads: dict[str, threading.Event] = {}
        self.began: list[str] = []
        self.running = 0
        self.most_running = 0
        self.told: Callable[[str], None] = lambda text: None

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        text = context.get_user_input()
        self.began.append(text)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._act(context, event_queue, text)
        finally:
            self.running -= 1

    async def _act(self, context: RequestContext, queue: EventQueue, text: str) -> None:
        assert context.message is not None
        task_id, context_id = context.task_id or "", context.context_id or ""
        artifact_id = f"artifact-{context.message.message_id}"
        said = False
        if context.current_task is None and "direct:" not in text:
            task = Task(id=task_id, context_id=context_id, history=[context.message])
            task.status.state = TaskState.TASK_STATE_SUBMITTED
            await queue.enqueue_event(task)

        async def say(piece: str, *, last: bool = False) -> None:
            nonlocal said
            artifact = Artifact(artifact_id=artifact_id, parts=[Part(text=piece)])
            await queue.enqueue_event(
                TaskArtifactUpdateEvent(
                    task_id=task_id, context_id=context_id, artifact=artifact, append=said, last_chunk=last
                )
            )
            said = True

        for word in text.split():
            command, _, value = word.partition(":")
            match command:
                case "say":
                    await say(value)
                case "many":
                    for number in range(int(value)):
                        await say(f"{number} ", last=number == int(value) - 1)
                        await asyncio.sleep(0)
                case "big":
                    for _ in range(int(value)):
                        await say("x" * BIG)
                        await asyncio.sleep(0)
                case "direct":
                    await queue.enqueue_event(
                        Message(message_id=uuid.uuid4().hex, role=Role.ROLE_AGENT, parts=[Part(text=value)])
                    )
                case "wait":
                    await self.gate(value).wait()
                case "hang":
                    await asyncio.Event().wait()
                case "deaf":
                    await self._deaf(value)
                case "block":
                    await asyncio.to_thread(self.threads.setdefault(value, threading.Event()).wait, 20)
                case "nan" | "deep":
                    part = Part(data=Value(number_value=math.nan) if command == "nan" else _nested(40))
                    artifact = Artifact(artifact_id=artifact_id, parts=[part])
                    await queue.enqueue_event(
                        TaskArtifactUpdateEvent(task_id=task_id, context_id=context_id, artifact=artifact)
                    )
                case "crash":
                    raise ValueError("a secret of the server: /etc/hidden")
                case _ if command in STATES:
                    words = Message(message_id=uuid.uuid4().hex, role=Role.ROLE_AGENT, parts=[Part(text=command)])
                    status = TaskStatus(state=STATES[command], message=words)
                    await queue.enqueue_event(
                        TaskStatusUpdateEvent(task_id=task_id, context_id=context_id, status=status)
                    )
                case _:
                    pass
            self.told(word)

    async def _deaf(self, name: str) -> None:
        while not self.gate(name).is_set():
            try:
                await self.gate(name).wait()
            except asyncio.CancelledError:
                self.told("ignored")

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        pass
