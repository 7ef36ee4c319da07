"""The embedded model itself, and the shapes of its prompt."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retinue_agents import (
    Agent,
    InvocationContext,
    LocalChat,
    Message,
    State,
    TextDelta,
)
from retinue_agents.models import smollm2
from retinue_memory import Memory, render
from retinue_memory.errors import ConfigError
from retinue_memory.weights import Weight

pytestmark = pytest.mark.usefixtures("weights")
SYSTEM = Message("system", "You are a helpful assistant.")
QUESTION = "What's the capital of my country?"


def user(text: str) -> Message:
    return Message("user", text)


def recalled(*texts: str, name: str = "user") -> list[Message]:
    """The message that an agent adds to the prompt."""
    block = render([Message("system", text, name=name) for text in texts])
    return [block] if block else []


async def answer(*messages: Message, **settings: Any) -> str:
    return "".join([delta.text async for delta in LocalChat().stream([SYSTEM, *messages], **settings)])


class Remembers(Memory):
    """Messages of the user, newest first."""

    def __init__(self) -> None:
        self.said: dict[str | None, list[Message]] = {}

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        said = reversed(self.said.get(kwargs["ctx"].user_id, []))
        return [Message("system", message.content, name=message.role) for message in said][:top_k]

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        self.said.setdefault(kwargs["ctx"].user_id, []).extend(messages)


async def test_it_uses_what_the_user_told_and_nobody_elses() -> None:
    """The README's example: Alice's country is known in her next session, even if she asks twice; Bob's is not."""
    agent = Agent("local/smollm2-135m", system_prompt="You are a helpful assistant.", memory=Remembers())

    async def say(who: str, text: str) -> str:
        return (await agent.run(text, user_id=who)).output

    assert "Italy" in await say("alice", "I am from Italy")
    for _ in range(2):
        assert "Rome" in await say("alice", QUESTION)
    to_bob = await say("bob", QUESTION)
    assert to_bob
    assert "Rome" not in to_bob
    assert "Italy" not in to_bob


@pytest.mark.parametrize(
    ("fact", "question", "expected"),
    [
        ("I am from Italy", "What is the capital of my country?", "Rome"),
        ("I am from Japan", QUESTION, "Tokyo"),
        ("My dog is called Rex", "What's my dog's name?", "Rex"),
        ("My favourite language is Python.", "Which programming language do I like?", "Python"),
        ("I'm allergic to peanuts", "What am I allergic to?", "peanut"),
        ("I moved to Oslo last year", "Where do I live?", "Oslo"),
    ],
)
async def test_a_remembered_fact_answers_a_question(fact: str, question: str, expected: str) -> None:
    """The best memory is used even if questions and the assistant's messages were recalled above it."""
    assert expected in await answer(*recalled(question, fact), user(question))


async def test_what_was_said_in_the_same_conversation_is_used() -> None:
    """Without a memory, earlier messages of the conversation are used; a plain conversation continues unchanged."""
    assert "Rome" in await answer(user("I am from Italy"), Message("assistant", "Thank you."), user(QUESTION))
    assert "Madrid" in await answer(
        user("What is the capital of France?"),
        Message("assistant", "The capital of France is Paris."),
        user("And of Spain?"),
    )


async def test_the_same_conversation_gets_the_same_answer() -> None:
    """Whatever is asked in between."""
    first = await answer(user("How do I boil an egg?"), max_tokens=24)
    await answer(user("How do I boil an egg for my dog?"), max_tokens=8)
    assert await answer(user("How do I boil an egg?"), max_tokens=24) == first


async def test_it_streams_and_leaves_the_event_loop_free() -> None:
    """Deltas are yielded one by one, with usage at the end, while other coroutines keep running."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    await LocalChat().load()
    ticking = asyncio.create_task(tick())
    deltas = [delta async for delta in LocalChat().stream([SYSTEM, user("Tell me a story")], max_tokens=32)]
    ticking.cancel()
    assert len([delta for delta in deltas if delta.text]) > 10
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.output_tokens == 32
    assert deltas[-1].finish == "length"
    assert ticks > 10


async def test_cancelling_stops_the_generation() -> None:
    """The run ends at once, and the next question does not wait for the cancelled generation."""
    begun = asyncio.Event()

    def hear(event: object) -> None:
        if isinstance(event, TextDelta):
            begun.set()

    task = asyncio.create_task(Agent("local/smollm2-135m").run("Tell me a long story", on_step=hear))
    await asyncio.wait_for(begun.wait(), 20)
    task.cancel()
    start = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - start < 0.5
    assert await answer(user("Hi"), max_tokens=1)


async def test_cancelling_stops_the_reading_of_a_long_prompt() -> None:
    """Reading a prompt of several seconds stops between two batches."""
    chat = LocalChat()
    await chat.load()
    task = asyncio.create_task(answer(user("other words " * 250), max_tokens=1))
    await asyncio.sleep(0.05)  # it is being read by now; if not, it is cancelled in the queue, which is as good
    task.cancel()
    start = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await answer(user("Hi"), max_tokens=1)
    assert time.monotonic() - start < 4


async def test_questions_at_the_same_time_are_all_answered() -> None:
    """One after the other, each with its own answer."""
    questions = [(country, recalled(f"I am from {country}")) for country in ("Italy", "Japan", "France")]
    answers = await asyncio.gather(*(answer(*block, user(QUESTION)) for _, block in questions))
    assert [capital in text for capital, text in zip(("Rome", "Tokyo", "Paris"), answers, strict=True)] == [True] * 3


async def test_a_message_longer_than_the_model_reads_is_cut() -> None:
    """It is not refused, even if it has more tokens than its length suggests."""
    assert await answer(user("私はイタリア出身です。" * 700), max_tokens=4)


async def test_a_schema_is_followed() -> None:
    """The embedded model answers a schema with JSON of its shape."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert "city" in json.loads(await answer(user("I am from Italy. Name a city."), schema=schema))


def test_tools_are_ignored_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Once, when the agent is created."""

    def one() -> None: ...
    def two() -> None: ...

    with caplog.at_level(logging.WARNING):
        Agent("local/smollm2-135m", tools=[one, two])
    assert [record.message for record in caplog.records] == [
        "agent agent: the model local/smollm2-135m calls no tools, its tools are ignored"
    ]


def test_settings_are_checked() -> None:
    """A max_tokens outside of the model's window is a ConfigError."""
    for wrong in (0, 100_000):
        with pytest.raises(ConfigError):
            LocalChat(max_tokens=wrong)


def test_nobody_else_can_reach_it(weights: Mapping[Weight, Path]) -> None:
    """In its own process, the loaded model listens on no port, and the process exits cleanly."""
    program = """
import asyncio, socket, os
from retinue_agents import LocalChat
bound = []
asyncio.run(LocalChat().load())
for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
    try:
        with socket.socket(fileno=os.dup(int(fd))) as s:
            if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                bound.append((s.family.name, os.path.exists(s.getsockname()) if s.family.name == "AF_UNIX" else True))
    except OSError:
        pass
print([name for name in bound if name != ("AF_UNIX", False)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


# -- the prompt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shape"),
    [
        ("I am from Italy", "statement"),
        ("Hi! I'm Alice.", "statement"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m from Italy", "statement"),
        ("My dog is called Rex", "statement"),
        ("What's my name?", "unknown"),
        ("where do i live", "unknown"),
        ("How do I boil an egg?", "plain"),
        ("What should I cook tonight?", "plain"),
        ("I would like to know the capital of France", "plain"),
        ("I want you to write a poem", "plain"),
        ("What is the capital of France?", "plain"),
        ("Hello!", "plain"),
        ("Ich komme aus Italien", "plain"),
        ("", "plain"),
    ],
)
def test_the_shape_of_the_prompt_follows_the_message(said: str, shape: str) -> None:
    """A statement about the user, a question about the user and everything else have a shape of prompt each."""
    assert smollm2.shape([user(said)]).shape == shape


def test_facts_are_the_users_own_and_at_most_two() -> None:
    """Questions and the assistant's messages are not facts; a fact that shares a word with the question is the only one."""
    told = ["Where am I from?", "I like tea.", "I am from Italy", "I have a cat"]
    block = [*recalled(*told), *recalled("You told me about Italy", name="assistant")]
    prompt = smollm2.shape([SYSTEM, *block, user(QUESTION)])
    assert prompt.shape == "recall"
    assert prompt.lines[0][1].startswith("You are a helpful assistant. Use the facts")
    assert prompt.lines[-1][1] == f"Earlier I told you:\n- I like tea\n- I am from Italy\n\n{QUESTION}"
    assert "- I have a cat\n\n" in smollm2.shape([*block, user("What is the name of my cat?")]).lines[-1][1]


def test_memories_stay_out_where_they_are_not_asked_for() -> None:
    """The rendered block never reaches this model, and a general question is answered without facts."""
    prompt = smollm2.shape([SYSTEM, *recalled("I am from Italy"), user("How high is Mont Blanc?")])
    assert prompt.lines == (("system", SYSTEM.content), ("user", "How high is Mont Blanc?"))


def test_a_long_conversation_loses_its_oldest_turns() -> None:
    """The system prompt and the last message stay; the rest fits and starts with the user."""
    talk = [message for n in range(200) for message in (user(f"fact number {n}"), Message("assistant", f"noted {n}"))]
    fitted = smollm2.fit(smollm2.shape([SYSTEM, *talk, user("And now?")]), 1000)
    assert fitted.lines[0] == ("system", SYSTEM.content)
    assert fitted.lines[1][0] == "user"
    assert fitted.lines[-2:] == (("assistant", "noted 199"), ("user", "And now?"))
    assert 500 < sum(len(text) for _, text in fitted.lines) <= 1000


def test_a_long_system_prompt_or_memory_leaves_room_for_the_question() -> None:
    """System prompt and memories are cut before the question is."""
    long_system = Message("system", "Be kind. " * 1000)
    fitted = smollm2.fit(smollm2.shape([long_system, user("Tell me about the capital of France. " * 20)]), 2000)
    assert len(fitted.lines[0][1]) == 1000
    assert len(fitted.lines[1][1]) > 700
    folded = smollm2.shape([*recalled("I am from Italy " * 1000), user(QUESTION)])
    assert len(folded.lines[-1][1]) < 400


async def test_an_agent_gives_it_the_conversation() -> None:
    """The history of the state, then the question."""
    agent = Agent("local/smollm2-135m", model_settings={"max_tokens": 30})
    state = State([user("My name is Alice"), Message("assistant", "Hello Alice"), user("What's my name?")])
    assert "Alice" in await agent.ainvoke(state, ctx=InvocationContext("s"))
