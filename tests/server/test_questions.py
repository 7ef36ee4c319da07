"""A task in which the agent asks back."""

from __future__ import annotations

from pathlib import Path

from recollect_agents import Agent, NeedInput
from recollect_agents.testing import ScriptedModel
from recollect_memory import InvocationContext, ToolCall, open_memory

from .inprocess import ask, request, running


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
