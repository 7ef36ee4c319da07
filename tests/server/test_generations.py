"""The generation of a task: every state change and artifact update raises it by one, from 1, and everybody sees the same."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue_agents import Agent
from retinue_agents.testing import EchoModel
from retinue_server.a2a.generation import GENERATION_EXTENSION

from .actor import Actor
from .brain import CONFIG, SECONDS, Brain, Call, Line, eventually, text
from .conftest import Serve
from .inprocess import Here, rpc, running
from .test_recovery import Caller, kill

ACTIVATED = {"A2A-Version": "1.0", "A2A-Extensions": GENERATION_EXTENSION}
JSONObject = dict[str, Any]


def generation_of(event: JSONObject) -> int:
    """Of a result, or of what is in one."""
    (content,) = event.values() if len(event) == 1 else (event,)
    return int(content["metadata"]["generation"])


def params(words: str, **message: Any) -> JSONObject:
    said = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": words}]}
    return {"message": said | message}


async def called(here: Here, method: str, headers: dict[str, str] = ACTIVATED, **params: Any) -> JSONObject:
    answer = (await here.http.post("/", json=rpc(method, **params), headers=headers)).json()
    assert "error" not in answer, answer["error"]
    result: JSONObject = answer["result"]
    return result


async def streamed(
    here: Here,
    method: str,
    headers: dict[str, str] = ACTIVATED,
    started: asyncio.Event | None = None,
    **params: Any,
) -> list[JSONObject]:
    """All events of a stream; `started` is set with the first."""
    found: list[JSONObject] = []
    async with here.http.stream("POST", "/", json=rpc(method, **params), headers=headers) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line.removeprefix("data:"))["result"])
                if started is not None:
                    started.set()
    return found


words = st.sampled_from(["work", "say:x", "many:30", "many:3", "big:20", "say:y"])
turns = st.lists(st.lists(words, max_size=5), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(turns)
def test_the_generations_of_a_stream_have_no_gap(turns: list[list[str]]) -> None:
    """From 1, over many pieces of text, over questions and the turns that answer them; what is asked for in between has the
    generation of the latest event."""

    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with running(Path(folder), {"actor": Actor()}) as here:
                seen, task_id = 0, ""
                for number, turn in enumerate(turns):
                    end = "done" if number == len(turns) - 1 else "ask"
                    message = {"taskId": task_id} if task_id else {}
                    sent = params(" ".join([*turn, end]), **message)
                    heard = await streamed(here, "SendStreamingMessage", **sent)
                    first = generation_of(heard[0])
                    assert first == (seen or 1)
                    task_id = heard[0]["task"]["id"]
                    assert [generation_of(event) for event in heard] == [*range(first, first + len(heard))]
                    seen = first + len(heard) - 1
                    task = await called(here, "GetTask", id=task_id)
                    assert generation_of(task) == seen
                    (listed,) = (await called(here, "ListTasks"))["tasks"]
                    assert generation_of(listed) == seen

    asyncio.run(play())


async def test_every_answer_has_it_and_only_who_asks_sees_it(tmp_path: Path) -> None:
    """SendMessage, CancelTask, GetTask and a subscription; without the extension there is no sign of it, nor on disk."""
    async with running(tmp_path, {"actor": Actor()}) as here:
        plain = {"A2A-Version": "1.0"}
        asked = (await called(here, "SendMessage", **params("work say:x ask")))["task"]
        assert generation_of(asked) == 4
        assert "generation" not in (await called(here, "GetTask", plain, id=asked["id"])).get("metadata", {})
        started = [asyncio.Event(), asyncio.Event()]
        subscribed = asyncio.create_task(streamed(here, "SubscribeToTask", ACTIVATED, started[0], id=asked["id"]))
        other = asyncio.create_task(streamed(here, "SubscribeToTask", plain, started[1], id=asked["id"]))
        async with asyncio.timeout(SECONDS):
            for one in started:
                await one.wait()
        canceled = await called(here, "CancelTask", id=asked["id"])
        assert generation_of(canceled) == 5
        assert [generation_of(event) for event in await subscribed] == [4, 5]
        assert all("generation" not in json.dumps(event) for event in await other)
        rows = await here.server.store.database.read(
            lambda db: db.execute("SELECT generation, snapshot FROM tasks").fetchall()
        )
        assert [seq for seq, _ in rows] == [5]
        assert b"generation" not in rows[0][1]


async def test_an_agent_of_ours_counts_the_same(tmp_path: Path) -> None:
    """The task, working, its text, completed."""
    async with running(tmp_path, {"echo": Agent(EchoModel(chunks=8), name="echo")}) as here:
        heard = await streamed(here, "SendStreamingMessage", **params("hello you all of you"))
        assert [generation_of(event) for event in heard] == [*range(1, len(heard) + 1)]
        assert [*heard[0], *heard[1], *heard[-1]] == ["task", "statusUpdate", "statusUpdate"]


@pytest.fixture
def brain(tmp_path: Path) -> Iterator[Brain]:
    with Brain().serving(tmp_path) as serving:
        yield serving


def test_after_kill_9_it_goes_on_from_the_last_committed(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """The restarted turn's events follow the stored generation without a gap."""
    go_on = threading.Event()

    def script(call: Call) -> Iterable[Line]:
        if call.what == "look":
            yield {"seen": "a cat"}
        elif call.body["step"] == 1:
            yield from [*text("Let ", "me ", "look."), {"tool": "look"}]
        else:
            if call.number == 2:
                yield from text("It ", "is ", "a ")
                yield from brain.hang()
            go_on.wait(SECONDS)
            yield from text("A ", "cat.")

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server)
        task_id = caller.send("What do you see?", wait=False)["id"]
        brain.wait_for("ask", 2)
        eventually(lambda: "It " in json.dumps(caller.task(task_id)), "a part of the answer")
        kill(server)
    with closing(sqlite3.connect(tmp_path / "var" / "retinue.db")) as db:
        ((committed,),) = db.execute("SELECT generation FROM tasks").fetchall()
    assert committed > 1  # a step was
    with serve(tmp_path, CONFIG) as server:
        body, url = rpc("SubscribeToTask", id=task_id), f"{server.url}/agents/thinker/"
        heard: list[int] = []
        with httpx.stream("POST", url, json=body, headers=ACTIVATED, timeout=SECONDS) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    heard.append(generation_of(json.loads(line.removeprefix("data:"))["result"]))
                    go_on.set()
        assert committed <= heard[0] <= committed + 2  # it may be working already
        assert heard == [*range(heard[0], heard[0] + len(heard))]
        body = rpc("GetTask", id=task_id)
        ended = httpx.post(url, json=body, headers=ACTIVATED, timeout=SECONDS).json()["result"]
        assert generation_of(ended) == heard[-1]


@pytest.mark.parametrize("version", ["1.0", "0.3"])
async def test_the_id_of_a_server_sent_event_is_its_generation(tmp_path: Path, version: str) -> None:
    """On JSON-RPC 1.0 and 0.3 and on REST, whether or not the extension is activated."""
    agent = Agent(EchoModel(chunks=3), name="echo")
    async with running(tmp_path, {"echo": agent}) as here:
        body: JSONObject
        if version == "1.0":
            body = rpc("SendStreamingMessage", **params("one two three"))
        else:
            said = {"messageId": uuid.uuid4().hex, "role": "user", "kind": "message"}
            body = rpc("message/stream", message=said | {"parts": [{"kind": "text", "text": "one two three"}]})
        ids = await event_ids(here, "/", body, version)
        assert ids == [str(number + 1) for number in range(len(ids))]
        assert len(ids) >= 4
        if version == "1.0":
            assert await event_ids(here, "/rest/message:stream", params("one two three"), version) == ids


async def event_ids(here: Here, path: str, body: JSONObject, version: str) -> list[str]:
    """The `id:` of each event of a stream; an event without one is an empty string."""
    ids: list[str] = []
    async with here.http.stream("POST", path, json=body, headers={"A2A-Version": version}) as answer:
        id_ = ""
        async for line in answer.aiter_lines():
            if line.startswith("id:"):
                id_ = line.removeprefix("id:").strip()
            elif line.startswith("data:"):
                ids.append(id_)
                id_ = ""
    return ids
