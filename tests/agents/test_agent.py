from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from retinue_agents import (
    Agent,
    FinalAnswer,
    FinalAnswerEvent,
    InputRequired,
    InvocationContext,
    Journal,
    MemoryFailed,
    MemoryRetrieved,
    MemoryUpdated,
    Message,
    ModelDelta,
    NeedInput,
    State,
    StepLimitReached,
    TextDelta,
    ToolCall,
    ToolCalled,
    ToolContext,
    ToolResult,
    ToolReturned,
    tool,
)
from retinue_agents.testing import EchoModel, ScriptedModel
from retinue_agents.tools import Retry
from retinue_memory import (
    ChatModel,
    Memory,
    MemoryBackend,
    MemoryEntry,
    MemoryKind,
    ToolSpec,
)
from retinue_memory.errors import ConfigError, MemoryBackendError, ModelError

ALICE = InvocationContext("s1", "alice", turn_id="t1")


class ListMemory(Memory):
    """Keeps all messages by user, in order, and returns all of them."""

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.kept: dict[str, list[Message]] = {}
        self.updates: list[tuple[list[Message], dict[str, Any]]] = []
        self.may_write = asyncio.Event()
        self.may_write.set()

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        found = self.kept.get(kwargs["ctx"].user_id or kwargs["ctx"].session_id, [])
        return [Message("system", message.content, name=message.role) for message in found[-top_k:]]

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await self.may_write.wait()
        self.updates.append((messages, kwargs))
        self.kept.setdefault(kwargs["ctx"].user_id or kwargs["ctx"].session_id, []).extend(messages)


class BrokenMemory(Memory):
    name = "broken"

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        raise MemoryBackendError("the disk is gone")

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        raise ZeroDivisionError("a bug")


class DictJournal(Journal):
    """A journal that records in a dictionary."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.repeatable: dict[str, bool] = {}

    async def step(
        self, key: str, call: Callable[[], Awaitable[dict[str, Any]]], *, repeatable: bool = True
    ) -> dict[str, Any]:
        self.repeatable[key] = repeatable
        if key not in self.results:
            self.results[key] = await call()
        return self.results[key]


def saying(text: str) -> State:
    return State([Message("user", text, id="m1")])


async def events_of(agent: Agent, text: str = "hello", **kwargs: Any) -> list[Any]:
    kwargs.setdefault("ctx", ALICE)
    return [event async for event in agent.stream(saying(text), **kwargs)]


async def test_an_answer_is_streamed_and_then_final() -> None:
    """Text deltas are yielded as the model streams them, and add up to the final answer."""
    assert await events_of(Agent(EchoModel(chunks=2)), "hello!") == [
        TextDelta("hel"),
        TextDelta("lo!"),
        FinalAnswer("hello!", (await events_of(Agent(EchoModel()), "hello!"))[-1].usage),
    ]


async def test_without_a_memory_nothing_about_memory_runs() -> None:
    """memory=None and memory_mode="off" yield no memory event and leave the memory untouched."""
    memory = ListMemory()
    for agent in (Agent(EchoModel()), Agent(EchoModel(), memory=memory, memory_mode="off")):
        assert {event.kind for event in await events_of(agent)} == {"text_delta", "final_answer"}
    assert memory.updates == []


async def test_the_prompt_is_system_memories_history() -> None:
    """The model sees the system prompt with the instructions, one block of memories as data, then the conversation."""
    memory = ListMemory()
    memory.kept["alice"] = [Message("user", "I am from Italy")]
    model = ScriptedModel(["Rome"])
    agent = Agent(model, system_prompt="Be kind.", instructions="Be short.", memory=memory)
    history = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "The capital of my country?")]
    events = [event async for event in agent.stream(State(list(history)), ctx=ALICE)]
    system, block, *rest = model.requests[0].messages
    assert (system.role, system.content) == ("system", "Be kind.\n\nBe short.")
    assert block.role == "system"
    assert "I am from Italy" in block.content
    assert [memory.content for memory in block.metadata["memories"]] == ["I am from Italy"]
    assert rest == history
    assert [event.kind for event in events] == ["memory_retrieved", "text_delta", "final_answer", "memory_updated"]


async def test_the_turn_is_remembered_without_what_was_recalled() -> None:
    """The memory gets the user's message and the answer, with the same ids if the turn is run again."""
    memory = ListMemory()
    memory.kept["alice"] = [Message("user", "I am from Italy")]
    for _ in range(2):
        await events_of(Agent(ScriptedModel(["Rome"]), memory=memory), "The capital?")
    (first, kwargs), (second, _) = memory.updates
    assert [(m.role, m.content, m.id) for m in first] == [
        ("user", "The capital?", "m1"),
        ("assistant", "Rome", "t1/answer"),
    ]
    assert [m.id for m in second] == [m.id for m in first]
    assert kwargs == {"ctx": ALICE}


async def test_the_answer_never_waits_for_the_memory() -> None:
    """FinalAnswer is yielded during the write; a consumer that stops there loses nothing, and `settle` waits for it."""
    memory = ListMemory()
    memory.may_write.clear()
    agent = Agent(EchoModel(), memory=memory)
    async for event in agent.stream(saying("I am from Italy"), ctx=ALICE):
        if isinstance(event, FinalAnswerEvent):
            break
    assert memory.updates == []
    memory.may_write.set()
    await agent.settle()
    assert [m.content for m in memory.kept["alice"]] == ["I am from Italy", "I am from Italy"]


async def test_what_was_said_is_found_by_the_next_turn() -> None:
    """Even if the consumer of the last turn stopped at the answer and its write is still in flight."""
    memory = ListMemory()
    memory.may_write.clear()
    agent = Agent(EchoModel(), memory=memory)
    async for event in agent.stream(saying("I am from Italy"), ctx=ALICE):
        if isinstance(event, FinalAnswer):
            break
    asyncio.get_running_loop().call_later(0.02, memory.may_write.set)
    retrieved = (await events_of(agent, "and now?"))[0]
    assert isinstance(retrieved, MemoryRetrieved)
    assert "I am from Italy" in [m.content for m in retrieved.messages]


async def test_a_failing_memory_hurts_neither_the_answer_nor_another_memory() -> None:
    """Both failures are events that name the memory; the other memory is read and written."""
    good = ListMemory()
    events = await events_of(Agent(EchoModel(), memories=[BrokenMemory(), good]))
    assert [event for event in events if isinstance(event, MemoryFailed)] == [
        MemoryFailed("retrieve", "broken", "the disk is gone"),
        MemoryFailed("update", "broken", "ZeroDivisionError: a bug"),
    ]
    assert any(isinstance(event, FinalAnswer) for event in events)
    assert not any(isinstance(event, MemoryUpdated) for event in events)
    assert len(good.updates) == 1


async def test_a_memory_that_hangs_ends_in_a_failure() -> None:
    """A write that does not end is cancelled after its timeout and reported."""
    memory = ListMemory()
    memory.may_write.clear()
    events = await events_of(Agent(EchoModel(), memory=memory, write_timeout=0.02))
    assert events[-1] == MemoryFailed("update", "list", "no answer within 0.02 s")


async def test_the_users_message_is_kept_when_the_model_fails() -> None:
    """The stream raises ModelError after the model's text, when the user's message has been written."""
    memory = ListMemory()
    seen: list[Any] = []
    agent = Agent(ScriptedModel([["Ro", ModelError("dropped", retryable=True)]]), memory=memory)

    async def listen() -> None:
        async for event in agent.stream(saying("hello"), ctx=ALICE):
            seen.append(event)  # noqa: PERF401 - kept although the stream raises

    with pytest.raises(ModelError, match="dropped") as raised:
        await listen()
    assert raised.value.retryable
    assert TextDelta("Ro") in seen
    assert [[m.content for m in messages] for messages, _ in memory.updates] == [["hello"]]


async def test_a_model_that_breaks_its_contract_is_a_model_error() -> None:
    """Any other exception of a model becomes a ModelError."""

    def wrong(messages: Sequence[Message]) -> str:
        raise KeyError("x")

    with pytest.raises(ModelError, match="KeyError"):
        await events_of(Agent(ScriptedModel([wrong])))


async def test_an_empty_message_is_neither_looked_up_nor_remembered() -> None:
    """A message of blanks starts no recall and leaves no memory."""
    memory = ListMemory()
    kinds = [event.kind for event in await events_of(Agent(ScriptedModel(["Yes?"]), memory=memory), "  \n")]
    assert kinds == ["text_delta", "final_answer"]
    assert memory.updates == []


async def test_tools_run_in_parallel_and_their_results_go_to_the_model() -> None:
    """Two calls of one step run at once; the model gets both results in the order of its calls."""
    both = asyncio.Barrier(2)

    async def capital(country: str) -> str:
        await asyncio.wait_for(both.wait(), 5)
        return {"Italy": "Rome", "Spain": "Madrid"}[country]

    calls = [ToolCall("c1", "capital", {"country": "Italy"}), ToolCall("c2", "capital", {"country": "Spain"})]
    model = ScriptedModel([["Let me see.", *calls], "Rome and Madrid."])
    state = saying("capitals?")
    events = [event async for event in Agent(model, tools=[capital]).stream(state)]
    assert [event for event in events if not isinstance(event, FinalAnswer)] == [
        TextDelta("Let me see."),
        ToolCalled(calls[0]),
        ToolCalled(calls[1]),
        ToolReturned(calls[0], "Rome"),
        ToolReturned(calls[1], "Madrid"),
        TextDelta("Rome and Madrid."),
    ]
    assert [spec.name for spec in model.requests[0].tools] == ["capital"]
    asked, first, second = model.requests[1].messages[-3:]
    assert (asked.role, asked.content, asked.tool_calls) == ("assistant", "Let me see.", tuple(calls))
    assert [(m.role, m.content, m.tool_call_id) for m in (first, second)] == [
        ("tool", "Rome", "c1"),
        ("tool", "Madrid", "c2"),
    ]
    assert [m.role for m in state.messages] == ["user", "assistant", "tool", "tool", "assistant"]


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model() -> None:
    """Invalid arguments, an exception and an unknown tool are results that the model sees."""

    def divide(a: float, b: float) -> float:
        return a / b

    model = ScriptedModel(
        [
            [
                ToolCall("1", "divide", {"a": 1}),
                ToolCall("2", "divide", {"a": 1, "b": 0}),
                ToolCall("3", "multiply", {}),
            ],
            "Sorry.",
        ]
    )
    events = await events_of(Agent(model, tools=[divide]))
    returned = [event for event in events if isinstance(event, ToolReturned)]
    assert all(event.failed for event in returned)
    assert "b: Field required" in returned[0].content
    assert "ZeroDivisionError" in returned[1].content
    assert "no tool named 'multiply'; there are: divide" in returned[2].content
    assert isinstance(events[-1], FinalAnswer)


async def test_a_tool_of_another_kind_needs_only_the_contract() -> None:
    """An object with `spec`, `retry` and `__call__` is offered, called and replayed like a function, effects included."""

    class Remote:
        spec = ToolSpec("lookup", "Look something up.", {"type": "object"})
        retry: Retry = "never"

        async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
            return ToolResult(f"{arguments['of']} for {context.ctx.user_id}", effects={"updated": True})

    remote, journal = Remote(), DictJournal()
    model = ScriptedModel([ToolCall("1", "lookup", {"of": "x"}), "Done."])
    agent = Agent(model, tools=[remote])
    for _ in range(2):
        events = await events_of(agent, journal=journal)
        assert [event for event in events if event.kind in ("memory_updated", "tool_returned")] == [
            MemoryUpdated(),
            ToolReturned(ToolCall("1", "lookup", {"of": "x"}), "x for alice"),
        ]
    assert agent.tools == (remote,)
    assert model.requests[0].tools == (remote.spec,)
    assert journal.repeatable["tool/1/0"] is False


async def test_the_step_limit_ends_the_turn_and_keeps_the_users_message() -> None:
    """After the last LLM step, StepLimitReached replaces the answer, and the tools of that step do not run."""
    ran: list[int] = []

    def again(n: int) -> int:
        ran.append(n)
        return n

    memory = ListMemory()
    model = ScriptedModel([ToolCall(str(n), "again", {"n": n}) for n in range(9)])
    events = await events_of(Agent(model, tools=[again], memory=memory), max_steps=3)
    assert StepLimitReached(3) in events
    assert not any(isinstance(event, FinalAnswer) for event in events)
    assert ran == [0, 1]
    assert [[m.content for m in messages] for messages, _ in memory.updates] == [["hello"]]


async def test_a_tool_that_needs_input_ends_the_turn_with_its_question() -> None:
    """InputRequired is the last event; nothing is written until the task ends; the question is part of the conversation."""

    def book(day: str = "") -> str:
        raise NeedInput("Which day?")

    memory = ListMemory()
    agent = Agent(ScriptedModel([ToolCall("1", "book", {})]), tools=[book], memory=memory)
    state = saying("Book a table")
    events = [event async for event in agent.stream(state, ctx=ALICE)]
    assert events[-1] == InputRequired("Which day?")
    assert memory.updates == []
    assert [(m.role, m.content) for m in state.messages] == [("user", "Book a table"), ("assistant", "Which day?")]


async def test_a_turn_that_starts_again_repeats_no_recorded_step() -> None:
    """With the same journal neither model nor tool runs again, and the events are the same, with the text in one piece."""
    runs: list[str] = []

    @tool(retry="never")
    def pay(amount: int, context: ToolContext) -> str:
        runs.append(context.key)
        return f"paid {amount}"

    call = ToolCall("c", "pay", {"amount": 5})
    model = ScriptedModel([call, ["Do", "ne."]])
    journal = DictJournal()
    first = await events_of(Agent(model, tools=[pay]), journal=journal)
    second = await events_of(Agent(model, tools=[pay]), journal=journal)
    assert runs == ["t1/tool/1/0"]
    assert len(model.requests) == 2
    assert journal.repeatable == {"llm/1": True, "tool/1/0": False, "llm/2": True}
    assert [event for event in second if isinstance(event, TextDelta)] == [TextDelta("Done.")]
    assert [e for e in first if not isinstance(e, TextDelta)] == [e for e in second if not isinstance(e, TextDelta)]


async def test_text_is_heard_while_the_step_is_still_running() -> None:
    """A delta reaches the consumer before the model has produced the next."""
    go_on = asyncio.Event()

    class Slow(ChatModel):
        async def stream(
            self,
            messages: Sequence[Message],
            *,
            tools: Sequence[ToolSpec] = (),
            schema: Mapping[str, Any] | None = None,
            **settings: Any,
        ) -> AsyncIterator[ModelDelta]:
            yield ModelDelta("one ")
            await asyncio.wait_for(go_on.wait(), 5)
            yield ModelDelta("two")

    heard: list[str] = []
    async for event in Agent(Slow()).stream(saying("count")):
        if isinstance(event, TextDelta):
            heard.append(event.text)
            go_on.set()
    assert heard == ["one ", "two"]


@pytest.mark.parametrize("where", ["model", "tool", "memory"])
async def test_a_run_is_cancelled_at_once(where: str) -> None:
    """Whatever it awaits, the run ends with CancelledError, and what it awaited is cancelled too."""
    reached, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> str:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    class Hanging(ListMemory):
        async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
            await hang()
            return []

    class HangingModel(EchoModel):
        async def stream(self, messages: Sequence[Message], **kwargs: Any) -> AsyncIterator[ModelDelta]:
            await hang()
            yield ModelDelta("never")

    model: ChatModel = HangingModel() if where == "model" else ScriptedModel([ToolCall("1", "hang", {})])
    agent = Agent(model, tools=[hang], memory=Hanging() if where == "memory" else None, memory_timeout=60)
    task = asyncio.create_task(agent.run("hello"))
    async with asyncio.timeout(5):
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()


async def test_closing_the_stream_early_stops_the_model() -> None:
    """A consumer that closes the stream in the middle of the answer leaves no task running."""
    agent = Agent(EchoModel(delay=0.01, chunks=1000))
    stream = agent.stream(saying("x" * 1000))
    assert await anext(stream) == TextDelta("x")
    await stream.aclose()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_stream_that_was_closed_before_it_began_runs_nothing() -> None:
    """Iterating over it afterwards yields nothing, and the model is not asked."""
    model = ScriptedModel(["never"])
    stream = Agent(model).stream(saying("hello"))
    await stream.aclose()
    assert [event async for event in stream] == []
    assert model.requests == []


async def test_dropping_the_stream_stops_the_turn() -> None:
    """A consumer that leaves the loop at a tool call, without closing the stream, has neither the tool nor the model run on."""
    used: list[str] = []

    def act() -> str:
        used.append("act")
        return "done"

    model = ScriptedModel([ToolCall("1", "act", {}), "It is done."])
    async for event in Agent(model, tools=[act]).stream(saying("Act!")):
        if isinstance(event, ToolCalled):
            break
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert len(running) == 1
    async with asyncio.timeout(5):
        await asyncio.wait(running)
    assert used == []
    assert len(model.requests) == 1


async def test_events_can_be_awaited_instead_of_iterated() -> None:
    """`run` of a stream emits the events that iterating yields, in the calling task, and returns the write in flight."""
    memory = ListMemory()
    agent = Agent(ScriptedModel([["Ro", "me"]]), memory=memory)
    heard: list[Any] = []

    async def hear(event: Any) -> None:
        heard.append((event.kind, asyncio.current_task()))

    stream = agent.stream(saying("hello"), ctx=ALICE)
    write = await stream.run(hear)
    assert write is not None
    assert heard == [
        (kind, asyncio.current_task()) for kind in ("memory_retrieved", "text_delta", "text_delta", "final_answer")
    ]
    assert [event.kind for event in await stream.outcome(write)] == ["memory_updated"]
    assert len(memory.kept["alice"]) == 2


async def test_an_error_of_the_listener_is_not_the_models() -> None:
    """What `emit` raises while the model streams ends the turn as it is, and closes the model's stream."""
    closed = asyncio.Event()

    class Closing(EchoModel):
        async def stream(self, messages: Sequence[Message], **kwargs: Any) -> AsyncIterator[ModelDelta]:
            try:
                yield ModelDelta("one")
                yield ModelDelta("two")
            finally:
                closed.set()

    async def refuse(event: Any) -> None:
        if isinstance(event, TextDelta):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Agent(Closing()).stream(saying("hello")).run(refuse)
    async with asyncio.timeout(5):
        await closed.wait()


async def test_run_returns_the_output_and_the_steps() -> None:
    """`run` returns the answer and every event except the deltas; `on_step` gets all of them as they happen."""
    memory = ListMemory()
    agent = Agent(EchoModel(), memory=memory)
    heard: list[Any] = []
    result = await agent.run("hello", session_id="s", user_id="alice", on_step=heard.append)
    assert result.output == "hello"
    assert [event.kind for event in result.steps] == ["memory_retrieved", "final_answer", "memory_updated"]
    assert [event.kind for event in heard] == ["memory_retrieved", "text_delta", "final_answer", "memory_updated"]
    assert len(memory.kept["alice"]) == 2
    assert await agent.ainvoke("again") == "again"
    with pytest.raises(ValueError, match="either ctx"):
        await agent.run("hello", ctx=ALICE, user_id="alice")


def test_run_sync_needs_no_event_loop() -> None:
    """`run_sync` answers in a program without an event loop."""
    assert Agent("echo").run_sync("hello", user_id="alice").output == "hello"


async def test_tools_are_added_by_call_and_by_decorator() -> None:
    """`add_tool` and both forms of `tool_plain` offer a function to the model."""
    agent = Agent(ScriptedModel([ToolCall("1", "twice", {"n": 4}), "8"]))

    @agent.tool_plain
    def twice(n: int) -> int:
        """Double a number."""
        return 2 * n

    @agent.tool_plain(name="three_times", retry="never")
    def thrice(n: int) -> int:
        return 3 * n

    assert (twice(2), thrice(2)) == (4, 6)
    assert [(t.spec.name, t.spec.description, t.retry) for t in agent.tools] == [
        ("twice", "Double a number.", "always"),
        ("three_times", "", "never"),
    ]
    assert (await agent.run("double 4")).output == "8"
    with pytest.raises(ConfigError, match="two tools named 'twice'"):
        agent.add_tool(twice)


async def test_a_schema_reaches_the_model() -> None:
    """`response_schema` is a JSON Schema or a pydantic model."""
    import pydantic

    class City(pydantic.BaseModel):
        city: str

    model = ScriptedModel(['{"city": "Rome"}'] * 2)
    for schema in (City, City.model_json_schema()):
        await events_of(Agent(model), response_schema=schema)
    assert [request.schema for request in model.requests] == [City.model_json_schema()] * 2


def test_an_agent_needs_exactly_one_model() -> None:
    """Neither `model` nor `llm`, or both of them, is a ConfigError."""
    for wrong in ({}, {"model": "echo", "llm": EchoModel()}):
        with pytest.raises(ConfigError, match="one model"):
            Agent(**wrong)  # type: ignore[arg-type]


async def test_a_backend_in_plain_methods_is_a_memory() -> None:
    """Synchronous methods, registered with `as_memory_module()`, in an agent with instructions."""
    turns: list[tuple[str, str, str]] = []

    class MyMemory(MemoryBackend):
        name = "my_memory"

        def record(self, session_id: str, user_msg: str, assistant_msg: str) -> None:
            turns.append((session_id, user_msg, assistant_msg))

        def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
            mine = [user_msg for key, user_msg, _ in turns if key == session_id]
            return [MemoryEntry(str(i), text, MemoryKind.RECENT_MESSAGE, 1.0, i) for i, text in enumerate(mine)]

        def flush(self, session_id: str) -> None:
            return None

    model = ScriptedModel(["Noted.", "Rome.", "I do not know."])
    memory = MyMemory()
    agent = Agent(model, instructions="Answer clearly and keep responses short.", memories=[memory.as_memory_module()])
    await agent.run("I am from Italy", session_id="s1")
    assert (await agent.run("The capital?", session_id="s1")).output == "Rome."
    await agent.run("The capital?", session_id="s2")
    blocks = [[m.content for m in request.messages if "memories" in m.metadata] for request in model.requests]
    assert [len(block) for block in blocks] == [0, 1, 0]
    assert "I am from Italy" in blocks[1][0]


async def test_many_turns_at_once_do_not_mix() -> None:
    """A hundred turns of ten users through one agent: each gets its own answer and remembers its own messages."""
    memory = ListMemory()
    agent = Agent(EchoModel(delay=0.001, chunks=3), memory=memory)

    async def turn(n: int) -> None:
        text = f"user {n % 10} says {n}"
        assert (await agent.run(text, user_id=f"user-{n % 10}")).output == text

    await asyncio.gather(*(turn(n) for n in range(100)))
    for user, kept in memory.kept.items():
        assert len(kept) == 20
        assert all(message.content.startswith(user.replace("-", " ")) for message in kept)
