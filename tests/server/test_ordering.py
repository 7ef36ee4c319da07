"""Who waits for whom, what is answered twice, what a cancel ends, and what a stream says."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from a2a.client import Client
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import (
    A2AError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from retinue_agents import Agent
from retinue_agents.testing import EchoModel, ScriptedModel
from retinue_memory import ToolCall
from retinue_server.a2a.generation import GENERATION_EXTENSION

from .actor import BIG, Actor
from .inprocess import SECONDS, Here, ask, begin, events, eventually, message, request, rpc, running, texts, until

COMPLETED, CANCELED, WORKING = (
    TaskState.TASK_STATE_COMPLETED,
    TaskState.TASK_STATE_CANCELED,
    TaskState.TASK_STATE_WORKING,
)
INPUT_REQUIRED = TaskState.TASK_STATE_INPUT_REQUIRED
STOP_SECONDS = 0.5


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
async def here(tmp_path: Path, actor: Actor) -> AsyncIterator[Here]:
    async with running(tmp_path, {"actor": actor}) as server:
        yield server


@pytest.fixture
async def client(here: Here) -> Client:
    return await here.client()


async def began(actor: Actor, *started: str) -> None:
    await eventually(lambda: actor.began[-len(started) :] == list(started), f"{actor.began}")


async def accepted(here: Here, number: int) -> None:
    """Wait until so many messages are stored."""

    async def stored() -> bool:
        query = "SELECT count(*) FROM turns"
        return await here.server.store.database.read(lambda db: db.execute(query).fetchone()[0] == number)

    await eventually(stored, f"{number} messages are stored")


def new_id() -> str:
    return uuid.uuid4().hex


@asynccontextmanager
async def subscribed(client: Client, task_id: str) -> AsyncGenerator[AsyncGenerator[StreamResponse]]:
    stream = cast("AsyncGenerator[StreamResponse]", client.subscribe(SubscribeToTaskRequest(id=task_id)))
    async with aclosing(stream) as opened:
        yield opened


def state_of(event: StreamResponse) -> TaskState:
    kind = event.WhichOneof("payload")
    return event.task.status.state if kind == "task" else event.status_update.status.state


# -- one at a time -----------------------------------------------------------------------------------------------------


async def test_turns_of_one_context_run_one_after_the_other(client: Client, actor: Actor) -> None:
    """In the order of acceptance, each a task of its own, none before the one in front has ended."""
    context_id = new_id()
    tasks = [await begin(client, request(f"wait:{n} done", context_id=context_id)) for n in range(4)]
    for n in range(4):
        await began(actor, f"wait:{n} done")
        assert actor.running == 1
        actor.gate(str(n)).set()
    for task in tasks:
        await until(client, task.id, COMPLETED)
    assert actor.began == [f"wait:{n} done" for n in range(4)]
    assert actor.most_running == 1


async def test_contexts_run_side_by_side(client: Client, actor: Actor) -> None:
    """Any number of contexts, agents' users and tenants, even where they call their context the same."""
    same = new_id()
    sent = [request("wait:all done") for _ in range(20)]
    sent += [request("wait:all done", {"user_id": user}, context_id=same) for user in ("alice", "bob", "carol")]
    sent.append(SendMessageRequest(message=message("wait:all done", context_id=same), tenant="red"))
    tasks = await asyncio.gather(*(begin(client, one) for one in sent))
    await eventually(lambda: actor.running == len(sent), f"{actor.running} run")
    actor.gate("all").set()
    for task, one in zip(tasks, sent, strict=True):
        await eventually(
            lambda task=task, one=one: _is(client, task, COMPLETED, one.tenant),
            "completed",
        )


async def _is(client: Client, task: Task, state: TaskState, tenant: str = "") -> bool:
    return (await client.get_task(GetTaskRequest(id=task.id, tenant=tenant))).status.state == state


async def test_a_second_message_to_a_running_task_waits_its_turn(here: Here, client: Client, actor: Actor) -> None:
    """The task completes only after it: both answers among its artifacts, both messages in its history, in order."""
    first = await begin(client, request("say:one wait:go done"))
    await began(actor, "say:one wait:go done")
    waiting = asyncio.create_task(ask(client, request("say:two done", task_id=first.id)))
    blocked = asyncio.create_task(ask(client, request("say:three done", task_id=first.id)))
    await accepted(here, 3)
    assert actor.running == 1
    actor.gate("go").set()
    for task in (await waiting, await blocked, await client.get_task(GetTaskRequest(id=first.id))):
        assert task.id == first.id
        assert task.status.state == COMPLETED
        assert sorted(texts(task)) == ["one", "three", "two"]
        said = [entry.parts[0].text for entry in task.history]
        assert said[0] == "say:one wait:go done"
        assert len([text for text in said if text.startswith("say:")]) == 3
    assert actor.most_running == 1


async def test_who_waits_for_the_first_message_gets_the_completed_task(client: Client, actor: Actor) -> None:
    """A blocking send returns when the task ends, which the message behind it put off; so does its stream."""
    context_id = new_id()
    blocked = asyncio.create_task(ask(client, request("say:one wait:go done", context_id=context_id)))
    await began(actor, "say:one wait:go done")
    task_id = (await client.list_tasks(ListTasksRequest(context_id=context_id))).tasks[0].id
    second = await begin(client, request("say:two wait:end done", task_id=task_id))
    assert second.id == task_id
    actor.gate("go").set()
    await began(actor, "say:two wait:end done")
    assert not blocked.done()
    shown = await client.get_task(GetTaskRequest(id=task_id))
    assert shown.status.state == WORKING
    actor.gate("end").set()
    task = await blocked
    assert (task.status.state, texts(task)) == (COMPLETED, ["one", "two"])


async def test_a_terminal_state_is_never_seen_before_it_is_final(here: Here, client: Client, actor: Actor) -> None:
    """While messages keep a task from completing, nobody who asks sees it completed and then at work again."""
    first = await begin(client, request("wait:go0 done"))
    await began(actor, "wait:go0 done")
    for n in range(1, 8):
        await begin(client, request(f"wait:go{n} say:{n} done", task_id=first.id))
    seen: list[TaskState] = []

    async def look() -> None:
        while COMPLETED not in seen[:-5]:
            seen.append((await client.get_task(GetTaskRequest(id=first.id))).status.state)

    looking = [asyncio.create_task(look()) for _ in range(4)]
    for n in range(8):
        actor.gate(f"go{n}").set()
    await asyncio.gather(*looking)
    assert set(seen[seen.index(COMPLETED) :]) == {COMPLETED}
    task = await until(client, first.id, COMPLETED)
    assert texts(task) == [str(n) for n in range(1, 8)]


async def test_a_message_behind_one_that_fails_is_refused(here: Here, client: Client, actor: Actor) -> None:
    """A task that failed has ended: what waited for its turn hears so, and nothing of it is run."""
    first = await begin(client, request("wait:go fail"))
    await began(actor, "wait:go fail")
    waiting = asyncio.create_task(ask(client, request("say:two done", task_id=first.id)))
    await accepted(here, 2)
    actor.gate("go").set()
    with pytest.raises(UnsupportedOperationError):
        await waiting
    task = await client.get_task(GetTaskRequest(id=first.id))
    assert (task.status.state, texts(task)) == (TaskState.TASK_STATE_FAILED, [])
    assert actor.began == ["wait:go fail"]


async def test_a_stream_of_a_waiting_message_begins_with_the_task_as_its_turn_finds_it(
    here: Here, client: Client, actor: Actor
) -> None:
    """What the turn in front said is in the first event, so that applying the others to it gives the stored task."""
    first = await begin(client, request("say:one wait:go say:more done"))
    await began(actor, "say:one wait:go say:more done")
    streaming = await here.client(streaming=True)
    heard = asyncio.create_task(events(streaming, request("say:two say:three done", task_id=first.id)))
    await accepted(here, 2)
    actor.gate("go").set()
    found = await heard
    assert found[0].WhichOneof("payload") == "task"
    stored = await client.get_task(GetTaskRequest(id=first.id))
    assert texts(replayed(found)) == texts(stored) == ["onemore", "twothree"]


def replayed(found: list[StreamResponse]) -> Task:
    """The task that a stream's events add up to, as a client would do it."""
    task = Task()
    for event in found:
        match event.WhichOneof("payload"):
            case "task":
                task.CopyFrom(event.task)
            case "status_update":
                task.status.CopyFrom(event.status_update.status)
            case _:
                update = event.artifact_update
                known = [one for one in task.artifacts if one.artifact_id == update.artifact.artifact_id]
                if update.append:
                    known[0].parts.extend(update.artifact.parts)
                elif known:
                    known[0].CopyFrom(update.artifact)
                else:
                    task.artifacts.append(update.artifact)
    return task


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_context_takes_so_many_messages_and_no_more(tmp_path: Path, actor: Actor) -> None:
    """One more is -32000 with HTTP 429 and Retry-After, REST 429; nothing of it is stored; other contexts go on."""
    async with running(tmp_path, {"actor": actor}, "limits: {waiting: 3}") as here:
        client, context_id = await here.client(), new_id()
        for n in range(3):
            await begin(client, request(f"wait:go {n} done", {"user_id": "alice"}, context_id=context_id))
        body: dict[str, Any] = {
            "message": {"messageId": new_id(), "role": "ROLE_USER", "contextId": context_id, "parts": [{"text": "x"}]},
            "metadata": {"user_id": "alice"},
        }
        refused = await here.http.post("/", json=rpc("SendMessage", **body))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert error["code"] == -32000
        assert error["data"][0]["reason"] == "TOO_MANY_REQUESTS"
        streamed = await here.http.post("/", json=rpc("SendStreamingMessage", **body))
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (429, -32000)
        assert int(streamed.headers["retry-after"]) >= 1
        old: dict[str, Any] = body | {
            "message": {"messageId": new_id(), "role": "user", "contextId": context_id, "kind": "message"}
        }
        old["message"]["parts"] = [{"kind": "text", "text": "x"}]
        told = await here.http.post("/", json=rpc("message/send", **old), headers={"A2A-Version": "0.3"})
        assert (told.status_code, told.json()["error"]["code"]) == (429, -32000)
        for path in ("/rest/message:send", "/rest/message:stream"):
            refused = await here.http.post(path, json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
        assert len((await client.list_tasks(ListTasksRequest(context_id=context_id))).tasks) == 3
        other = await ask(client, request("done", {"user_id": "bob"}, context_id=context_id))
        assert other.status.state == COMPLETED  # the same name, but bob's own context
        actor.gate("go").set()
        body["message"]["messageId"] = new_id()
        await eventually(lambda: _sent(here.http, body), "there is room again")
        assert len((await client.list_tasks(ListTasksRequest(context_id=context_id))).tasks) == 5


async def _sent(http: httpx.AsyncClient, body: dict[str, Any]) -> bool:
    return (await http.post("/", json=rpc("SendMessage", **body))).status_code == 200


async def test_the_server_takes_so_many_messages_and_no_more(tmp_path: Path, actor: Actor) -> None:
    """Over all contexts; a refused message can be sent again under its id once there is room."""
    async with running(tmp_path, {"actor": actor}, "limits: {turns: 2}") as here:
        client, refused = await here.client(), request("done")
        for _ in range(2):
            await begin(client, request("wait:go done"))
        with pytest.raises(A2AError):
            await ask(client, refused)
        assert len((await client.list_tasks(ListTasksRequest())).tasks) == 2
        parked = actor.gate("go")
        parked.set()
        await eventually(lambda: actor.running == 0, "there is room again")
        assert (await ask(client, refused)).status.state == COMPLETED


# -- the same message again ----------------------------------------------------------------------------------------------


async def test_a_replay_gets_the_same_task(tmp_path: Path, actor: Actor) -> None:
    """During the run, after it and after a restart, blocking, at once and as a stream; nothing is run again."""
    sent = request("say:x wait:go done", {"user_id": "alice"})
    async with running(tmp_path, {"actor": actor}) as here:
        client, streaming = await here.client(), await here.client(streaming=True)
        task = await begin(client, _copy(sent))
        during = await begin(client, _copy(sent))
        blocked = [asyncio.create_task(ask(client, _copy(sent))) for _ in range(3)]
        streamed = asyncio.create_task(events(streaming, _copy(sent)))
        await began(actor, "say:x wait:go done")
        actor.gate("go").set()
        ended = await asyncio.gather(*blocked)
        assert {found.id for found in (task, during, *ended)} == {task.id}
        assert {found.status.state for found in ended} == {COMPLETED}
        heard = await streamed
        assert (heard[0].task.id, state_of(heard[-1])) == (task.id, COMPLETED)
        after = await ask(client, _copy(sent))
        assert after == await client.get_task(GetTaskRequest(id=task.id))
        assert [event.task.id for event in await events(streaming, _copy(sent))] == [task.id]
    async with running(tmp_path, {"actor": actor}) as here:
        again = await ask(await here.client(), _copy(sent))
        assert again == after
    assert len(actor.began) == 1


def _copy(sent: SendMessageRequest) -> SendMessageRequest:
    copied = SendMessageRequest()
    copied.CopyFrom(sent)
    return copied


async def test_fifty_replays_at_once_are_one_task(client: Client, actor: Actor) -> None:
    """Of a first message, and of a follow-up."""
    first = request("say:x ask", {"user_id": "alice"})
    answers = await asyncio.gather(*(ask(client, _copy(first)) for _ in range(50)))
    assert len({task.id for task in answers}) == 1
    assert {task.status.state for task in answers} == {INPUT_REQUIRED}
    follow_up = request("say:y done", task_id=answers[0].id)
    answers = await asyncio.gather(*(ask(client, _copy(follow_up)) for _ in range(50)))
    assert {(task.id, task.status.state) for task in answers} == {(answers[0].id, COMPLETED)}
    assert actor.began == ["say:x ask", "say:y done"]
    assert len((await client.list_tasks(ListTasksRequest(context_id=answers[0].context_id))).tasks) == 1


async def test_a_replay_of_a_direct_answer_gets_that_answer(client: Client, actor: Actor, here: Here) -> None:
    """The message again, streamed too, and no task is listed."""
    sent = request("direct:hello")
    heard = [await events(client, _copy(sent)) for _ in range(3)]
    heard.append(await events(await here.client(streaming=True), _copy(sent)))
    assert {event.message.parts[0].text for found in heard for event in found} == {"hello"}
    assert len({event.message.message_id for found in heard for event in found}) == 1
    assert not (await client.list_tasks(ListTasksRequest())).tasks
    assert len(actor.began) == 1


async def test_a_direct_answer_to_who_did_not_wait_is_found_in_its_task(client: Client, actor: Actor) -> None:
    """Who was given a task (return_immediately, also with a replay) finds the answer there: completed, the message its status."""
    sent = request("wait:go direct:hello")
    first = await begin(client, _copy(sent))
    assert (await begin(client, _copy(sent))).id == first.id
    blocking = request("wait:go direct:hello")
    waiting = asyncio.create_task(events(client, _copy(blocking)))
    await began(actor, *["wait:go direct:hello"] * 2)
    second = await begin(client, _copy(blocking))
    actor.gate("go").set()
    for task in (first, second):
        done = await until(client, task.id, COMPLETED)
        assert done.status.message.parts[0].text == "hello"
        assert done.status.message.task_id == task.id
    assert (await waiting)[-1].task.id == second.id
    assert {task.id for task in (await client.list_tasks(ListTasksRequest())).tasks} == {first.id, second.id}
    assert (await begin(client, _copy(sent))).status.state == COMPLETED
    assert (await ask(client, _copy(sent))).status.state == COMPLETED


async def test_who_subscribed_to_a_turn_hears_its_direct_answer(here: Here, client: Client, actor: Actor) -> None:
    """As the end of the task that they subscribed to, and the stream ends."""
    waiting = asyncio.create_task(events(client, request("wait:go direct:hello")))
    await began(actor, "wait:go direct:hello")
    (task,) = (await client.list_tasks(ListTasksRequest())).tasks
    streaming = await here.client(streaming=True)
    async with asyncio.timeout(SECONDS), subscribed(streaming, task.id) as stream:
        assert (await anext(stream)).task.id == task.id
        actor.gate("go").set()
        heard = [event async for event in stream]
    assert heard[-1].status_update.status.state == COMPLETED
    assert heard[-1].status_update.status.message.parts[0].text == "hello"
    assert (await client.get_task(GetTaskRequest(id=task.id))).status.state == COMPLETED
    assert (await waiting)[-1].task.id == task.id


async def test_a_subscriber_hears_of_a_cancel_that_crosses_its_way(here: Here, client: Client) -> None:
    """Whichever comes first: the stream says that the task is canceled and ends, or is refused since it has ended."""
    streaming = await here.client(streaming=True)

    async def heard(task: Task) -> TaskState:
        with suppress(UnsupportedOperationError):
            async with subscribed(streaming, task.id) as stream:
                return [state_of(event) async for event in stream][-1]
        return CANCELED

    for _ in range(30):
        tasks = [await ask(client, request("ask")) for _ in range(4)]
        async with asyncio.timeout(SECONDS):
            listening = asyncio.gather(*(heard(task) for task in tasks for _ in range(2)))
            await asyncio.gather(*(cancel(client, task.id) for task in tasks))
            assert set(await listening) == {CANCELED}


async def test_a_cancel_that_crosses_a_message(client: Client, actor: Actor) -> None:
    """A cancel is final, and takes nothing away of what was said before it; the message has its turn, or is refused since the
    task has ended.
    """

    async def told(task: Task, text: str) -> Task | None:
        try:
            return await ask(client, request(text, task_id=task.id))
        except UnsupportedOperationError:
            return None

    for _ in range(40):
        tasks = [await ask(client, request("ask")) for _ in range(4)]
        async with asyncio.timeout(SECONDS):
            telling = asyncio.gather(*(told(task, text) for task in tasks for text in ("ask", "say:x ask")))
            canceled = await asyncio.gather(*(cancel(client, task.id) for task in tasks))
            answers = [task for task in await telling if task is not None]
        assert {task.status.state for task in canceled} == {CANCELED}
        left = {task.id: await client.get_task(GetTaskRequest(id=task.id)) for task in tasks}
        assert {task.status.state for task in left.values()} == {CANCELED}
        for answer in answers:
            kept = left[answer.id]
            assert {said.message_id for said in answer.history} <= {said.message_id for said in kept.history}
            assert len(texts(answer)) <= len(texts(kept))


async def test_a_direct_answer_to_a_follow_up_ends_its_task(client: Client, actor: Actor) -> None:
    """The task stays where it was found before, with all that was said in it."""
    asked = await ask(client, request("say:one ask"))
    done = await ask(client, request("direct:hello", task_id=asked.id))
    assert (done.id, done.status.state, done.status.message.parts[0].text) == (asked.id, COMPLETED, "hello")
    assert await client.get_task(GetTaskRequest(id=asked.id)) == done
    assert texts(done) == ["one"]


async def test_another_content_under_the_same_id_is_refused(client: Client, actor: Actor) -> None:
    """InvalidParams, during the run and after it: other text, other metadata."""
    sent = request("wait:go done")
    task = await begin(client, _copy(sent))
    for _ in range(2):
        other, marked = _copy(sent), _copy(sent)
        other.message.parts[0].text = "fail"
        marked.message.metadata.update({"x": 1})
        for wrong in (other, marked):
            with pytest.raises(InvalidParamsError, match="messageId"):
                await ask(client, wrong)
        actor.gate("go").set()
        await until(client, task.id, COMPLETED)


async def test_the_same_id_from_another_user_is_another_task(client: Client) -> None:
    """And of another tenant; also where the content differs."""
    shared = new_id()
    tasks = [
        await ask(client, request(f"say:{user} done", {"user_id": user}, message_id=shared))
        for user in ("alice", "bob")
    ]
    red = SendMessageRequest(message=message("say:red done", message_id=shared), tenant="red")
    tasks.append(await ask(client, red))
    assert len({task.id for task in tasks}) == 3
    assert [texts(task) for task in tasks] == [["alice"], ["bob"], ["red"]]


async def test_a_replay_without_a_user_finds_its_task_whoever_uses_the_context_since(client: Client) -> None:
    """A message that took its user from its context is the same message when others use a context of that name."""
    context_id = new_id()
    await ask(client, request("done", {"user_id": "alice"}, context_id=context_id))
    sent = request("say:mine done", context_id=context_id)
    mine = await ask(client, _copy(sent))
    assert mine.metadata["user_id"] == "alice"
    await ask(client, request("done", {"user_id": "bob"}, context_id=context_id))
    assert (await ask(client, _copy(sent))).id == mine.id


# -- cancel --------------------------------------------------------------------------------------------------------------


async def cancel(client: Client, task_id: str) -> Task:
    """Cancel, which may take no longer than allowed."""
    before = time.monotonic()
    task = await client.cancel_task(CancelTaskRequest(id=task_id))
    assert time.monotonic() - before < STOP_SECONDS + 0.5  # a machine may be busy
    return task


async def blocks(a: int) -> int:
    """A tool that never returns."""
    await asyncio.Event().wait()
    return a


def blocks_in_a_thread(a: int) -> int:
    """A tool that keeps its thread busy for a while."""
    time.sleep(2)
    return a


@pytest.mark.parametrize("what", ["model", "tool", "thread"])
async def test_cancel_stops_what_an_agent_is_at(tmp_path: Path, what: str) -> None:
    """A call of a model, of a tool, of a tool in a thread: the task is CANCELED within half a second, for good."""
    model = {
        "model": EchoModel(delay=30),
        "tool": ScriptedModel([ToolCall("1", "blocks", {"a": 1}), "never"]),
        "thread": ScriptedModel([ToolCall("1", "blocks_in_a_thread", {"a": 1}), "never"]),
    }[what]
    agent = Agent(model, name="agent", tools=[blocks, blocks_in_a_thread])
    async with running(tmp_path, {"agent": agent}) as here:
        client = await here.client()
        blocked = asyncio.create_task(ask(client, request("hello", context_id="c")))
        await eventually(lambda: _at_work(client), "at work")
        listed = await client.list_tasks(ListTasksRequest(context_id="c"))
        task_id = listed.tasks[0].id
        assert (await cancel(client, task_id)).status.state == CANCELED
        assert (await blocked).status.state == CANCELED
        with pytest.raises(TaskNotCancelableError):
            await cancel(client, task_id)
        assert (await client.get_task(GetTaskRequest(id=task_id))).status.state == CANCELED


async def _at_work(client: Client) -> bool:
    found = (await client.list_tasks(ListTasksRequest(context_id="c"))).tasks
    return bool(found) and found[0].status.state == WORKING


async def test_an_executor_that_does_not_stop_loses_its_task(client: Client, actor: Actor) -> None:
    """It swallows its cancellation: the task ends within half a second, and nothing it says later changes it."""
    ignored = asyncio.Event()
    actor.told = lambda text: ignored.set()
    task = await begin(client, request("deaf:end say:late done", context_id="c"))
    behind = asyncio.create_task(ask(client, request("say:next done", context_id="c")))
    await began(actor, "deaf:end say:late done")
    assert (await cancel(client, task.id)).status.state == CANCELED
    assert ignored.is_set()
    assert (await behind).status.state == COMPLETED  # the serial queue is free
    actor.gate("end").set()
    await eventually(lambda: actor.running == 0, "it gave up")
    stored = await client.get_task(GetTaskRequest(id=task.id))
    assert (stored.status.state, texts(stored)) == (CANCELED, [])


async def test_cancel_of_a_waiting_and_of_a_parked_task(client: Client, actor: Actor) -> None:
    """A task whose turn has not come never runs; one that waits for input ends at once; who waited hears of it."""
    context_id = new_id()
    await begin(client, request("wait:go done", context_id=context_id))
    second = await begin(client, request("say:two done", context_id=context_id))
    blocked = asyncio.create_task(ask(client, request("say:three done", context_id=context_id)))
    assert (await cancel(client, second.id)).status.state == CANCELED
    actor.gate("go").set()
    assert (await blocked).status.state == COMPLETED
    assert "say:two done" not in actor.began
    parked = await ask(client, request("ask"))
    assert (await cancel(client, parked.id)).status.state == CANCELED
    with pytest.raises(UnsupportedOperationError):
        await ask(client, request("done", task_id=parked.id))


async def test_cancel_ends_a_task_with_all_its_messages(client: Client, actor: Actor) -> None:
    """The one that runs and those that wait for it."""
    task = await begin(client, request("hang"))
    await began(actor, "hang")
    for n in range(3):
        await begin(client, request(f"say:{n} done", task_id=task.id))
    assert (await cancel(client, task.id)).status.state == CANCELED
    stored = await client.get_task(GetTaskRequest(id=task.id))
    assert (stored.status.state, texts(stored)) == (CANCELED, [])
    assert actor.began == ["hang"]


async def test_cancel_twice_at_once(client: Client, actor: Actor) -> None:
    """Each caller hears that the task is canceled, or that it cannot be any more; nobody an internal error."""
    for text in ("hang", "deaf:never"):
        task = await begin(client, request(text))
        await began(actor, text)
        answers = await asyncio.gather(*(cancel(client, task.id) for _ in range(5)), return_exceptions=True)
        good = [found for found in answers if isinstance(found, Task)]
        assert good
        assert {found.status.state for found in good} == {CANCELED}
        assert all(isinstance(found, Task | TaskNotCancelableError) for found in answers)
        assert (await client.get_task(GetTaskRequest(id=task.id))).status.state == CANCELED
    actor.gate("never").set()


async def test_cancel_of_a_task_that_asked_and_still_runs(client: Client, actor: Actor) -> None:
    """Whoever waited was answered with the question; a cancel then is a cancel, and says so."""
    for word in ("ask", "auth"):
        task = await ask(client, request(f"{word} hang"))
        assert task.status.state in (INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED)
        assert (await cancel(client, task.id)).status.state == CANCELED
        assert (await client.get_task(GetTaskRequest(id=task.id))).status.state == CANCELED


async def test_a_terminal_state_stays(here: Here, client: Client, actor: Actor) -> None:
    """Completed, failed, rejected and canceled tasks take neither a cancel nor a message, and an agent cannot go on."""
    for text, state in (
        ("done", COMPLETED),
        ("fail", TaskState.TASK_STATE_FAILED),
        ("reject", TaskState.TASK_STATE_REJECTED),
        ("crash", TaskState.TASK_STATE_FAILED),
        ("done say:late fail", COMPLETED),
    ):
        task = await ask(client, request(text))
        assert task.status.state == state
        assert "secret" not in str(task)
        with pytest.raises(TaskNotCancelableError):
            await cancel(client, task.id)
        with pytest.raises(UnsupportedOperationError):
            await ask(client, request("done", task_id=task.id))
        with pytest.raises(UnsupportedOperationError):
            async with subscribed(await here.client(streaming=True), task.id) as stream:
                await anext(stream)
        await eventually(lambda: actor.running == 0, "over")
        assert await client.get_task(GetTaskRequest(id=task.id)) == task
    with pytest.raises(TaskNotFoundError):
        await cancel(client, "nowhere")


# -- events --------------------------------------------------------------------------------------------------------------


async def test_a_stream_says_everything_in_order(here: Here, client: Client) -> None:
    """A task first; deltas, coalesced after the first, with append from the second on and lastChunk on the last; the terminal
    state at the end."""
    heard = await events(await here.client(streaming=True), request("work many:50 done"))
    kinds = [event.WhichOneof("payload") for event in heard]
    updates = [event.artifact_update for event in heard[2:-1]]
    assert kinds == ["task", "status_update", *["artifact_update"] * len(updates), "status_update"]
    assert 2 <= len(updates) <= 50
    pieces = [update.artifact.parts[0].text for update in updates]
    assert pieces[0] == "0 "
    assert "".join(pieces) == "".join(f"{n} " for n in range(50))
    assert [update.append for update in updates] == [False, *[True] * (len(updates) - 1)]
    assert [update.last_chunk for update in updates] == [*[False] * (len(updates) - 1), True]
    assert state_of(heard[-1]) == COMPLETED
    stored = await client.get_task(GetTaskRequest(id=heard[0].task.id))
    assert texts(stored) == ["".join(f"{n} " for n in range(50))]


async def test_the_deltas_of_an_agent_are_flagged_too(tmp_path: Path) -> None:
    """What a model says comes as it is said; one artifact, append and lastChunk as the protocol wants them."""
    async with running(tmp_path, {"echo": Agent(EchoModel(chunks=4), name="echo")}) as here:
        heard = await events(await here.client(streaming=True), request("abcdefgh"))
        updates = [event.artifact_update for event in heard if event.HasField("artifact_update")]
        pieces = [update.artifact.parts[0].text for update in updates]
        assert pieces[0] == "ab"
        assert "".join(pieces) == "abcdefgh"
        assert [update.append for update in updates] == [False, *[True] * (len(updates) - 1)]
        assert [update.last_chunk for update in updates] == [*[False] * (len(updates) - 1), True]
        assert len({update.artifact.artifact_id for update in updates}) == 1


async def test_subscribe_has_neither_gap_nor_repeat(here: Here, client: Client, actor: Actor) -> None:
    """Begun anywhere in a stream: its task and what follows add up to what the first caller heard, event for event."""
    streaming = await here.client(streaming=True)
    words = " ".join(f"say:{n}. wait:{n}" for n in range(6))
    original = asyncio.create_task(events(streaming, request(f"{words} many:200 done", context_id="c")))
    task_id = ""
    late: list[asyncio.Task[list[StreamResponse]]] = []
    for n in range(6):
        await eventually(lambda n=n: str(n) in actor.gates, "said")
        task_id = task_id or (await client.list_tasks(ListTasksRequest(context_id="c"))).tasks[0].id
        begun = asyncio.Event()
        late += [asyncio.create_task(_all(streaming, task_id, begun)) for _ in range(3)]
        await begun.wait()
        actor.gate(str(n)).set()
    heard = await original
    stored = await client.get_task(GetTaskRequest(id=task_id))
    assert texts(replayed(heard)) == texts(stored)
    for subscriber in late:
        found = await subscriber
        assert found[0].WhichOneof("payload") == "task"
        assert found[1:] == heard[len(heard) - len(found) + 1 :]
        assert texts(replayed(found)) == texts(stored)
        assert state_of(found[-1]) == COMPLETED


async def _all(client: Client, task_id: str, begun: asyncio.Event) -> list[StreamResponse]:
    found: list[StreamResponse] = []
    async with subscribed(client, task_id) as stream:
        async for event in stream:
            found.append(event)
            begun.set()
    return found


async def test_subscribe_to_a_parked_task_hears_what_follows(here: Here, client: Client) -> None:
    """It waits for input, also after a restart of whoever asks: the follow-up's events come to the subscriber."""
    task = await ask(client, request("say:one ask"))
    begun = asyncio.Event()
    heard = asyncio.create_task(_all(await here.client(streaming=True), task.id, begun))
    await begun.wait()
    await ask(client, request("work say:two done", task_id=task.id))
    found = await heard
    assert found[0].task.status.state == INPUT_REQUIRED
    assert texts(replayed(found)) == ["one", "two"]
    assert state_of(found[-1]) == COMPLETED
    with pytest.raises(TaskNotFoundError):
        async with subscribed(await here.client(streaming=True), "nowhere") as stream:
            await anext(stream)


async def test_a_subscriber_that_never_reads_harms_nobody(here: Here, client: Client, actor: Actor) -> None:
    """Thousands of deltas go past it; others hear them all, and it gets the task as it ended, with its generation, when it
    reads again."""
    heard = asyncio.create_task(events(await here.client(streaming=True), request("wait:go big:6000 done")))
    await began(actor, "wait:go big:6000 done")
    task_id = (await client.list_tasks(ListTasksRequest())).tasks[0].id
    async with silent_subscriber(here, task_id) as reader, silent_subscriber(here, task_id):
        gone = asyncio.create_task(_all(await here.client(streaming=True), task_id, asyncio.Event()))
        actor.gate("go").set()
        found = await heard
        assert state_of(found[-1]) == COMPLETED
        stored = await client.get_task(GetTaskRequest(id=task_id))
        assert texts(replayed(found)) == texts(stored)
        assert len(texts(stored)[0]) == 6000 * BIG
        assert texts(replayed(await gone)) == texts(stored)
        late = await reader.read(-1)
    said = [json.loads(line[5:])["result"] for line in late.decode().splitlines() if line.startswith("data:")]
    assert len(said) < 6000  # what it missed was not kept for it
    assert said[-1]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    body = rpc("GetTask", id=task_id)
    current = (await here.http.post("/", json=body, headers={"A2A-Extensions": GENERATION_EXTENSION})).json()["result"]
    assert said[-1]["task"]["metadata"]["generation"] == current["metadata"]["generation"] > len(said)
    assert len(said[-1]["task"]["artifacts"][0]["parts"][0]["text"]) == 6000 * BIG


@asynccontextmanager
async def silent_subscriber(here: Here, task_id: str) -> AsyncGenerator[asyncio.StreamReader]:
    """A subscriber with small buffers that has read the first event and nothing since."""
    body = json.dumps(rpc("SubscribeToTask", id=task_id)).encode()
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    port = int(here.url.rpartition(":")[2])
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    head = (
        f"POST / HTTP/1.0\r\nA2A-Version: 1.0\r\nA2A-Extensions: {GENERATION_EXTENSION}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await reader.readuntil(b"data:")
    try:
        yield reader
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_callers_disconnect_never_stops_the_turn(
    here: Here, client: Client, actor: Actor, streaming: bool
) -> None:
    """Whoever hangs up, the turn goes on; a replay waits for its end."""
    sent = request("say:x wait:go say:y done", context_id="c")
    gone = asyncio.create_task(events(await here.client(streaming=streaming), _copy(sent)))
    await began(actor, "say:x wait:go say:y done")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    again = [asyncio.create_task(ask(client, _copy(sent))) for _ in range(2)]
    again[0].cancel()
    actor.gate("go").set()
    task = await again[1]
    assert (task.status.state, texts(task)) == (COMPLETED, ["xy"])
    assert len(actor.began) == 1


async def test_a_list_by_state_knows_the_state_of_a_running_turn(client: Client, actor: Actor) -> None:
    """Working is what is worked on, and it is no longer submitted; a follow-up's task no longer waits for input."""
    asked = await ask(client, request("ask"))
    working = await begin(client, request("work wait:go done"))
    again = await begin(client, request("work wait:go done", task_id=asked.id))
    for task in (working, again):
        await until(client, task.id, TaskState.TASK_STATE_WORKING)

    async def listed(state: TaskState) -> set[str]:
        found = await client.list_tasks(ListTasksRequest(status=state))
        assert found.total_size == len(found.tasks)
        assert {task.status.state for task in found.tasks} <= {state}
        return {task.id for task in found.tasks}

    assert await listed(TaskState.TASK_STATE_WORKING) == {working.id, again.id}
    assert await listed(TaskState.TASK_STATE_SUBMITTED) == set()
    assert await listed(TaskState.TASK_STATE_INPUT_REQUIRED) == set()
    actor.gate("go").set()
    for task in (working, again):
        await until(client, task.id, COMPLETED)
    assert await listed(TaskState.TASK_STATE_WORKING) == set()
