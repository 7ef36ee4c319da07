"""The agent: recall, ask the model, use tools, answer, remember."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, overload

from retinue_memory import (
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
from retinue_memory.errors import ConfigError, ModelError, RetinueError
from retinue_memory.text import same_text

from .events import (
    Event,
    FinalAnswer,
    InputRequired,
    MemoryFailed,
    MemoryRetrieved,
    StepLimitReached,
    TextDelta,
    ToolCalled,
    ToolReturned,
)
from .journal import Journal, JSONObject, NullJournal
from .live_step import StreamedStep
from .memory_writes import Writes
from .models.open_model import open_model
from .state import State
from .tools import NeedInput, Retry, Tool, ToolContext
from .turn import Turn, new_id

if TYPE_CHECKING:
    from .memory_tools import MemoryTools

log = logging.getLogger(__name__)

AnyMemory = Memory | MemoryBackend | MemoryModule
MemoryMode = Literal["auto", "tools", "both", "off"]
F = TypeVar("F", bound=Callable[..., Any])

_NULL_JOURNAL = NullJournal()


class RunResult(NamedTuple):
    """What `Agent.run` returns: the answer (or the question, where a tool needs input) and what happened on the way."""

    output: str
    steps: tuple[Event, ...]
    """Every event but the text deltas, in order."""


class Agent:
    """A model with a memory and tools.

    `model` is a name as `open_model` takes it, or a `ChatModel`; `llm` is another word for it. `memory_mode` says how it uses
    `memory` (and `memories`: both count). "auto": what the user says is looked up before the first LLM step, and written
    with the answer after it. "tools": neither; the model is given tools to search, add and forget. "both": the two
    together. "off": as without a memory. `memory_timeout` and `write_timeout` bound a look-up and a write, in seconds;
    `top_k` is how many memories one look-up brings. `model_settings` go to the model with every request. Raises
    ConfigError for what cannot work.
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
        memory_mode: MemoryMode = "auto",
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
        if memory_mode not in get_args(MemoryMode):
            raise ConfigError('"auto", "tools", "both" or "off"', key="memory_mode", value=memory_mode)
        if max_steps < 1:
            raise ConfigError("at least one step", key="max_steps", value=max_steps)
        self.name = name
        self.description = description
        self.llm = open_model(chosen)
        self.memory_mode = memory_mode
        self.memories = tuple(as_memory(one) for one in (*_several(memory), *memories)) if memory_mode != "off" else ()
        self.max_steps = max_steps
        self._recall = Recall(self.memories, timeout=memory_timeout, top_k=top_k)
        self._writes = Writes(self.memories, write_timeout)
        self._memory_tools = self._make_memory_tools() if memory_mode in ("tools", "both") else None
        self._settings = dict(model_settings or {})
        prompt = "\n\n".join(part.strip() for part in (system_prompt, instructions) if part.strip())
        self._system = [Message("system", prompt)] if prompt else []
        self._tools: dict[str, Tool] = {}
        for one in tools:
            self.add_tool(one)

    @property
    def remembers(self) -> bool:
        """Whether its turns are recalled for, and written, by themselves."""
        return bool(self.memories) and self.memory_mode != "tools"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Those that were given to it; a memory's are offered beside them, as a turn may use them."""
        return tuple(self._tools.values())

    def add_tool(self, thing: Tool | Callable[..., Any]) -> Tool:
        """Offer one more tool to the model. Raises ConfigError where its name is taken or no schema can be made."""
        tool = Tool.of(thing)
        if tool.name in self._tools or (self._memory_tools is not None and tool.name in self._memory_tools.names):
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
        memory off for this turn, also for tools; `top_k` memories are recalled at once instead of the agent's own number.
        `earlier` are messages that ended in a question and are remembered with this turn.

        Raises ModelError where the model cannot answer (the user's message is remembered nevertheless) and what the journal
        raises.
        """
        ctx = ctx or InvocationContext(new_id())
        turn = Turn(ctx, journal or _NULL_JOURNAL, _schema(response_schema), top_k, tools=self._tools)
        if self._memory_tools is not None:
            turn.tools = {**self._tools, **self._memory_tools.of_turn(turn, read=recall, write=remember)}
        asked = next((message for message in reversed(state.messages) if message.role == "user"), None)
        turn.prompt += self._system
        told = asked is not None and bool(asked.content.strip()) and self.remembers
        if told and remember:
            turn.asked, turn.earlier = asked, earlier
        if told and recall and asked is not None:
            await self._writes.settled(ctx, self._recall.timeout)
            recalled = await self._recall.retrieve(asked.content, ctx, top_k=top_k)
            for failure in recalled.failures:
                yield MemoryFailed("retrieve", failure.memory, failure.problem)
            yield MemoryRetrieved(recalled.messages)
            if block := render(recalled.messages):
                turn.prompt.append(block)
                if self._memory_tools is not None:
                    turn.known.update(same_text(message.content) for message in recalled.messages)
        turn.prompt += state.messages
        before = len(turn.prompt)
        steps = self.max_steps if max_steps is None else max_steps
        for step in range(1, steps + 1):
            live = StreamedStep()
            running = turn.journal.step(f"llm/{step}", partial(self._ask, turn, live))
            try:
                async with aclosing(live.follow(running)) as texts:
                    async for text in texts:
                        yield TextDelta(text)
            except ModelError:
                for event in await self._writes.ended(self._write(turn), self._recall.timeout):
                    yield event
                raise
            calls = turn.take(live.result)
            if not calls:
                answer = turn.answer(live.result)
                state.messages += [*turn.prompt[before:], answer]
                write = self._write(turn, answer)
                yield FinalAnswer(answer.content, turn.usage)
                for event in await self._writes.ended(write):
                    yield event
                return
            if step == steps:
                break
            for call in calls:
                yield ToolCalled(call)
            questions: list[str] = []
            for call, outcome in zip(calls, await self._use_tools(turn, step, calls), strict=True):
                if "question" in outcome:
                    questions.append(outcome["question"])
                    continue
                if self._memory_tools is not None and "memory" in outcome:
                    for done in self._memory_tools.done(turn, outcome["memory"]):
                        yield done
                yield ToolReturned(call, outcome["content"], outcome["failed"])
                turn.prompt.append(Message("tool", outcome["content"], name=call.name, tool_call_id=call.id))
            if questions:
                question = "\n".join(questions)
                state.add_message(Message("assistant", question))
                yield InputRequired(question)
                return
        write = self._write(turn)
        yield StepLimitReached(steps)
        for event in await self._writes.ended(write):
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
        await self._writes.settled()

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

    async def _ask(self, turn: Turn, live: StreamedStep) -> JSONObject:
        """One LLM step: its text is said as it comes, its whole result is what the journal keeps."""
        live.ran = True
        texts: list[str] = []
        calls: list[JSONObject] = []
        usage, finish = Usage(), None
        specs = [tool.spec for tool in turn.tools.values()]
        try:
            async for delta in self.llm.stream(turn.prompt, tools=specs, schema=turn.schema, **self._settings):
                if delta.text:
                    texts.append(delta.text)
                    live.say(delta.text)
                calls += [{"id": c.id, "name": c.name, "arguments": dict(c.arguments)} for c in delta.tool_calls]
                usage = delta.usage or usage
                finish = delta.finish or finish
        except RetinueError:
            raise
        except Exception as error:
            raise ModelError(f"{self.llm.name} failed: {type(error).__name__}: {error}") from error
        used = [usage.input_tokens, usage.output_tokens]
        return {"text": "".join(texts), "tool_calls": calls, "usage": used, "finish": finish}

    async def _use_tools(self, turn: Turn, step: int, calls: Sequence[ToolCall]) -> list[JSONObject]:
        """All calls of one step at once, their outcomes in the order of the calls."""
        uses = [self._use_tool(turn, f"tool/{step}/{i}", call) for i, call in enumerate(calls)]
        if len(uses) == 1:
            return [await uses[0]]
        outcomes = await asyncio.gather(*uses, return_exceptions=True)  # none is left running when one fails
        results: list[JSONObject] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            results.append(outcome)
        return results

    async def _use_tool(self, turn: Turn, key: str, call: ToolCall) -> JSONObject:
        """What the journal keeps of a call: `content` and `failed`, and what was done to `memory`; or a `question`."""
        tool = turn.tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(turn.tools)) or "none"
            return {"content": f"There is no tool named {call.name!r}; there are: {known}.", "failed": True}
        context = ToolContext(turn.ctx, call, f"{turn.id}/{key}")

        async def use() -> JSONObject:
            try:
                result = await tool(call.arguments, context)
            except NeedInput as needed:
                return {"question": needed.question}
            did = getattr(result, "did", None)
            return {"content": result.content, "failed": result.failed} | ({"memory": did} if did else {})

        return await turn.journal.step(key, use, repeatable=tool.retry != "never")

    # -- remembering --------------------------------------------------------------------------------------------------

    def _make_memory_tools(self) -> MemoryTools | None:
        if not self.memories:
            return None
        if not getattr(self.llm, "calls_tools", True):
            problem = f"the model {self.llm.name} calls no tools"
            if self.memory_mode == "tools":
                problem = f'{problem}, and would never use its memory: take "auto"'
                raise ConfigError(problem, key="memory_mode", value=self.memory_mode)
            log.warning("agent %s: %s: its memory works by itself alone", self.name, problem)
            return None
        from .memory_tools import MemoryTools

        return MemoryTools(self._recall, self._writes, self.memory_mode)

    def _write(self, turn: Turn, answer: Message | None = None) -> asyncio.Future[list[MemoryFailed]] | None:
        """Begin to write the turn. None where nothing is to be remembered."""
        if turn.asked is None:
            return None
        messages = [*turn.earlier, turn.asked]
        if answer is not None and answer.content:
            messages.append(answer)
        return self._writes.begin(messages, turn.ctx)


def _several(memory: AnyMemory | Sequence[AnyMemory] | None) -> Sequence[AnyMemory]:
    if memory is None:
        return ()
    return (memory,) if isinstance(memory, Memory | MemoryBackend | MemoryModule) else memory


def _context(session_id: str | None, user_id: str | None) -> InvocationContext:
    return InvocationContext(session_id if session_id is not None else new_id(), user_id)


def _schema(schema: Mapping[str, Any] | type[Any] | None) -> Mapping[str, Any] | None:
    if schema is None or isinstance(schema, Mapping):
        return schema
    as_schema = getattr(schema, "model_json_schema", None)
    if as_schema is None:
        raise ConfigError(f"{schema!r} is neither a JSON Schema nor a pydantic model", key="response_schema")
    described: Mapping[str, Any] = as_schema()
    return described
