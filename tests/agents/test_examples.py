"""Programs in the shape that users of other agent libraries bring along, on the built-in model and memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from recollect_agents import Agent, FinalAnswerEvent, InvocationContext, Message, State
from recollect_agents.testing import EchoModel
from recollect_memory import Memory, MemoryBackend, MemoryEntry, MemoryKind, open_memory

pytestmark = pytest.mark.usefixtures("weights")


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    memory = open_memory({"backend": "native", "database": f"sqlite:///{tmp_path}/memory.db"})
    yield memory
    await memory.aclose()


async def chat(agent: Agent, text: str, *, user_id: str | None = None, session_id: str = "s1") -> str:
    """One session: a state, a context, and the events up to the last."""
    state = State()
    state.add_message(Message(role="user", content=text))
    answer = ""
    async for event in agent.stream(state, ctx=InvocationContext(session_id=session_id, user_id=user_id)):
        if isinstance(event, FinalAnswerEvent):
            answer = event.content
    return answer


async def test_an_agent_with_a_memory_knows_its_user_in_the_next_session(memory: Memory) -> None:
    """Alice's country is known without being told again and without waiting, Bob's is not, though the session is called
    the same; a second question of the same words is not answered from the first.
    """
    agent = Agent(
        name="Assistant",
        llm=Agent("local/smollm2-135m").llm,
        system_prompt="You are a helpful assistant with long-term memory.",
        memory=memory,
    )
    await chat(agent, "I am from Italy", user_id="alice")
    for _ in range(3):
        assert "Rome" in await chat(agent, "What's the capital of my country?", user_id="alice")
    assert "Rome" not in await chat(agent, "What's the capital of my country?", user_id="bob")


async def test_without_a_user_the_session_is_whose_memory_it_is(memory: Memory) -> None:
    agent = Agent("local/smollm2-135m", system_prompt="You are a helpful assistant.", memory=memory)
    await chat(agent, "My dog is called Rex", session_id="one")
    assert "Rex" in await chat(agent, "What's my dog's name?", session_id="one")
    assert "Rex" not in await chat(agent, "What's my dog's name?", session_id="two")


class Minimal(MemoryBackend):
    """The three methods that a backend must have, as coroutines."""

    name = "minimal"

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []

    async def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
        self.log.append(("record", user_msg, assistant_msg))

    async def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
        self.log.append(("recall", query))
        return [MemoryEntry("1", "The user likes tea", MemoryKind.PREFERENCE, 0.9, 1_700_000_000_000_000_000)]

    async def flush(self, session_id: str) -> None:
        self.log.append(("flush",))


async def test_a_backend_of_ones_own_is_registered_as_a_module() -> None:
    """Recall before the model, record and flush after it; the agent may be made before its model is anywhere to be reached."""
    memory = Minimal()
    Agent("ollama::qwen3.5:latest", instructions="Keep it short.", memories=[memory.as_memory_module()])
    agent = Agent(EchoModel(), instructions="Keep it short.", memories=[memory.as_memory_module()])
    result = await agent.run("What do I drink?")
    assert result.output == "What do I drink?"
    assert memory.log == [
        ("recall", "What do I drink?"),
        ("record", "What do I drink?", "What do I drink?"),
        ("flush",),
    ]
