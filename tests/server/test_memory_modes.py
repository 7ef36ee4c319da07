"""Agents whose model uses the memory itself, and agents with several memories: a server that runs, and one that is killed."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from retinue_server import TaskClient
from retinue_server.assembly import build
from retinue_server.config import parse_config
from retinue_server.config_errors import InvalidConfig

from .brain import SECONDS, Brain, Call, Line, Script, eventually
from .conftest import Serve, Server
from .test_recovery import Caller, kill

MEMORIES = """
import asyncio

from retinue_memory import Memory


class Hanging(Memory):
    async def retrieve(self, query, *, top_k=5, **kwargs):
        await asyncio.sleep(1000)

    async def update(self, messages, **kwargs):
        pass


class Failing(Memory):
    async def retrieve(self, query, *, top_k=5, **kwargs):
        raise ZeroDivisionError("inside")

    async def update(self, messages, **kwargs):
        pass
"""
CONFIG = """\
memory:
  default: {embedder: off}
  work: {embedder: off}
  hanging: {backend: "memories:Hanging"}
  failing: {backend: "memories:Failing"}
  remote: {backend: "thinking:Remote"}
agents:
  tools: {default: true, model: "thinking:Model", memory_mode: tools, memory_top_k: 2}
  both: {model: "thinking:Model", memory_mode: both}
  many:
    model: "thinking:Model"
    memory: [hanging, default, failing, work]
    memory_timeout: 0.3
  worker: {model: "thinking:Model", memory: work}
  far: {model: "thinking:Model", memory: remote, memory_mode: tools}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    (folder / "memories.py").write_text(MEMORIES, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def brain(folder: Path) -> Generator[Brain]:
    with Brain().serving(folder) as serving:
        yield serving


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path, brain: Brain) -> Generator[Server]:
    with serve(folder, CONFIG) as running:
        yield running


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def use(tool: str, **arguments: Any) -> list[Line]:
    return [{"tool": tool, "arguments": arguments}]


def say(words: str) -> list[Line]:
    return [{"text": words}]


def steps(*lines: list[Line]) -> Script:
    """A script: what is answered at each step of a turn."""

    def script(call: Call) -> Iterable[Line]:
        step: int = call.body.get("step", 0)
        return lines[step - 1] if step else [{}]

    return script


def tell(server: Server, user: str, words: str, agent: str = "tools", **metadata: Any) -> dict[str, Any]:
    with TaskClient(server.url) as client:
        done = client.send_task(words, {"user_id": user, **metadata}, agent=agent).to_dict()
    assert done["status"]["state"] == "TASK_STATE_COMPLETED", done
    return done


def known(server: Server, user: str, memory: str = "default") -> list[str]:
    """What a memory has of a user, oldest first."""
    query: dict[str, str | int] = {"user": user, "space": memory, "limit": 100}
    found = httpx.get(f"{server.url}/api/v1/memories", params=query, timeout=SECONDS).json()["memories"]
    return [one["content"] for one in reversed(found)]


def is_stored(caller: Caller, task_id: str) -> bool:
    return bool(caller.task(task_id)["metadata"]["memory"]["update"] == "stored")


def shown(brain: Brain, role: str = "tool") -> str:
    """What the model was shown last in messages of a role."""
    return "\n".join(words for said, words in brain.of("ask")[-1].body["prompt"] if said == role)


def test_a_model_remembers_and_forgets_by_itself(server: Server, brain: Brain, user: str) -> None:
    """Saved in one turn, found in the same and in the next, never for another user, forgotten in the last."""
    brain.script = steps(
        use("add_memory", text="The user's sister is called Ann."), use("search_memory", query="sister"), say("Ann!")
    )
    first = tell(server, user, "My sister is Ann.")
    assert "The user's sister is called Ann." in shown(brain)
    (retrieved,) = first["metadata"]["memory"]["retrieved"]
    assert [source.partition("/tool/")[2] for source in retrieved["sources"]] == ["1/0"]
    assert first["metadata"]["memory"]["update"] in ("pending", "stored")
    eventually(lambda: known(server, user) == ["The user's sister is called Ann."], "the note is stored")
    brain.script = steps(use("search_memory", query="sister"), say("Hm."))
    other = tell(server, f"{user}-neighbour", "What is my sister called?")
    assert "Ann" not in shown(brain)
    assert other["metadata"]["memory"] == {"retrieved": []}
    again = tell(server, user, "What is my sister called?")
    (id_,) = re.findall(r"\(id (\w+)\)", shown(brain))
    assert [found["id"] for found in again["metadata"]["memory"]["retrieved"]] == [id_]
    brain.script = steps(use("forget_memory", ids=[id_]), say("Done."))
    tell(server, f"{user}-neighbour", "Forget her.")
    assert shown(brain) == f"Forgotten: 0. Not found: {id_}."
    tell(server, user, "Forget her.")
    assert shown(brain) == "Forgotten: 1."
    assert known(server, user) == []


def test_both_ways_remember_once(server: Server, brain: Brain, user: str) -> None:
    """What the model saves of a message that is remembered anyway is one memory; so is a turn that forgets none."""
    brain.script = steps(use("add_memory", text="The user lives in Bergen."), say("Noted."))
    tell(server, user, "I live in Bergen.", "both")
    eventually(lambda: "I live in Bergen." in known(server, user), "the turn is stored")
    assert [one for one in known(server, user) if "Bergen" in one] == ["I live in Bergen."]
    brain.script = steps(use("search_memory", query="Bergen"), say("Well."))
    tell(server, user, "Where do I live?", "both")
    assert "(shown before)" in shown(brain)
    (id_,) = re.findall(r"\(id (\w+)\) \[[\d-]+\] user: I live in Bergen", shown(brain))
    brain.script = steps(use("forget_memory", ids=[id_]), say("Forgot that you live in Bergen."))
    forgot = tell(server, user, "Forget that I live in Bergen.", "both")
    assert "update" not in forgot["metadata"]["memory"]
    brain.script = steps(say("Yes."))
    tell(server, user, "Do I have a name?", "both")
    eventually(lambda: "Do I have a name?" in known(server, user), "the last turn is stored")
    assert not any("Bergen" in one for one in known(server, user))


@pytest.mark.parametrize(
    ("wish", "offered"),
    [
        ({}, ["search_memory", "add_memory", "forget_memory"]),
        ({"mode": "read-only"}, ["search_memory"]),
        ({"mode": "off"}, []),
    ],
)
def test_a_request_binds_the_tools_too(
    wish: dict[str, Any], offered: list[str], server: Server, brain: Brain, user: str
) -> None:
    """The extension: read-only leaves the search, off nothing; what is called nevertheless is not there."""
    brain.script = steps(use("add_memory", text="The user has a cat."), say("Well."))
    tell(server, user, "I have a cat.", memory=wish)
    assert brain.of("ask")[-1].body["tools"] == offered
    if "add_memory" in offered:
        eventually(lambda: known(server, user) == ["The user has a cat."], "the note is stored")
    else:
        assert "no tool named 'add_memory'" in shown(brain)
        assert known(server, user) == []


@pytest.mark.parametrize(("wish", "most"), [({}, 2), ({"top_k": 3}, 3), ({"top_k": 1}, 1)])
def test_a_search_returns_at_most_top_k_of_the_request_or_the_config(
    wish: dict[str, Any], most: int, server: Server, brain: Brain, user: str
) -> None:
    """A request's top_k counts for searches of the model, else memory_top_k."""
    for name in ("Ann", "Bea", "Cleo", "Dora"):
        added = {"content": f"{name} is a cousin."}
        httpx.post(f"{server.url}/api/v1/memories", params={"user": user}, json=added).raise_for_status()
    brain.script = steps(use("search_memory", query="cousin"), say("Well."))
    tell(server, user, "My cousins?", memory=wish)
    assert shown(brain).count("is a cousin.") == most


def test_several_memories_answer_as_one(server: Server, brain: Brain, user: str) -> None:
    """What two know is joined, one that hangs and one that fails are named, and the answer comes at the deadline."""
    brain.script = steps(say("Noted."))
    tell(server, user, "My desk is on the fourth floor.", "worker")
    eventually(lambda: any("fourth floor" in one for one in known(server, user, "work")), "the desk is stored")
    tell(server, user, "My boat is called Ran.", "many")
    for memory in ("default", "work"):
        eventually(lambda: "My boat is called Ran." in known(server, user, memory), "both have the turn")  # noqa: B023
    began = time.monotonic()
    task = tell(server, user, "Where is my desk, and what is my boat called?", "many")
    assert time.monotonic() - began < SECONDS / 3
    block = shown(brain, "system")
    assert block.count("My boat is called Ran.") == 1
    assert "My desk is on the fourth floor." in block
    memory = task["metadata"]["memory"]
    assert [(failed["operation"], failed["memory"]) for failed in memory["failed"]] == [
        ("retrieve", "hanging"),
        ("retrieve", "failing"),
    ]
    assert memory["failed"][0]["problem"] == "no answer within 0.3 s"
    assert len({found["id"] for found in memory["retrieved"]}) == len(memory["retrieved"])
    assert memory["update"] in ("pending", "stored")


def test_what_is_saved_is_found_although_the_memory_is_slow(server: Server, brain: Brain, user: str) -> None:
    """By a search of the same turn, while the memory has not even taken it."""
    arrive = threading.Event()
    said = steps(
        use("add_memory", text="The user's dog is called Rex."), use("search_memory", query="dog called"), say("Rex.")
    )

    def script(call: Call) -> Iterable[Line]:
        if call.what == "remember":
            arrive.wait(SECONDS)
        yield from said(call)

    brain.script = script
    task = tell(server, user, "My dog is Rex.", "far")
    assert "The user's dog is called Rex." in shown(brain)
    assert task["metadata"]["memory"]["update"] == "pending"
    arrive.set()
    caller = Caller(server, "far")
    eventually(partial(is_stored, caller, task["id"]), "the note is stored")


def test_what_a_killed_turn_had_saved_is_there_once(tmp_path: Path, serve: Serve) -> None:
    """A note is committed with its step: after kill -9 the turn goes on without saving it again, and the memory has it."""
    (tmp_path / "memories.py").write_text(MEMORIES, encoding="utf-8")
    with Brain().serving(tmp_path) as brain:

        def script(call: Call) -> Iterable[Line]:
            if call.what == "remember":
                return brain.hang() if call.number == 1 else [{}]
            if call.body["step"] == 1:
                return use("add_memory", text="The user's dog is called Rex.")
            return brain.hang() if call.number == 2 else say("Noted.")

        brain.script = script
        with serve(tmp_path, CONFIG) as server:
            task_id = Caller(server, "far").send("My dog is Rex.", wait=False, messageId="m1")["id"]
            brain.wait_for("ask", 2)
            brain.wait_for("remember", 1)  # it does not wait for the turn's end
            kill(server)
        with serve(tmp_path, CONFIG) as server:
            caller = Caller(server, "far")
            brain.wait_for("remember", 2)
            task = caller.ended(task_id)
            eventually(partial(is_stored, caller, task_id), "the note is stored")
            assert [call.body["step"] for call in brain.of("ask")] == [1, 2, 2]
            assert [words for role, words in brain.of("ask")[-1].body["prompt"] if role == "tool"] == ["Saved."]
        assert [call.body for call in brain.of("remember")] == [
            {"turn": f"{task['id']}/m1/tool/1/0", "said": ["The user's dog is called Rex."]}
        ] * 2


def test_a_model_that_calls_no_tools_is_refused_for_tools(tmp_path: Path) -> None:
    """By the key and the line of the mode, before anything is served."""
    config = parse_config(
        f"database: sqlite:////{tmp_path.as_posix().lstrip('/')}/x.db\n"
        "agents:\n  a:\n    model: local/smollm2-135m\n    memory_mode: tools\n"
    )
    with pytest.raises(InvalidConfig) as raised:
        build(config)
    assert str(raised.value) == (
        "line 5: agents.a.memory_mode: the model local/smollm2-135m calls no tools, so it would never use its memory: "
        'set memory_mode to "auto"'
    )
