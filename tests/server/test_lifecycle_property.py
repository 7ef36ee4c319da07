"""The life of tasks as a machine of states: whatever is done in whatever order, the laws of A2A hold."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import uuid
from collections.abc import Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from a2a.client import Client
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import InvalidParamsError, TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from .actor import Actor
from .inprocess import SECONDS, Here, begin, events, request, running

T = TypeVar("T")

SUBMITTED, WORKING, COMPLETED = (
    TaskState.TASK_STATE_SUBMITTED,
    TaskState.TASK_STATE_WORKING,
    TaskState.TASK_STATE_COMPLETED,
)
INPUT_REQUIRED, AUTH_REQUIRED = TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED
CANCELED, FAILED, REJECTED = (
    TaskState.TASK_STATE_CANCELED,
    TaskState.TASK_STATE_FAILED,
    TaskState.TASK_STATE_REJECTED,
)
ENDED = {COMPLETED, CANCELED, FAILED, REJECTED}
PARKED = {INPUT_REQUIRED, AUTH_REQUIRED}
AFTER = {"done": {COMPLETED}, "ask": {INPUT_REQUIRED}, "auth": {AUTH_REQUIRED}, "fail": {FAILED}, "reject": {REJECTED}}

words = st.sampled_from(["done", "ask", "auth", "fail", "reject", "hold done", "hold ask", "hold fail"])
users = st.sampled_from(["alice", "bob"])
contexts = st.sampled_from(["", "shared", "other"])
numbers = itertools.count()


@dataclass
class Known:
    """What the model knows of a task."""

    id: str
    user: str
    context_id: str
    sent: list[SendMessageRequest]
    history: list[str] = field(default_factory=list[str])
    state: TaskState = SUBMITTED


class Life(RuleBasedStateMachine):
    """Sends, follow-ups, cancels, subscriptions, lists, replays and restarts, against a real server."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        self._known: dict[str, Known] = {}
        self._held = 0
        self._actor = Actor()
        self._stack = AsyncExitStack()
        self._here: Here
        self._client: Client
        self._streaming: Client
        self._do(self._start())

    def teardown(self) -> None:
        self._open_gates()
        self._do(self._stack.aclose())
        self._runner.close()
        self._folder.cleanup()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asyncio.wait_for(work, SECONDS * 2))

    async def _start(self) -> None:
        self._stack = AsyncExitStack()
        self._here = await self._stack.enter_async_context(running(Path(self._folder.name), {"actor": self._actor}))
        self._client = await self._here.client()
        self._streaming = await self._here.client(streaming=True)

    def _text(self, word: str) -> str:
        """A message of its own; "hold" has it wait for a gate that opens later."""
        return f"say:{next(numbers)} {word.replace('hold', f'wait:{self._held}')}"

    def _open_gates(self) -> None:
        self._actor.gate(str(self._held)).set()
        self._held += 1

    # -- what callers do -------------------------------------------------------------------------------------------------

    @rule(target=tasks, word=words, user=users, context=contexts)
    def send(self, word: str, user: str, context: str) -> Known:
        sent = request(self._text(word), {"user_id": user}, context_id=context)
        task = self._do(begin(self._client, _copy(sent)))
        assert task.id not in self._known
        assert not context or task.context_id == context
        known = self._known[task.id] = Known(task.id, user, task.context_id, [sent])
        self._see(task)
        return known

    @rule(known=tasks, word=words)
    def follow_up(self, known: Known, word: str) -> None:
        sent = request(self._text(word), task_id=known.id)
        try:
            task = self._do(begin(self._client, _copy(sent)))
        except UnsupportedOperationError:
            assert self._get(known).status.state in ENDED
        else:
            assert (task.id, task.context_id) == (known.id, known.context_id)
            known.sent.append(sent)
            self._see(task)

    @rule(known=tasks, user=users)
    def follow_up_of_another(self, known: Known, user: str) -> None:
        if user != known.user:
            for wrong in (
                request("done", {"user_id": user}, task_id=known.id),
                request("done", task_id=known.id, context_id=uuid.uuid4().hex),
            ):
                try:
                    self._do(begin(self._client, wrong))
                except InvalidParamsError:
                    continue
                raise AssertionError("it was accepted")

    @rule(known=tasks)
    def cancel(self, known: Known) -> None:
        try:
            task = self._do(self._client.cancel_task(CancelTaskRequest(id=known.id)))
        except TaskNotCancelableError:
            assert self._get(known).status.state in ENDED
        else:
            assert task.status.state == CANCELED
            self._see(task)

    @rule(known=tasks, index=st.integers(0, 5), word=words)
    def replay(self, known: Known, index: int, word: str) -> None:
        sent = known.sent[index % len(known.sent)]
        rows = len(self._list(known.context_id))
        for _ in range(2):
            task = self._do(begin(self._client, _copy(sent)))
            assert task.id == known.id
            self._see(task)
        other = _copy(sent)
        other.message.parts[0].text += " other"
        try:
            self._do(begin(self._client, other))
        except InvalidParamsError:
            pass
        else:
            raise AssertionError("another content was accepted under the same id")
        assert len(self._list(known.context_id)) == rows

    @rule()
    def let_go(self) -> None:
        self._open_gates()
        self._do(self._settled())

    @rule(known=tasks)
    def subscribe(self, known: Known) -> None:
        """The first event is the task as it is; with all gates open, the stream of a task at work ends."""
        try:
            first, rest = self._do(self._subscribed(known))
        except UnsupportedOperationError:
            assert self._get(known).status.state in ENDED
            return
        self._see(first)
        for state in rest:
            assert first.status.state not in ENDED
            assert state not in ENDED or state == rest[-1]

    @rule()
    def restart(self) -> None:
        """What held a turn holds it again: it is run anew."""
        self._do(self._stack.aclose())
        self._do(self._start())

    @rule(word=st.sampled_from(["done", "ask"]), user=users)
    def stream(self, word: str, user: str) -> None:
        heard = self._do(events(self._streaming, sent := request(self._text(word), {"user_id": user})))
        task = heard[0].task
        assert [event.WhichOneof("payload") for event in heard] == ["task", "artifact_update", "status_update"]
        assert heard[-1].status_update.status.state in AFTER[word]
        self._known[task.id] = Known(task.id, user, task.context_id, [sent])

    # -- what always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def the_list_is_what_get_says(self) -> None:
        """Every task once, with the same state and no others."""
        if not self._known:
            return
        listed = {task.id: task for task in self._list()}
        assert listed.keys() == self._known.keys()
        for known in self._known.values():
            self._see(listed[known.id])

    @rule(known=tasks)
    def get(self, known: Known) -> None:
        self._see(self._get(known))

    @rule()
    def nobody_finds_what_is_not_there(self) -> None:
        for operation in (
            self._client.get_task(GetTaskRequest(id="nowhere")),
            self._client.get_task(GetTaskRequest(id=next(iter(self._known), "x"), tenant="red")),
            self._client.cancel_task(CancelTaskRequest(id="nowhere")),
        ):
            try:
                self._do(operation)
            except TaskNotFoundError:
                continue
            raise AssertionError("it was found")

    # -- how it is looked at ---------------------------------------------------------------------------------------------

    def _see(self, task: Task) -> None:
        """Hold what was seen of a task against what was seen before: a state may not go back, a history only grow."""
        known = self._known[task.id]
        assert task.context_id == known.context_id
        assert task.metadata["user_id"] == known.user
        state = task.status.state
        if known.state in ENDED:
            assert state == known.state
        if known.state != SUBMITTED and len(known.sent) == 1:
            assert state != SUBMITTED
        history = [entry.message_id for entry in task.history]
        assert history[: len(known.history)] == known.history, "the history changed"
        assert len(set(history)) == len(history)
        sent = [one.message.message_id for one in known.sent]
        assert [one for one in history if one in sent] == [one for one in sent if one in history], "out of order"
        known.state, known.history = state, history
        if state in ENDED | PARKED and len(known.sent) == 1:
            word = known.sent[0].message.parts[0].text.split()[-1]
            assert state in AFTER[word] | {CANCELED}

    def _get(self, known: Known) -> Task:
        return self._do(self._client.get_task(GetTaskRequest(id=known.id)))

    def _list(self, context: str = "") -> list[Task]:
        """One page: what changes between two of them may stand on neither."""
        every = ListTasksRequest(context_id=context, page_size=100, include_artifacts=True)
        page = self._do(self._client.list_tasks(every))
        assert page.total_size == len(page.tasks) == len({task.id for task in page.tasks})
        return list(page.tasks)

    async def _settled(self) -> None:
        """Wait until nothing runs or waits to run: every message was answered or its task has ended."""
        async with asyncio.timeout(SECONDS):
            for known in self._known.values():
                while True:
                    task = await self._client.get_task(GetTaskRequest(id=known.id))
                    if task.status.state in ENDED | PARKED:
                        break
                    await asyncio.sleep(0.002)

    async def _subscribed(self, known: Known) -> tuple[Task, list[TaskState]]:
        stream: Any = self._streaming.subscribe(SubscribeToTaskRequest(id=known.id))
        states: list[TaskState] = []
        async with aclosing(stream):
            first: Task = (await anext(stream)).task
            self._open_gates()
            if first.status.state not in PARKED:  # nothing comes before somebody answers
                states = [event.status_update.status.state async for event in stream if event.HasField("status_update")]
        return first, states


def _copy(sent: SendMessageRequest) -> SendMessageRequest:
    copied = SendMessageRequest()
    copied.CopyFrom(sent)
    return copied


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
