"""Memories that are slow, fail, hang, block and come back: answers keep coming, and every turn is remembered, once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from .brain import Brain, eventually
from .conftest import Serve, Server
from .vault import CONFIG, PARTS, SHAPES, Vault

JSONObject = dict[str, Any]

ANSWER_SECONDS = 15.0
"""No answer may take as long: a memory has 2 seconds, and what hangs here hangs until all answers are there."""


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
    answer = httpx.post(
        f"{url}/agents/{agent}/", json=body, headers={"A2A-Version": "1.0"}, timeout=ANSWER_SECONDS
    ).json()
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


def counted(server: Server, name: str, **labels: str) -> float:
    """The sum of the samples of /metrics with this name and these labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=ANSWER_SECONDS).text
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


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
        talks = {key: pool.submit(callers.talk, *key, texts) for key, texts in said.items()}
        with serve(tmp_path, CONFIG) as server:
            callers.at(server)
            for shape in SHAPES:
                brain.wait_for(f"record/{shape}", 2)
            callers.at(None)
            server.process.kill()
            server.process.wait()
        with serve(tmp_path, CONFIG) as server:
            callers.at(server)
            tasks = {key: talk.result() for key, talk in talks.items()}
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
            for reason in ("error", "unanswered"):
                assert counted(server, "recollect_memory_failures_total", operation="retrieve", reason=reason) > 0
            assert counted(server, "recollect_memory_writes_total", outcome="retried") > 0
            vault.healed.set()
            for (shape, _), of_user in tasks.items():
                for task in of_user:
                    eventually(partial(is_stored, server, shape, task), f"{task['id']} is stored")
            assert counted(server, "recollect_memory_writes_pending") == 0
            assert counted(server, "recollect_memory_writes_total", outcome="failed") == 0
    assert {key: vault.texts(*key) for key in said} == said
