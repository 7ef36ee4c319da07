"""A task in which the agent asks back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue_agents import Agent, NeedInput
from retinue_agents.testing import ScriptedModel
from retinue_memory import InvocationContext, ToolCall, open_memory

from .brain import REFUSE, SECONDS, Brain, Call, Line, eventually, text
from .conftest import Serve
from .inprocess import ask, request, running
from .test_recovery import Caller, kill

ASKS = """
from retinue_agents import NeedInput, tool


@tool
def book(day: str = "") -> str:
    '''Book a table.'''
    raise NeedInput("For how many?")
"""
CONFIG = """\
server: {grace: 0.3}
memory:
  remote: {backend: "thinking:Remote"}
agents:
  waiter: {default: true, model: "thinking:Model", tools: ["asks:book", "thinking:pay"], memory: remote}
"""
FIRST = "Book a table at Luigi's on Friday."


def book(day: str) -> str:
    """Book a table."""
    raise NeedInput("For how many?")


async def test_what_was_asked_back_is_remembered_when_the_task_ends(tmp_path: Path) -> None:
    """Not with the question; with the answer, and both of the user's messages then."""
    memory = open_memory({"backend": "native", "database": f"sqlite:///{tmp_path}/memory.db", "embedder": False})
    model = ScriptedModel([ToolCall("1", "book", {"day": "Friday"}), "A table for four on Friday it is."])
    agent = Agent(model, name="waiter", memory=memory, tools=[book])
    ctx = InvocationContext("s", user_id="alice")
    async with running(tmp_path, {"waiter": agent}) as here:
        client = await here.client()
        asked = await ask(client, request("Book a table at Luigi's on Friday.", {"user_id": "alice"}))
        assert asked.status.message.parts[0].text == "For how many?"
        assert await memory.retrieve("table Luigi's Friday", ctx=ctx) == []
        done = await ask(client, request("We are four people.", {"user_id": "alice"}, task_id=asked.id))
        assert done.artifacts[0].parts[0].text == "A table for four on Friday it is."
        await agent.settle()
        found = {
            message.content for message in await memory.retrieve("table Luigi's Friday four people", ctx=ctx, top_k=5)
        }
        assert {"Book a table at Luigi's on Friday.", "We are four people."} <= found
    await memory.aclose()


def noted(call: Call) -> Iterable[Line]:
    return text("noted") if call.what == "ask" else [{}]


class Waiter(Brain):
    """Asks back at what begins with "Book", and answers the rest; `does` is what it does with one of these words instead."""

    def __init__(self) -> None:
        super().__init__()
        self.does: dict[str, Callable[[Call], Iterable[Line]]] = {}
        self.script = self.say

    def say(self, call: Call) -> Iterable[Line]:
        if call.what != "ask":
            return self.does.get(call.what, noted)(call)
        said: str = [content for role, content in call.body["prompt"] if role == "user"][-1]
        if said.startswith("Book"):
            return [{"tool": "book"}]
        return self.does.get(said, noted)(call)

    @property
    def remembered(self) -> list[list[str]]:
        return [call.body["said"] for call in self.of("remember")]


@pytest.fixture
def brain(tmp_path: Path) -> Iterator[Waiter]:
    (tmp_path / "asks.py").write_text(ASKS, encoding="utf-8")
    waiter = Waiter()
    with waiter.serving(tmp_path):
        yield waiter


def asked(caller: Caller, **fields: Any) -> str:
    """The id of a task that waits for how many."""
    task = caller.send(FIRST, **fields)
    assert task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED", task
    return str(task["id"])


def arrived(caller: Caller, brain: Waiter, task_id: str, *said: list[str]) -> None:
    """Just these memory writes come, in this order; the task says so."""
    caller.ended(task_id, caller.task(task_id)["status"]["state"])
    eventually(lambda: caller.task(task_id)["metadata"]["memory"]["update"] == "stored", "it is stored")
    assert brain.remembered == list(said)


def test_what_a_canceled_task_was_told_is_remembered(tmp_path: Path, serve: Serve, brain: Waiter) -> None:
    """A task that waits for an answer and is canceled ends: what the user said in it is written then, once."""
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        task_id = asked(caller)
        assert brain.remembered == []
        assert caller.call("CancelTask", id=task_id)["status"]["state"] == "TASK_STATE_CANCELED"
        arrived(caller, brain, task_id, [FIRST])


def test_it_is_owed_across_a_crash(tmp_path: Path, serve: Serve, brain: Waiter) -> None:
    """The write is committed with the cancel: a process that dies on it makes it at the next start."""
    arrive = threading.Event()

    def remember(call: Call) -> Iterator[Line]:
        if not arrive.is_set():
            yield REFUSE
        yield {}

    brain.does["remember"] = remember
    with serve(tmp_path, CONFIG) as server:
        task_id = asked(Caller(server, "waiter"))
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        canceled = Caller(server, "waiter").call("CancelTask", id=task_id)
        assert canceled["status"]["state"] == "TASK_STATE_CANCELED"
        kill(server)
    before = len(brain.remembered)
    arrive.set()
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        eventually(lambda: caller.task(task_id)["metadata"]["memory"]["update"] == "stored", "it is stored")
    assert brain.remembered[before:] == [[FIRST]]


def test_what_an_answer_that_is_not_given_leaves(tmp_path: Path, serve: Serve, brain: Waiter) -> None:
    """A task whose answer is stopped, fails or cannot be known still ends: what led to the question is remembered, once."""
    brain.does["four"] = lambda call: brain.hang()
    brain.does["five"] = lambda call: [{"refuse": True}]
    brain.does["six"] = lambda call: [{"tool": "pay"}]
    brain.does["pay"] = lambda call: brain.hang()
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        stopped, failed, unknown = asked(caller), asked(caller), asked(caller)
        caller.send("four", taskId=stopped, wait=False)
        brain.wait_for("ask", 4)
        assert caller.call("CancelTask", id=stopped)["status"]["state"] == "TASK_STATE_CANCELED"
        arrived(caller, brain, stopped, [FIRST])
        assert caller.send("five", taskId=failed)["status"]["state"] == "TASK_STATE_FAILED"
        arrived(caller, brain, failed, [FIRST], [FIRST, "five"])
        caller.send("six", taskId=unknown, wait=False)
        brain.wait_for("pay")
        kill(server)
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        caller.ended(unknown, "TASK_STATE_FAILED")
        arrived(caller, brain, unknown, [FIRST], [FIRST, "five"], [FIRST])


def test_what_two_answers_to_one_question_leave(tmp_path: Path, serve: Serve, brain: Waiter) -> None:
    """The first is remembered with what led to the question, the second without it."""
    go_on = threading.Event()

    def wait(call: Call) -> Iterator[Line]:
        go_on.wait(SECONDS)
        yield from text("noted")

    brain.does["four"] = wait
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        task_id = asked(caller)
        caller.send("four", taskId=task_id, wait=False)
        brain.wait_for("ask", 2)
        caller.send("or five", taskId=task_id, wait=False)
        go_on.set()
        caller.ended(task_id)
        arrived(caller, brain, task_id, [FIRST, "four", "noted"], ["or five", "noted"])


@pytest.mark.parametrize("mode", ["off", "read-only"])
@pytest.mark.parametrize("end", ["cancel", "answer"])
def test_what_was_not_to_be_remembered_is_not(tmp_path: Path, serve: Serve, brain: Waiter, mode: str, end: str) -> None:
    """Each message has its own say: neither a cancel nor an answer that is remembered takes with it one that is not to be."""
    with serve(tmp_path, CONFIG) as server:
        caller = Caller(server, "waiter")
        task_id = asked(caller, metadata={"memory": {"mode": mode}})
        if end == "cancel":
            caller.call("CancelTask", id=task_id)
            other = caller.send("Hello.")["id"]
            arrived(caller, brain, other, ["Hello.", "noted"])
        else:
            caller.send("four", taskId=task_id)
            arrived(caller, brain, task_id, ["four", "noted"])
