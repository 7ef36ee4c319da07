"""What a crash, or a stop in order, leaves to the next start: real servers, really killed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.types import Task

from .brain import CONFIG, REFUSE, SECONDS, Brain, Call, Line, eventually, text
from .conftest import Serve, Server, command, environment

JSONObject = dict[str, Any]


@pytest.fixture
def brain(tmp_path: Path) -> Iterator[Brain]:
    with Brain().serving(tmp_path) as serving:
        yield serving


class Caller:
    """A caller of one server."""

    def __init__(self, server: Server, agent: str = "thinker") -> None:
        self._url = f"{server.url}/agents/{agent}/"

    def call(self, method: str, **params: Any) -> JSONObject:
        answer = httpx.post(self._url, json=_rpc(method, params), headers=_HEADERS, timeout=SECONDS).json()
        assert "error" not in answer, answer["error"]
        result: JSONObject = answer["result"]
        return result

    def send(
        self,
        words: str,
        *,
        wait: bool = True,
        push: JSONObject | None = None,
        metadata: JSONObject | None = None,
        **message: Any,
    ) -> JSONObject:
        configuration: JSONObject = {"returnImmediately": not wait}
        if push is not None:
            configuration["taskPushNotificationConfig"] = push
        metadata = {"user_id": "alice"} | (metadata or {})
        sent = self.call(
            "SendMessage", message=_message(words, message), configuration=configuration, metadata=metadata
        )
        task: JSONObject = sent["task"]
        return task

    def task(self, task_id: str) -> JSONObject:
        return self.call("GetTask", id=task_id)

    def ended(self, task_id: str, state: str = "TASK_STATE_COMPLETED") -> JSONObject:
        """The task, once it is in this state."""
        seen: JSONObject = {}

        def reached() -> bool:
            seen.update(self.task(task_id))
            return bool(seen["status"]["state"] == state)

        try:
            eventually(reached, state)
        except AssertionError:
            raise AssertionError(f"the task is not {state}: {seen}") from None
        return seen

    def stream(self, method: str, **params: Any) -> Iterator[JSONObject]:
        request = _rpc(method, params)
        with httpx.stream("POST", self._url, json=request, headers=_HEADERS, timeout=SECONDS) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    answer = json.loads(line.removeprefix("data:"))
                    assert "error" not in answer, answer["error"]
                    yield answer["result"]


_HEADERS = {"A2A-Version": "1.0"}


def _rpc(method: str, params: JSONObject) -> JSONObject:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def _message(words: str, fields: JSONObject) -> JSONObject:
    return {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": words}]} | fields


def said(parted: JSONObject) -> str:
    return "".join(part["text"] for part in parted["parts"])


def answers(task: JSONObject) -> list[str]:
    return [said(artifact) for artifact in task.get("artifacts", ())]


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(SECONDS)


def stop(server: Server) -> int:
    """SIGTERM; the exit code."""
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(SECONDS)


def stored(server: Server, task_id: str) -> Task:
    """The task as it is on disk."""
    with closing(sqlite3.connect(server.folder / "var" / "retinue.db")) as db:
        (snapshot,) = db.execute("SELECT snapshot FROM tasks WHERE id = ?", (task_id,)).fetchone()
    return Task.FromString(snapshot)


@pytest.mark.parametrize("pushed", [False, True])
def test_a_killed_turn_goes_on_by_itself_and_repeats_nothing_that_is_committed(
    tmp_path: Path, serve: Serve, brain: Brain, pushed: bool
) -> None:
    """After kill -9 the turn goes on without a word from its caller: the committed model and tool steps are not made again,
    the model is asked the same as before, and a subscriber sees the answer begin anew (append=false). A part of the answer is
    on disk only where it is pushed.
    """
    go_on = threading.Event()

    def script(call: Call) -> Iterable[Line]:
        if call.what == "push":
            yield {}
        elif call.what == "look":
            yield {"seen": "a cat"}
        elif call.body["step"] == 1:
            yield {"tool": "look"}
        else:
            if call.number == 3:
                go_on.wait(SECONDS)
            yield from text("It ", "is ")
            if call.number == 2:
                yield from brain.hang()
            yield from text("a cat.")

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server)
        push = {"url": f"{brain.url}/push"} if pushed else None
        task_id = caller.send("What do you see?", wait=False, push=push, contextId="c")["id"]
        eventually(lambda: answers(caller.task(task_id)) == ["It "], "a part of the answer")
        if pushed:
            eventually(
                lambda: [a.parts[0].text for a in stored(server, task_id).artifacts] == ["It "], "a part on disk"
            )
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        events = Caller(server).stream("SubscribeToTask", id=task_id)
        assert answers(next(events)["task"]) == (["It "] if pushed else [])
        brain.wait_for("ask", 3)
        go_on.set()
        heard = list(events)
        task = Caller(server).ended(task_id)
    assert answers(task) == ["It is a cat."]
    assert [(call.what, call.body.get("step")) for call in brain.calls if call.what != "push"] == [
        ("ask", 1),
        ("look", None),
        ("ask", 2),
        ("ask", 2),
    ]
    assert brain.of("ask")[1].body["prompt"] == brain.of("ask")[2].body["prompt"]
    updates = [event["artifactUpdate"] for event in heard if "artifactUpdate" in event]
    pieces = [said(update["artifact"]) for update in updates]
    assert (pieces[0], "".join(pieces)) == ("It ", "It is a cat.")
    assert [update.get("append", False) for update in updates] == [False, *[True] * (len(updates) - 1)]
    assert [update.get("lastChunk", False) for update in updates] == [*[False] * (len(updates) - 1), True]
    assert heard[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


def test_three_crashes_without_a_committed_step_end_a_turn_and_no_other(
    tmp_path: Path, serve: Serve, brain: Brain
) -> None:
    """A turn that was in its first step at three crashes is FAILED and says so; one that waited behind it is not to blame."""
    brain.script = lambda call: brain.hang() if "poison" in call.body["prompt"][-1][1] else text("fine")
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server)
        poison = caller.send("poison", wait=False, contextId="c")["id"]
        waiting = caller.send("a question", wait=False, contextId="c")["id"]
        brain.wait_for("ask", 1)
        kill(server)
    for crash in (2, 3):
        with serve(tmp_path, CONFIG) as server:
            brain.wait_for("ask", crash)
            kill(server)
    with serve(tmp_path, CONFIG) as server:
        failed = Caller(server).ended(poison, "TASK_STATE_FAILED")
        assert "stopped 3 times" in said(failed["status"]["message"])
        assert answers(Caller(server).ended(waiting)) == ["fine"]
    assert len(brain.of("ask")) == 4


def test_a_committed_step_forgives_the_crashes_before_it(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """Only crashes since the last committed step count: a long turn survives more than three of them."""
    hangs = {("ask", 1), ("ask", 2), ("look", 1), ("look", 2)}

    def script(call: Call) -> Iterable[Line]:
        if (call.what, call.number) in hangs:
            return brain.hang()
        if call.what == "look":
            return [{"seen": "a cat"}]
        return [{"tool": "look"}] if call.body["step"] == 1 else text("A cat.")

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        task_id = Caller(server).send("Look!", wait=False)["id"]
        brain.wait_for("ask", 1)
        kill(server)
    for what, number in (("ask", 2), ("look", 1), ("look", 2)):
        with serve(tmp_path, CONFIG) as server:
            brain.wait_for(what, number)
            kill(server)
    with serve(tmp_path, CONFIG) as server:
        assert answers(Caller(server).ended(task_id)) == ["A cat."]


def test_a_tool_that_must_not_be_repeated_is_not(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A crash under a retry="never" tool ends the task FAILED with "outcome unknown"; the tool and the model are left alone."""
    brain.script = lambda call: brain.hang() if call.what == "pay" else [{"tool": "pay"}]
    with serve(tmp_path, CONFIG) as server:
        task_id = Caller(server).send("Pay!", wait=False)["id"]
        brain.wait_for("pay")
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        failed = Caller(server).ended(task_id, "TASK_STATE_FAILED")
    assert said(failed["status"]["message"]).startswith("outcome unknown")
    assert [call.what for call in brain.calls] == ["ask", "pay"]


def test_follow_ups_that_waited_are_answered_after_a_crash(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """Messages to a running task survive with it, and are answered in their order; a retry of one finds the same task."""

    def script(call: Call) -> Iterable[Line]:
        return brain.hang() if call.number == 1 else text(f"re {call.body['prompt'][-1][1]}")

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server)
        task_id = caller.send("one", wait=False, messageId="m1")["id"]
        for number, words in ((2, "two"), (3, "three")):
            assert caller.send(words, wait=False, taskId=task_id, messageId=f"m{number}")["id"] == task_id
        brain.wait_for("ask")
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        replayed = Caller(server).send("three", taskId=task_id, messageId="m3")
        task = Caller(server).ended(task_id)
    assert replayed["id"] == task_id
    assert answers(task) == ["re one", "re two", "re three"]
    users = [message["messageId"] for message in task["history"] if message["role"] == "ROLE_USER"]
    assert users == ["m1", "m2", "m3"]
    assert len(brain.of("ask")) == 4


def test_what_has_ended_stays_as_it_is(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A finished task, and what a client was told of it, are the same after a crash; nothing is run again for it."""
    with serve(tmp_path, CONFIG) as server:
        before = Caller(server).send("hello")
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        assert Caller(server).task(before["id"]) == before
        assert Caller(server).call("ListTasks")["totalSize"] == 1
    assert len(brain.of("ask")) == 1


@contextmanager
def interrupted(
    serve: Serve, folder: Path, brain: Brain, message: str, state: str, end: Callable[[Server], object]
) -> Generator[tuple[Caller, str]]:
    """A server started again after one that ended while an executor had asked back and not returned: a caller, and the id of
    the task, which is as it was."""
    brain.script = lambda call: brain.hang() if call.number == 1 else [{}]
    with serve(folder, CONFIG) as server:
        asked = Caller(server, "asker").send(message)
        assert asked["status"]["state"] == state
        brain.wait_for("asked")
        end(server)
    with serve(folder, CONFIG) as server:
        caller = Caller(server, "asker")
        assert caller.task(asked["id"]) == asked
        yield caller, asked["id"]


def test_a_question_that_was_asked_before_the_crash_waits_for_its_answer(
    tmp_path: Path, serve: Serve, brain: Brain
) -> None:
    """A turn whose question is stored is over, even if the crash came before its executor returned: the message that led to
    the question is not taken for its answer.
    """
    with interrupted(serve, tmp_path, brain, "one of them", "TASK_STATE_INPUT_REQUIRED", kill) as (caller, asked):
        answered = caller.send("the red one", taskId=asked)
    assert said(answered["status"]["message"]) == "THE RED ONE"
    assert [said(message) for message in answered["history"]] == ["one of them", "which one?", "the red one"]


@pytest.mark.parametrize("end", [kill, stop])
def test_a_task_that_needs_authorization_waits_for_a_message_after_a_restart(
    tmp_path: Path, serve: Serve, brain: Brain, end: Callable[[Server], object]
) -> None:
    """AUTH_REQUIRED is an interruption like a question: its turn is not run again, whether it said anything or not, and the
    next message goes on with it.
    """
    with interrupted(serve, tmp_path, brain, "my mail", "TASK_STATE_AUTH_REQUIRED", end) as (caller, asked):
        answered = caller.send("signed in", taskId=asked)
    assert said(answered["status"]["message"]) == "SIGNED IN"
    assert [said(message) for message in answered["history"]] == ["my mail", "signed in"]
    assert len(brain.of("asked")) == 2


def test_an_agent_that_is_gone_leaves_its_turns_until_it_is_back(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A server whose configuration names an agent no more starts, serves the others, and loses nothing of that one's."""
    brain.script = lambda call: brain.hang() if call.number == 1 else text("fine")
    other = "agents:\n  echo: {model: retinue_agents.testing:EchoModel, memory: off}\n"
    with serve(tmp_path, CONFIG) as server:
        task_id = Caller(server).send("hello", wait=False)["id"]
        brain.wait_for("ask")
        kill(server)
    for _ in range(3):
        with serve(tmp_path, other) as server:
            assert answers(Caller(server, "echo").send("hi")) == ["hi"]
            kill(server)
    with serve(tmp_path, CONFIG) as server:
        assert answers(Caller(server).ended(task_id)) == ["fine"]


def test_what_is_owed_to_a_memory_survives_a_crash(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A memory write that a crash cut off is made at the next start; until it is there, a recall finds it all the same."""
    arrive = threading.Event()

    def script(call: Call) -> Iterable[Line]:
        if call.what != "remember":
            yield from text("noted")
            return
        if call.number == 1:
            yield from brain.hang()
        arrive.wait(SECONDS)
        yield {}

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        task = Caller(server, "remote").send("My cat is called Tom.")
        assert task["metadata"]["memory"]["update"] == "pending"
        brain.wait_for("remember", 1)
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "remote")
        brain.wait_for("remember", 2)
        asked = caller.send("What is my cat called?")
        assert "My cat is called Tom." in brain.wait_for("ask", 2).body["prompt"][0][1]
        arrive.set()
        for id_ in (task["id"], asked["id"]):
            eventually(partial(_remembered, caller, id_), "what is owed is stored")
    assert brain.of("remember")[1].body == brain.of("remember")[0].body
    assert [call.body["said"][0] for call in brain.of("remember")[1:]] == [
        "My cat is called Tom.",
        "What is my cat called?",
    ]


def _remembered(caller: Caller, task_id: str) -> bool:
    return bool(caller.task(task_id)["metadata"]["memory"]["update"] == "stored")


def test_a_memory_is_written_once_however_often_its_write_is_cut_off(
    tmp_path: Path, serve: Serve, brain: Brain
) -> None:
    """A turn that was answered before the crash is remembered after it, once, and found by the next one."""
    with serve(tmp_path, CONFIG) as server:
        Caller(server, "rememberer").send("My cat is called Tom.", messageId="m")
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        first = Caller(server, "rememberer").send("What is my cat called?")
        retrieved = first["metadata"]["memory"]["retrieved"]
        assert [found["sources"] for found in retrieved].count(["m"]) == 1
        eventually(partial(_remembered, Caller(server, "rememberer"), first["id"]), "the turn is remembered")
    with closing(sqlite3.connect(tmp_path / "var" / "retinue.db")) as db:
        contents = [row[0] for row in db.execute("SELECT content FROM memories WHERE role = 'user' ORDER BY seq")]
        assert contents == ["My cat is called Tom.", "What is my cat called?"]


def test_pushes_survive_a_crash_in_their_order(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """What a webhook did not take before the crash comes after it: every event at least once, in order, the end last."""
    refusing = threading.Event()
    refusing.set()

    def script(call: Call) -> Iterable[Line]:
        if call.what.startswith("push"):
            return [REFUSE if refusing.is_set() else {}]
        return text("one ", "two")

    brain.script = script
    with serve(tmp_path, CONFIG) as server:
        push = {"id": "p", "url": f"{brain.url}/push/p", "token": "t"}
        task = Caller(server).send("Count!", push=push)
        brain.wait_for("push/p", 1)
        kill(server)
    refusing.clear()
    refused = len(brain.of("push/p"))
    with serve(tmp_path, CONFIG):
        arrived = eventually(lambda: _pushed_to_the_end(brain.of("push/p")[refused:]), "the end is pushed")
    assert arrived[0]["task"]["id"] == task["id"]
    updates = [event["artifactUpdate"]["artifact"] for event in arrived if "artifactUpdate" in event]
    assert "".join(said(update) for update in updates) == "one two"
    assert arrived[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


def _pushed_to_the_end(calls: list[Call]) -> list[JSONObject]:
    events = [call.body for call in calls]
    ended = bool(events) and events[-1].get("statusUpdate", {}).get("status", {}).get("state") == "TASK_STATE_COMPLETED"
    return events if ended else []


def test_a_stop_lets_turns_end_and_takes_no_more(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """SIGTERM: no new connection is taken, what is being worked on ends and is answered, and the exit code is 0."""
    go_on = threading.Event()

    def script(call: Call) -> Iterable[Line]:
        go_on.wait(SECONDS)
        return text("done")

    brain.script = script
    config = CONFIG.replace("grace: 0.3", "grace: 20")
    with serve(tmp_path, config) as server, ThreadPoolExecutor() as pool:
        caller = Caller(server)
        blocking = pool.submit(caller.send, "finish this")
        brain.wait_for("ask", 1)
        quick = caller.send("and this", wait=False)
        brain.wait_for("ask", 2)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: _refused(server), "connections are refused")
        go_on.set()
        assert answers(blocking.result(SECONDS)) == ["done"]
        assert server.process.wait(SECONDS) == 0
        assert answers_on_disk(server, quick["id"]) == ["done"]


def answers_on_disk(server: Server, task_id: str) -> list[str]:
    return [part.text for artifact in stored(server, task_id).artifacts for part in artifact.parts]


def _refused(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/healthz", timeout=SECONDS)
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("blocking", [True, False], ids=["a caller waits", "nobody waits"])
def test_what_a_stop_interrupts_goes_on_at_the_next_start(
    tmp_path: Path, serve: Serve, brain: Brain, blocking: bool
) -> None:
    """What does not end within server.grace is left to the next start, steps that are done included; it is no crash, so it
    may happen any number of times. The stop takes little more than its grace.
    """

    def script(call: Call) -> Iterable[Line]:
        if call.what == "look":
            return [{"seen": "a cat"}]
        if call.body["step"] == 1:
            return [{"tool": "look"}]
        return brain.hang() if len(brain.of("ask")) < 5 else text("A cat.")

    brain.script = script
    with serve(tmp_path, CONFIG) as server, ThreadPoolExecutor() as pool:
        caller = Caller(server)
        sent = pool.submit(caller.send, "Look!", wait=blocking, messageId="m")
        brain.wait_for("ask", 2)
        took = _timed_stop(server)
        if blocking:
            with pytest.raises(AssertionError, match="the task goes on when it is back"):
                sent.result(SECONDS)
    for number in (3, 4):
        with serve(tmp_path, CONFIG) as server:
            brain.wait_for("ask", number)
            took = max(took, _timed_stop(server))
    with serve(tmp_path, CONFIG) as server:
        assert answers(Caller(server).send("Look!", messageId="m")) == ["A cat."]
    assert len(brain.of("look")) == 1
    assert [call.body["step"] for call in brain.of("ask")] == [1, 2, 2, 2, 2]
    assert took < 5


def _timed_stop(server: Server) -> float:
    """Seconds that it takes to stop; the exit code must be 0."""
    began = time.monotonic()
    assert stop(server) == 0
    return time.monotonic() - began


def test_a_second_interrupt_ends_the_grace(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """Ctrl+C twice: the process ends at once, and in order; what it interrupts goes on at the next start."""
    brain.script = lambda call: brain.hang() if len(brain.of("ask")) < 2 else text("done")
    with serve(tmp_path, CONFIG.replace("grace: 0.3", "grace: 60")) as server:
        Caller(server).send("finish this", wait=False, messageId="m")
        brain.wait_for("ask")
        server.process.send_signal(signal.SIGINT)
        eventually(lambda: _refused(server), "connections are refused")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(SECONDS) == 0
    with serve(tmp_path, CONFIG) as server:
        assert answers(Caller(server).send("finish this", messageId="m")) == ["done"]


def test_a_tool_in_a_thread_does_not_hold_up_a_stop(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A plain function that sleeps for a minute in a thread is left behind: the process ends soon after its grace."""
    brain.script = lambda call: [] if call.what == "sleep" else [{"tool": "sleep"}]
    with serve(tmp_path, CONFIG) as server:
        Caller(server).send("Sleep!", wait=False)
        brain.wait_for("sleep")
        assert _timed_stop(server) < 10


def test_a_cancel_that_the_disk_is_slow_to_store_is_a_cancel(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """CancelTask answers when the end is stored, not before, and does not fail where that takes long."""
    brain.script = lambda call: brain.hang()
    with (
        serve(tmp_path, CONFIG) as server,
        ThreadPoolExecutor() as pool,
        closing(sqlite3.connect(tmp_path / "var" / "retinue.db", isolation_level=None)) as other,
    ):
        caller = Caller(server)
        task_id = caller.send("think", wait=False)["id"]
        brain.wait_for("ask")
        other.execute("BEGIN IMMEDIATE")
        canceling = pool.submit(caller.call, "CancelTask", id=task_id)
        done, _ = wait([canceling], timeout=0.7)
        other.execute("ROLLBACK")
        assert not done
        assert canceling.result(SECONDS)["status"]["state"] == "TASK_STATE_CANCELED"
        assert caller.task(task_id)["status"]["state"] == "TASK_STATE_CANCELED"


def test_one_server_at_a_time_uses_a_database(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A second `retinue serve` on the same file is refused with one line, exit 1, and the first one goes on; once that is
    killed, the next start takes the file over.
    """
    with serve(tmp_path, CONFIG) as server:
        second = subprocess.run(
            command("serve", "--config", "retinue.yaml", "--port", "0"),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert (second.returncode, second.stdout) == (1, "")
        (line,) = second.stderr.splitlines()
        assert "retinue.db: another server uses it" in line
        assert answers(Caller(server).send("still there?")) == ["fine"]
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        assert answers(Caller(server).send("and now?")) == ["fine"]
