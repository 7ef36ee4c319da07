"""Memories that are slow, fail, hang, block and come back: answers keep coming, and every turn is remembered, once."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from .brain import REFUSE, Brain, Call, Line, eventually
from .conftest import Serve, Server, counted, retinue
from .vault import CONFIG, FINE, PARTS, SHAPES, Vault

JSONObject = dict[str, Any]

ANSWER_SECONDS = 15.0
"""No answer may take as long: a memory has 2 seconds, and what hangs here hangs until all answers are there."""

HTTP = httpx.Client(verify=False, timeout=ANSWER_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture
def brain(tmp_path: Path) -> Iterator[Brain]:
    (tmp_path / "vault.py").write_text(PARTS, encoding="utf-8")
    with Brain().serving(tmp_path) as serving:
        yield serving


class Callers:
    """Clients of a server that may go and come back at another address."""

    def __init__(self) -> None:
        self._url = ""
        self._moved = threading.Condition()

    def at(self, server: Server | None) -> None:
        with self._moved:
            self._url = server.url if server is not None else ""
            self._moved.notify_all()

    def talk(self, agent: str, user: str, texts: list[str]) -> list[JSONObject]:
        """Say one thing after the other, each in a context of its own; the tasks."""
        return [self.send(agent, user, text) for text in texts]

    def send(self, agent: str, user: str, text: str) -> JSONObject:
        """Say something, again and with the same messageId where the server died over it."""
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
        params = {"message": message, "metadata": {"user_id": user}}
        tried = ""
        while True:
            with self._moved:
                assert self._moved.wait_for(lambda: self._url not in ("", tried), ANSWER_SECONDS), "no server came back"  # noqa: B023
                tried = self._url
            try:
                task: JSONObject = call(tried, agent, "SendMessage", params)["task"]
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                continue
            return task


def call(url: str, agent: str, method: str, params: Mapping[str, Any]) -> JSONObject:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = HTTP.post(f"{url}/agents/{agent}/", json=body, headers={"A2A-Version": "1.0"}).json()
    assert "error" not in answer, answer["error"]
    result: JSONObject = answer["result"]
    return result


def answer_of(task: JSONObject) -> str:
    assert task["status"]["state"] == "TASK_STATE_COMPLETED", task["status"]
    return "".join(part["text"] for artifact in task["artifacts"] for part in artifact["parts"])


def update_of(server: Server, agent: str, task: JSONObject) -> str:
    """What became of a task's memory write."""
    return str(call(server.url, agent, "GetTask", {"id": task["id"]})["metadata"]["memory"]["update"])


def is_stored(server: Server, agent: str, task: JSONObject) -> bool:
    return update_of(server, agent, task) == "stored"


def test_answers_come_and_turns_are_remembered_once_whatever_memories_do(
    tmp_path: Path, serve: Serve, brain: Brain
) -> None:
    """Memories of three shapes fail in ten ways under a dozen clients, and the server is killed in the middle: every message
    is answered while they still do, and when they have healed, each has every turn of each user, once and in order.
    """
    vault, callers = Vault(seed=1), Callers()
    brain.script = vault.storm
    said = {
        (shape, f"{shape}-{number}"): [f"{shape} {number} says {turn}" for turn in range(4)]
        for shape in SHAPES
        for number in range(4)
    }
    with ThreadPoolExecutor(len(said)) as pool:

        def talk(begin: int, end: int) -> dict[tuple[str, str], Future[list[JSONObject]]]:
            return {key: pool.submit(callers.talk, *key, texts[begin:end]) for key, texts in said.items()}

        with serve(tmp_path, CONFIG) as server:
            callers.at(server)
            before = {key: talking.result() for key, talking in talk(0, 2).items()}
            asked = len(brain.of("recall/own"))
            talks = talk(2, 4)
            brain.wait_for("recall/own", asked + 1)
            callers.at(None)
            server.process.kill()
            server.process.wait()
        with serve(tmp_path, CONFIG) as server:
            callers.at(server)
            tasks = {key: before[key] + talking.result() for key, talking in talks.items()}
            assert not vault.healed.is_set()
            assert {key: [answer_of(task) for task in of_user] for key, of_user in tasks.items()} == said
            failures = [
                failure
                for of_user in tasks.values()
                for task in of_user
                for failure in task["metadata"]["memory"].get("failed", ())
            ]
            assert {failure["operation"] for failure in failures} == {"retrieve"}
            assert {failure["memory"] for failure in failures} == set(SHAPES)
            assert {failure["problem"] for failure in failures} == {
                "no answer within 2 s",
                "it failed; the server's log says why",
            }
            assert counted(server, "retinue_memory_failures_total", operation="retrieve") > 0
            assert counted(server, "retinue_memory_writes_total", outcome="retried") > 0
            vault.healed.set()
            for (shape, _), of_user in tasks.items():
                for task in of_user:
                    eventually(partial(is_stored, server, shape, task), f"{task['id']} is stored")
            assert counted(server, "retinue_memory_writes_pending") == 0
            assert counted(server, "retinue_memory_writes_total", outcome="failed") == 0
    assert {key: vault.texts(*key) for key in said} == said


def test_a_write_that_hung_when_the_server_was_killed_is_not_made_twice(
    tmp_path: Path, serve: Serve, brain: Brain
) -> None:
    """It had arrived, but the server was not told so before kill -9. The next start finds that out: by the turn's id, or
    where the backend takes none, by what it recalls. A write that hangs holds up those of no other user.
    """
    vault, hanging = Vault(), threading.Event()

    def script(call: Call) -> Iterable[Line]:
        done = vault.fine(call)
        if call.what.startswith("record") and call.body["user"] == "alice" and not hanging.is_set():
            hanging.wait(60)
        return done

    brain.script = script
    callers = Callers()
    with serve(tmp_path, CONFIG) as server:
        callers.at(server)
        tasks = {shape: callers.send(shape, "alice", "I keep bees") for shape in SHAPES}
        for shape in SHAPES:
            eventually(partial(vault.texts, shape, "alice"), "it arrives")
            task = callers.send(shape, "bob", "I keep goats")
            eventually(partial(is_stored, server, shape, task), "the other's is stored")
            assert update_of(server, shape, tasks[shape]) == "pending"
        assert counted(server, "retinue_memory_writes_pending") == len(SHAPES)
        server.process.kill()
        server.process.wait()
    hanging.set()
    with serve(tmp_path, CONFIG) as server:
        for shape, task in tasks.items():
            eventually(partial(is_stored, server, shape, task), "it is stored")
    assert [vault.texts(shape, "alice") for shape in SHAPES] == [["I keep bees"]] * len(SHAPES)


def test_a_stop_lets_a_write_end(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """SIGTERM in the middle of a write that takes its time: it is made, noted, and not made again at the next start."""
    vault, stopping = Vault(), threading.Event()

    def script(call: Call) -> Iterable[Line]:
        if call.what.startswith("record"):
            stopping.wait(60)
        return vault.fine(call)

    brain.script = script
    callers = Callers()
    with serve(tmp_path, CONFIG.replace(", write_timeout: 1", "")) as server:
        callers.at(server)
        tasks = {shape: callers.send(shape, "alice", "I keep bees") for shape in SHAPES}
        for shape in SHAPES:
            brain.wait_for(f"record/{shape}")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses(server), "connections are refused")
        stopping.set()
        assert server.process.wait(ANSWER_SECONDS) == 0
    with serve(tmp_path, CONFIG) as server:
        for shape, task in tasks.items():
            assert update_of(server, shape, task) == "stored"
    assert [len(brain.of(f"record/{shape}")) for shape in SHAPES] == [1] * len(SHAPES)


def refuses(server: Server) -> bool:
    try:
        HTTP.get(f"{server.url}/healthz")
    except httpx.TransportError:
        return True
    return False


def test_a_memory_that_cannot_be_made_yet_is_made_later(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """A constructor that hangs, and one that finds nobody at home, cost a few seconds and lines in the log: the server starts
    and answers, and what it owes them arrives, once, when they can be made.
    """
    vault = Vault()

    def script(call: Call) -> Iterator[Line]:
        if call.what == "make/hanging":
            vault.healed.wait(60)
        if call.what.startswith("make"):
            yield FINE if vault.healed.is_set() else REFUSE
        else:
            yield from vault.fine(call)

    brain.script = script
    config = """\
memory:
  hanging: {backend: "vault:Demanding", which: hanging}
  homeless: {backend: "vault:Demanding", which: homeless}
agents:
  both: {model: "retinue_agents.testing:EchoModel", memory: [hanging, homeless]}
"""
    callers = Callers()
    with serve(tmp_path, config) as server:
        callers.at(server)
        task = callers.send("both", "alice", "I keep bees")
        assert answer_of(task) == "I keep bees"
        assert {failed["memory"] for failed in task["metadata"]["memory"]["failed"]} == {"hanging", "homeless"}
        assert task["metadata"]["memory"]["update"] == "pending"
        vault.healed.set()
        eventually(partial(is_stored, server, "both", task), "it is stored")
        again = callers.send("both", "alice", "What do I keep?")
        assert "failed" not in again["metadata"]["memory"]
        assert len(again["metadata"]["memory"]["retrieved"]) == 1
    log = (tmp_path / "server.log").read_text(encoding="utf-8")
    assert "memory hanging: its constructor has not returned yet; the server starts without waiting" in log
    assert "could not be created: ConnectionError: there is nobody at home; the server starts without waiting" in log
    assert len(brain.of("make/homeless")) >= 2


def test_what_was_given_up_is_shown_and_can_be_tried_again(tmp_path: Path, serve: Serve, brain: Brain) -> None:
    """After `write_tries` a write is failed: in the task, in the metrics, in the list of its server's keeper, also after a
    restart. `--retry` delivers it, and what came later is there already.
    """
    vault = Vault()

    def script(call: Call) -> Iterable[Line]:
        refused = call.what == "record/plain" and not vault.healed.is_set() and call.body["text"] == "I keep bees"
        return [REFUSE] if refused else vault.fine(call)

    brain.script = script
    callers = Callers()
    config = CONFIG.replace('"vault:Plain", ', '"vault:Plain", write_tries: 2, ')
    with serve(tmp_path, config) as server:
        callers.at(server)
        task = callers.send("plain", "alice", "I keep bees")
        later = callers.send("plain", "alice", "I keep goats")
        eventually(partial(is_stored, server, "plain", later), "the next is stored")
        assert update_of(server, "plain", task) == "failed"
        assert counted(server, "retinue_memory_writes_total", memory="plain", outcome="failed") == 1
        assert counted(server, "retinue_memory_failures_total", memory="plain", operation="update") == 2
        assert counted(server, "retinue_memory_writes_pending") == 0
    vault.healed.set()
    with serve(tmp_path, config) as server:
        assert update_of(server, "plain", task) == "failed"
        line = retinue(server, "failed").stdout
        assert line.split()[:5] == [task["id"], "plain", "alice", "2", "tries"]
        assert "503" in line
        assert retinue(server, "failed", "--retry").stdout == "retried: 1\n"
        eventually(partial(is_stored, server, "plain", task), "it is stored")
        assert retinue(server, "failed").stdout == ""
    assert vault.texts("plain", "alice") == ["I keep goats", "I keep bees"]
