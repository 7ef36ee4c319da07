"""The agent: recall, ask the model, use tools, answer, remember."""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, overload

from recollect_memory import (
    ChatModel,
    InvocationContext,
    Memory,
    MemoryBackend,
    MemoryModule,
    Message,
    Recall,
    ToolCall,
    Usage,
    as_memory,
    render,
)
from recollect_memory.errors import ConfigError, ModelError, RecollectError

from .contract import (
    Event,
    FinalAnswer,
    InputRequired,
    Journal,
    JSONObject,
    MemoryFailed,
    MemoryRetrieved,
    MemoryUpdated,
    NullJournal,
    State,
    StepLimitReached,
    TextDelta,
    ToolCalled,
    ToolContext,
    ToolReturned,
)
from .models import open_model
from .tools import NeedInput, Retry, Tool, ToolResult

log = logging.getLogger(__name__)

AnyMemory = Memory | MemoryBackend | MemoryModule
F = TypeVar("F", bound=Callable[..., Any])

_NULL_JOURNAL = NullJournal()


class RunResult(NamedTuple):
    """What `Agent.run` returns: the answer (or the question, where a tool needs input) and what happened on the way."""

    output: str
    steps: tuple[Event, ...]
    """Every event but the text deltas, in order."""


class Agent:
    """A model with a memory and tools.

    `model` is a name as `open_model` takes it, or a `ChatModel`; `llm` is another word for it. What the user says is
    looked up in `memory` (and `memories`: both count) before the first LLM step, and written with the answer after it;
    `memory_mode="off"` leaves memory alone, as having none does. `memory_timeout` and `write_timeout`
    bound the look-up and the write, in seconds.
    `model_settings` go to the model with every request. Raises ConfigError for what cannot work.
    """

    def __init__(
        self,
        model: str | ChatModel | None = None,
        *,
        name: str = "agent",
        description: str = "",
        llm: ChatModel | None = None,
        system_prompt: str = "",
        instructions: str = "",
        memory: AnyMemory | Sequence[AnyMemory] | None = None,
        memories: Sequence[AnyMemory] = (),
        memory_mode: Literal["auto", "off"] = "auto",
        memory_timeout: float = 2.0,
        write_timeout: float = 30.0,
        top_k: int = 5,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        max_steps: int = 10,
        model_settings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = model if model is not None else llm
        if chosen is None or (model is not None and llm is not None):
            raise ConfigError("an agent needs one model: give it as model or as llm", key="model")
        if memory_mode not in ("auto", "off"):
            raise ConfigError('"auto" or "off"', key="memory_mode", value=memory_mode)
        if max_steps < 1:
            raise ConfigError("at least one step", key="max_steps", value=max_steps)
        self.name = name
        self.description = description
        self.llm = open_model(chosen)
        self.memories = tuple(as_memory(one) for one in (*_several(memory), *memories)) if memory_mode == "auto" else ()
        self.max_steps = max_steps
        self._recall = Recall(self.memories, timeout=memory_timeout, top_k=top_k)
        self._write_timeout = write_timeout
        self._settings = dict(model_settings or {})
        prompt = "\n\n".join(part.strip() for part in (system_prompt, instructions) if part.strip())
        self._system = [Message("system", prompt)] if prompt else []
        self._tools: dict[str, Tool] = {}
        self._writes: dict[asyncio.Task[list[MemoryFailed]], InvocationContext] = {}
        for one in tools:
            self.add_tool(one)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(self._tools.values())

    def add_tool(self, thing: Tool | Callable[..., Any]) -> Tool:
        """Offer one more tool to the model. Raises ConfigError where its name is taken or no schema can be made."""
        tool = Tool.of(thing)
        if tool.name in self._tools:
            raise ConfigError(f"there are two tools named {tool.name!r}", key="tools", value=tool.name)
        if not self._tools and not getattr(self.llm, "calls_tools", True):
            log.warning("agent %s: the model %s calls no tools, they are ignored", self.name, self.llm.name)
        self._tools[tool.name] = tool
        return tool

    @overload
    def tool_plain(self, function: F, /) -> F: ...
    @overload
    def tool_plain(
        self, /, *, name: str = "", description: str = "", retry: Retry = "always", timeout: float | None = None
    ) -> Callable[[F], F]: ...
    def tool_plain(self, function: F | None = None, /, **settings: Any) -> F | Callable[[F], F]:
        """`add_tool` as a decorator: `@agent.tool_plain` or `@agent.tool_plain(retry="never", ...)`."""

        def add(added: F) -> F:
            self.add_tool(Tool(added, **settings) if settings else added)
            return added

        return add if function is None else add(function)

    # -- running ------------------------------------------------------------------------------------------------------

    async def stream(
        self,
        state: State,
        *,
        ctx: InvocationContext | None = None,
        journal: Journal | None = None,
        max_steps: int | None = None,
        response_schema: Mapping[str, Any] | type[Any] | None = None,
        recall: bool = True,
        remember: bool = True,
        top_k: int | None = None,
        earlier: Sequence[Message] = (),
    ) -> AsyncGenerator[Event, None]:
        """Answer the last user message of `state`; yield what happens, as it happens.

        The memory write is under way before FinalAnswer is yielded: whoever stops there loses nothing, whoever goes on
        waits for it. The answer is added to `state`. Without `ctx` the turn is a session of its own. `response_schema`
        is a JSON Schema or a pydantic model that the answer must follow. `recall` and `remember` switch the two halves of
        memory off for this turn; `top_k` memories are recalled instead of the agent's own number. `earlier` are messages that
        ended in a question and are remembered with this turn.

        Raises ModelError where the model cannot answer (the user's message is remembered nevertheless) and what the journal
        raises.
        """
        ctx = ctx or InvocationContext(_new_id())
        turn = _Turn(ctx, journal or _NULL_JOURNAL, _schema(response_schema))
        asked = next((message for message in reversed(state.messages) if message.role == "user"), None)
        turn.prompt += self._system
        told = asked is not None and bool(asked.content.strip()) and bool(self.memories)
        if told and remember:
            turn.asked, turn.earlier = asked, earlier
        if told and recall and asked is not None:
            await self._settled(ctx, self._recall.timeout)
            recalled = await self._recall.retrieve(asked.content, ctx, top_k=top_k)
            for failure in recalled.failures:
                yield MemoryFailed("retrieve", failure.memory, failure.problem)
            yield MemoryRetrieved(recalled.messages)
            if block := render(recalled.messages):
                turn.prompt.append(block)
        turn.prompt += state.messages
        before = len(turn.prompt)
        steps = self.max_steps if max_steps is None else max_steps
        for step in range(1, steps + 1):
            live = _LiveStep()
            running = turn.journal.step(f"llm/{step}", partial(self._ask, turn, live))
            try:
                async with aclosing(live.follow(running)) as texts:
                    async for text in texts:
                        yield TextDelta(text)
            except ModelError:
                for event in await self._written(self._write(turn), self._recall.timeout):
                    yield event
                raise
            calls = turn.take(live.result)
            if not calls:
                answer = self._answer(turn, live.result)
                state.messages += [*turn.prompt[before:], answer]
                write = self._write(turn, answer)
                yield FinalAnswer(answer.content, turn.usage)
                for event in await self._written(write):
                    yield event
                return
            if step == steps:
                break
            for call in calls:
                yield ToolCalled(call)
            questions: list[str] = []
            for call, result in zip(calls, await self._use_tools(turn, step, calls), strict=True):
                if isinstance(result, NeedInput):
                    questions.append(result.question)
                    continue
                yield ToolReturned(call, *result)
                turn.prompt.append(Message("tool", result.content, name=call.name, tool_call_id=call.id))
            if questions:
                question = "\n".join(questions)
                state.add_message(Message("assistant", question))
                yield InputRequired(question)
                return
        write = self._write(turn)
        yield StepLimitReached(steps)
        for event in await self._written(write):
            yield event

    async def run(
        self,
        text: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        ctx: InvocationContext | None = None,
        on_step: Callable[[Event], object] | None = None,
    ) -> RunResult:
        """One turn on its own: what carries over from turn to turn is the memory of the user or the session.

        `on_step` hears every event while it happens; it may be a plain or an async function. Returns after the memory
        has the turn; who wants the answer earlier listens to `on_step` or uses `stream`. Raises as `stream` does.
        """
        if ctx is not None and (session_id is not None or user_id is not None):
            raise ValueError("give either ctx, or session_id and user_id")
        return await self._run(State([Message("user", text)]), ctx or _context(session_id, user_id), on_step)

    def run_sync(self, text: str, **kwargs: Any) -> RunResult:
        """`run`, for code without an event loop; the same arguments."""
        return asyncio.run(self.run(text, **kwargs))

    async def ainvoke(self, state: State | str, *, ctx: InvocationContext | None = None) -> str:
        """The answer to a conversation or a text."""
        started = State([Message("user", state)]) if isinstance(state, str) else state
        return (await self._run(started, ctx, None)).output

    async def settle(self) -> None:
        """Wait until every memory write that this agent began in this event loop has ended."""
        await self._settled()

    async def _run(
        self, state: State, ctx: InvocationContext | None, on_step: Callable[[Event], object] | None
    ) -> RunResult:
        output = ""
        steps: list[Event] = []
        async with aclosing(self.stream(state, ctx=ctx)) as events:
            async for event in events:
                if on_step is not None:
                    heard = on_step(event)
                    if inspect.isawaitable(heard):
                        await heard
                if isinstance(event, TextDelta):
                    continue
                steps.append(event)
                if isinstance(event, FinalAnswer | InputRequired):
                    output = event.content
        return RunResult(output, tuple(steps))

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _ask(self, turn: _Turn, live: _LiveStep) -> JSONObject:
        """One LLM step: its text is said as it comes, its whole result is what the journal keeps."""
        live.ran = True
        texts: list[str] = []
        calls: list[JSONObject] = []
        usage, finish = Usage(), None
        specs = [tool.spec for tool in self._tools.values()]
        try:
            async for delta in self.llm.stream(turn.prompt, tools=specs, schema=turn.schema, **self._settings):
                if delta.text:
                    texts.append(delta.text)
                    live.say(delta.text)
                calls += [{"id": c.id, "name": c.name, "arguments": dict(c.arguments)} for c in delta.tool_calls]
                usage = delta.usage or usage
                finish = delta.finish or finish
        except RecollectError:
            raise
        except Exception as error:
            raise ModelError(f"{self.llm.name} failed: {type(error).__name__}: {error}") from error
        used = [usage.input_tokens, usage.output_tokens]
        return {"text": "".join(texts), "tool_calls": calls, "usage": used, "finish": finish}

    async def _use_tools(self, turn: _Turn, step: int, calls: Sequence[ToolCall]) -> list[ToolResult | NeedInput]:
        """All calls of one step at once, their results in the order of the calls."""
        uses = [self._use_tool(turn, f"tool/{step}/{i}", call) for i, call in enumerate(calls)]
        if len(uses) == 1:
            return [await uses[0]]
        outcomes = await asyncio.gather(*uses, return_exceptions=True)  # none is left running when one fails
        results: list[ToolResult | NeedInput] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, NeedInput):
                raise outcome
            results.append(outcome)
        return results

    async def _use_tool(self, turn: _Turn, key: str, call: ToolCall) -> ToolResult | NeedInput:
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self._tools)) or "none"
            return ToolResult(f"There is no tool named {call.name!r}; there are: {known}.", failed=True)
        context = ToolContext(turn.ctx, call, f"{turn.id}/{key}")

        async def use() -> JSONObject:
            try:
                content, failed = await tool(call.arguments, context)
            except NeedInput as needed:
                return {"question": needed.question}
            return {"content": content, "failed": failed}

        outcome = await turn.journal.step(key, use, repeatable=tool.retry != "never")
        if "question" in outcome:
            return NeedInput(outcome["question"])
        return ToolResult(outcome["content"], outcome["failed"])

    def _answer(self, turn: _Turn, result: JSONObject) -> Message:
        """The same id whenever the turn is run again, so that memory knows the answer when it sees it twice."""
        id_ = f"{turn.ctx.turn_id}/answer" if turn.ctx.turn_id is not None else _new_id()
        return Message("assistant", result["text"], id=id_)

    # -- remembering --------------------------------------------------------------------------------------------------

    def _write(self, turn: _Turn, answer: Message | None = None) -> asyncio.Task[list[MemoryFailed]] | None:
        """Begin to write the turn, in a task that outlives the stream. None where nothing is to be remembered."""
        if turn.asked is None:
            return None
        messages = [*turn.earlier, turn.asked]
        if answer is not None and answer.content:
            messages.append(answer)
        task = asyncio.create_task(self._update(messages, turn.ctx))
        self._writes[task] = turn.ctx
        task.add_done_callback(self._writes.pop)
        return task

    async def _update(self, messages: list[Message], ctx: InvocationContext) -> list[MemoryFailed]:
        if len(self.memories) == 1:
            outcomes = [await self._update_one(self.memories[0], messages, ctx)]
        else:
            outcomes = await asyncio.gather(*(self._update_one(memory, messages, ctx) for memory in self.memories))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _update_one(self, memory: Memory, messages: list[Message], ctx: InvocationContext) -> MemoryFailed | None:
        limit = asyncio.timeout(self._write_timeout)
        try:
            async with limit:
                await memory.update(list(messages), ctx=ctx)
        except RecollectError as error:
            log.warning("memory %s: update failed: %s", memory.name, error)
            return MemoryFailed("update", memory.name, str(error))
        except Exception as error:
            if limit.expired():
                log.warning("memory %s: update did not end within %g s", memory.name, self._write_timeout)
                return MemoryFailed("update", memory.name, f"no answer within {self._write_timeout:g} s")
            log.warning("memory %s: update raised", memory.name, exc_info=True)
            return MemoryFailed("update", memory.name, f"{type(error).__name__}: {error}")
        return None

    async def _written(
        self, write: asyncio.Task[list[MemoryFailed]] | None, at_most: float | None = None
    ) -> Sequence[MemoryFailed | MemoryUpdated]:
        """How a write ended, or nothing where it has not within `at_most` seconds. Being cancelled leaves it running."""
        if write is None:
            return ()
        await asyncio.wait((write,), timeout=at_most)
        return (write.result() or (MemoryUpdated(),)) if write.done() else ()

    async def _settled(self, ctx: InvocationContext | None = None, at_most: float | None = None) -> None:
        """Wait for this loop's pending writes, those of the same user or session where `ctx` is given.

        A next turn that begins before the last one is written would not find it.
        """
        if not self._writes:
            return
        loop = asyncio.get_running_loop()
        pending = [
            task
            for task, other in self._writes.items()
            if task.get_loop() is loop and (ctx is None or _same_owner(ctx, other))
        ]
        if pending:
            await asyncio.wait(pending, timeout=at_most)


@dataclass(slots=True)
class _Turn:
    """What one run of `stream` carries along."""

    ctx: InvocationContext
    journal: Journal
    schema: Mapping[str, Any] | None
    prompt: list[Message] = field(default_factory=list[Message])
    earlier: Sequence[Message] = ()
    asked: Message | None = None
    """The user's message, where it is to be remembered."""
    usage: Usage = field(default_factory=Usage)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.ctx.turn_id or _new_id()

    def take(self, result: JSONObject) -> tuple[ToolCall, ...]:
        """Count what an LLM step used; put the tool calls it ended with, if any, into the prompt and return them."""
        read, written = result["usage"]
        self.usage = Usage(self.usage.input_tokens + read, self.usage.output_tokens + written)
        calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in result["tool_calls"])
        if calls:
            self.prompt.append(Message("assistant", result["text"], tool_calls=calls))
        return calls


class _LiveStep:
    """A step whose text is heard while it runs. The step has a task of its own, for a journal may use timeouts, and those
    must not strike the consumer of the stream in between.
    """

    __slots__ = ("_said", "_waiter", "ran", "result")

    def __init__(self) -> None:
        self._said: deque[str] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ran = False
        self.result: JSONObject = {}

    def say(self, text: str) -> None:
        self._said.append(text)
        self._wake()

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def follow(self, running: Awaitable[JSONObject]) -> AsyncGenerator[str, None]:
        """The texts as they are said; then `result` is there. One that was recorded earlier comes as one text."""
        task = asyncio.ensure_future(running)
        task.add_done_callback(self._wake)
        try:
            while True:
                while self._said:
                    yield self._said.popleft()
                if task.done():
                    break
                self._waiter = task.get_loop().create_future()
                await self._waiter
            self.result = task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # seen: nobody is left to hear of it
        if not self.ran and self.result["text"]:
            yield self.result["text"]


def _several(memory: AnyMemory | Sequence[AnyMemory] | None) -> Sequence[AnyMemory]:
    if memory is None:
        return ()
    return (memory,) if isinstance(memory, Memory | MemoryBackend | MemoryModule) else memory


def _context(session_id: str | None, user_id: str | None) -> InvocationContext:
    return InvocationContext(session_id if session_id is not None else _new_id(), user_id)


def _same_owner(one: InvocationContext, other: InvocationContext) -> bool:
    if one.tenant != other.tenant or one.user_id != other.user_id:
        return False
    return one.user_id is not None or one.session_id == other.session_id


def _schema(schema: Mapping[str, Any] | type[Any] | None) -> Mapping[str, Any] | None:
    if schema is None or isinstance(schema, Mapping):
        return schema
    as_schema = getattr(schema, "model_json_schema", None)
    if as_schema is None:
        raise ConfigError(f"{schema!r} is neither a JSON Schema nor a pydantic model", key="response_schema")
    described: Mapping[str, Any] = as_schema()
    return described


def _new_id() -> str:
    return uuid.uuid4().hex
