"""Programs written as for other agent libraries. Each is run unchanged, in its own process, and its output is checked.

The model is the embedded one, or one of a fake Ollama; mem0's cloud is a fake too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from retinue_memory.weights import Weight
from tests.memory.mem0_cloud import KEY, Cloud

from .ollama import Ollama, ollama

Weights = Mapping[Weight, Path]
SECONDS = 100


@pytest.fixture
def endpoint() -> Iterator[Ollama]:
    with ollama() as running:
        yield running


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud().running() as running:
        yield running


def run(folder: Path, program: str, **environment: str) -> str:
    """Run the program. Returns its stdout. It must exit with 0 and print no traceback."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# -- a memory as a backend of callbacks -----------------------------------------------------------------------------------

STUB = """
import asyncio

from retinue_agents import Agent
from retinue_memory import MemoryBackend, MemoryEntry


class Stub(MemoryBackend):
    name = "stub"

    async def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
        ...

    async def recall(
        self,
        session_id: str,
        query: str,
        max_entries: int,
    ) -> list[MemoryEntry]:
        ...

    async def flush(self, session_id: str) -> None:
        ...


memory = Stub()

agent = Agent(
    "ollama::qwen3.5:latest",
    instructions="Be kind, and brief.",
    memories=[memory.as_memory_module()],
)
print(asyncio.run(agent.run("How are the tulips?")).output)
"""


@pytest.mark.parametrize("style", ["async def", "def"])
def test_the_smallest_backend_runs(tmp_path: Path, endpoint: Ollama, style: str) -> None:
    """Three methods that do nothing, plain or async, in an agent whose model is called over HTTP."""
    printed = run(tmp_path, STUB.replace("async def", style), OLLAMA_URL=endpoint.url)
    assert endpoint.models == ["qwen3.5:latest"]
    assert "Be kind, and brief." in printed
    assert "How are the tulips?" in printed


BACKEND = """
import asyncio
import time

from retinue_agents import Agent
from retinue_memory import MemoryBackend, MemoryEntry, MemoryKind, MemoryModule


class Ledger(MemoryBackend):
    name = "ledger"

    def __init__(self):
        self.lines = {}
        self.calls = []

    async def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
        self.calls.append("record")
        entry = MemoryEntry(
            key=f"{session_id}:{len(self.lines)}",
            content=user_msg,
            kind=MemoryKind.RECENT_MESSAGE,
            relevance=0.8,
            timestamp_ns=time.time_ns(),
        )
        self.lines.setdefault(session_id, []).append(entry)

    async def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
        self.calls.append("recall")
        return self.lines.get(session_id, [])[-max_entries:]

    async def flush(self, session_id: str) -> None:
        self.calls.append("flush")

    # consolidate


memory = Ledger()
module = memory.as_memory_module()
assert isinstance(module, MemoryModule) and module.name == "ledger"
agent = Agent("ollama::qwen3.5:latest", instructions="Be brief.", memories=[module])


async def talk():
    await agent.run("I grow tulips.", session_id="garden")
    garden = await agent.run("What do I grow?", session_id="garden")
    kitchen = await agent.run("What do I grow?", session_id="kitchen")
    await agent.settle()
    print("tulips" in garden.output, "tulips" in kitchen.output, len(memory.lines))
    print(*memory.calls)


asyncio.run(talk())
"""
CONSOLIDATE = """async def consolidate(self, session_id: str) -> None:
        self.calls.append("consolidate")
        whole = " ".join(entry.content for entry in self.lines[session_id])
        self.lines[session_id] = [MemoryEntry("summary", whole, MemoryKind.SUMMARY, 1.0, time.time_ns())]
"""


@pytest.mark.parametrize("style", ["async def", "def"])
@pytest.mark.parametrize("consolidate", ["", CONSOLIDATE])
def test_a_backend_remembers_by_session(tmp_path: Path, endpoint: Ollama, style: str, consolidate: str) -> None:
    """What it recalls is in the prompt of its session only. Every turn calls recall, record, consolidate if it is defined,
    and flush, whether they are plain or async."""
    program = BACKEND.replace("# consolidate", consolidate)
    head, main = program.split("memory = Ledger()")
    printed = run(tmp_path, f"{head.replace('async def', style)}memory = Ledger(){main}", OLLAMA_URL=endpoint.url)
    turn = ["recall", "record", "consolidate", "flush"] if consolidate else ["recall", "record", "flush"]
    assert printed.splitlines() == ["True False 2", " ".join(turn * 3)]


# -- a memory of two coroutines -------------------------------------------------------------------------------------------

INTERFACE = """
import asyncio

from retinue_agents import Agent, FinalAnswerEvent, State
from retinue_memory import InvocationContext, Memory, Message


class Blank(Memory):
    async def retrieve(
        self, query: str, *, top_k: int = 5, **kwargs
    ) -> list[Message]:
        # nothing matters to it
        ...

    async def update(self, messages: list[Message], **kwargs) -> None:
        # nor does it keep anything
        ...


class PerUser(Memory):
    said = {}

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs) -> list[Message]:
        ctx: InvocationContext = kwargs["ctx"]
        return [Message(role="system", content=text) for text in self.said.get(ctx.user_id, [])[:top_k]]

    async def update(self, messages: list[Message], **kwargs) -> None:
        ctx: InvocationContext = kwargs["ctx"]
        self.said.setdefault(ctx.user_id, []).extend(message.content for message in messages if message.role == "user")


async def main():
    for memory in (None, Blank(), PerUser()):
        agent = Agent(name="Gardener", model="ollama::qwen3.5:latest", system_prompt="Be brief.", memory=memory)
        for user, text in (("ada", "My roses are yellow"), ("ada", "What colour?"), ("ben", "What colour?")):
            ctx = InvocationContext(session_id="s1", user_id=user)
            state = State()
            state.add_message(Message(role="user", content=text))
            async for event in agent.stream(state, ctx=ctx):
                if isinstance(event, FinalAnswerEvent):
                    print(type(memory).__name__, user, "yellow" in event.content)


asyncio.run(main())
"""


def test_a_memory_of_ones_own_is_asked_and_told(tmp_path: Path, endpoint: Ollama) -> None:
    """`retrieve` and `update` get the context; what is retrieved is in the prompt of that user. A memory that does nothing,
    and none at all, do not change the answer."""
    printed = run(tmp_path, INTERFACE, OLLAMA_URL=endpoint.url).splitlines()
    expected = {"NoneType": (True, False, False), "Blank": (True, False, False), "PerUser": (True, True, False)}
    assert printed == [
        f"{memory} {user} {seen}"
        for memory, found in expected.items()
        for user, seen in zip(("ada", "ada", "ben"), found, strict=True)
    ]


CONSTRUCTED = """
from retinue_agents import Agent, LiteLLMChat
from retinue_memory import Mem0Memory

agent = Agent(
    name="Gardener",
    llm=LiteLLMChat("gpt-5-mini"),
    system_prompt="You know all about gardens.",
    memory=Mem0Memory(),           # the key is that of the environment
)
print(agent.name, agent.llm.name)
"""


def test_an_agent_is_made_before_anything_is_reached(tmp_path: Path) -> None:
    """With a model and a memory of unreachable services: neither is called before the first turn."""
    assert run(tmp_path, CONSTRUCTED, MEM0_API_KEY="m0-unused") == "Gardener gpt-5-mini\n"


FULL = """
import asyncio
import os

from retinue_agents import Agent, FinalAnswerEvent, InvocationContext, LiteLLMChat, Message, State
from retinue_memory import Mem0Memory, open_memory

agent = Agent(
    name="Gardener",
    llm=LLM,
    system_prompt="You are a helpful assistant with long-term memory.",
    memory=MEMORY,
)


async def chat(user_id: str, text: str) -> str:
    ctx = InvocationContext(session_id="s1", user_id=user_id)
    state = State()
    state.add_message(Message(role="user", content=text))
    result = ""
    async for event in agent.stream(state, ctx=ctx):
        if isinstance(event, FinalAnswerEvent):
            result = event.content
    return result


async def main():
    # the first session: the agent is told
    await chat("ada", "I am from Italy")

    # the second: it was told, and nobody waited
    reply = await chat("ada", "What's the capital of my country?")
    print(reply)
    print(await chat("ben", "What's the capital of my country?"))

asyncio.run(main())
"""
NATIVE = 'open_memory({"backend": "native", "database": "sqlite:///memory.db"})'
IN_THE_CLOUD = 'Mem0Memory(host=os.environ["CLOUD"])'
SMALL = 'Agent("local/smollm2-135m").llm'
OF_OLLAMA = 'LiteLLMChat("ollama_chat/qwen3.5:latest")'


def test_a_whole_program_on_what_is_built_in(tmp_path: Path, weights: Weights) -> None:
    """The country is known in the user's next session; nothing is known of another user."""
    ada, ben = run(tmp_path, FULL.replace("LLM,", f"{SMALL},").replace("MEMORY", NATIVE)).splitlines()
    assert "Rome" in ada
    assert "Rome" not in ben
    assert "Italy" not in ben


def test_a_whole_program_on_mem0s_cloud(tmp_path: Path, endpoint: Ollama, cloud: Cloud) -> None:
    """`Mem0Memory()` with the key from the environment: even if the cloud has indexed nothing yet, the next session knows
    what was said in the first. The model is served through LiteLLM."""
    cloud.indexing.clear()
    program = FULL.replace("LLM,", f"{OF_OLLAMA},").replace("MEMORY", IN_THE_CLOUD)
    environment = {"MEM0_API_KEY": KEY, "CLOUD": cloud.url, "OLLAMA_URL": endpoint.url}
    assert "I am from Italy" in run(tmp_path, program, **environment)
    assert cloud.count("add") >= 1
    asked = [prompt for prompt in endpoint.prompts if "capital" in prompt]
    assert ["I am from Italy" in prompt for prompt in asked] == [True, False]
    cloud.indexing.set()
    later = program.replace("I am from Italy", "Hello again")  # another process; what it knows is in the cloud
    assert "I am from Italy" in run(tmp_path, later, **environment)
    assert {call.authorization for call in cloud.calls} == {f"Token {KEY}"}


SESSIONS = """
import asyncio

from retinue_agents import Agent, InvocationContext
from retinue_memory import open_memory


async def main():
    memory = open_memory({"backend": "native", "database": "sqlite:///memory.db"})
    agent = Agent("ollama::qwen3.5:latest", memory=memory)
    await agent.run("My dog is called Rex", ctx=InvocationContext(session_id="one"))
    for session in ("one", "two"):
        result = await agent.run("What is my dog called?", ctx=InvocationContext(session_id=session))
        print(session, "Rex" in result.output)
    await memory.aclose()

asyncio.run(main())
"""


def test_without_a_user_the_session_is_whose_memory_it_is(tmp_path: Path, endpoint: Ollama) -> None:
    """The same session remembers; another one does not."""
    assert run(tmp_path, SESSIONS, OLLAMA_URL=endpoint.url) == "one True\ntwo False\n"


# -- names ----------------------------------------------------------------------------------------------------------------

NAMES = """
from retinue_agents import Agent, FinalAnswerEvent, InvocationContext, LiteLLMChat, Message, State
from retinue_memory import (
    InvocationContext, Mem0Local, Mem0Memory, Mem0Server, Memory, MemoryBackend, MemoryEntry, MemoryKind, MemoryModule, Message,
)
from retinue_server import A2AExecutor, TaskClient, create_app
import retinue_agents, retinue_memory, retinue_server

for package in (retinue_memory, retinue_agents, retinue_server):
    for name in package.__all__:
        assert getattr(package, name) is not None, name
assert [kind.value for kind in MemoryKind] == ["RecentMessage", "Summary", "Entity", "Preference"]
assert retinue_agents.Message is retinue_memory.Message
assert retinue_agents.InvocationContext is retinue_memory.InvocationContext
print("all there")
"""


def test_every_name_can_be_imported(tmp_path: Path) -> None:
    """Every public name is importable from one of the three packages."""
    assert run(tmp_path, NAMES) == "all there\n"
