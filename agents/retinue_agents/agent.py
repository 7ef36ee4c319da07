"""The agent: a model with a memory and tools, and the ways to run it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, overload

from retinue_memory import ChatModel, InvocationContext, Memory, MemoryBackend, MemoryModule, Message, Recall, as_memory
from retinue_memory.errors import ConfigError
from retinue_memory.ids import new_id

from .event_stream import EventStream
from .events import Event, FinalAnswer, InputRequired, TextDelta
from .function_tool import FunctionTool
from .journal import Journal, NullJournal
from .loop import AgentLoop
from .memory_writes import MemoryWrites
from .models.open_model import open_model
from .state import State
from .tool_registry import as_tool
from .tools import Retry, Tool
from .turn_memory import TurnMemory

if TYPE_CHECKING:
    from .memory_tools import MemoryTools

log = logging.getLogger(__name__)

AnyMemory = Memory | MemoryBackend | MemoryModule
MemoryMode = Literal["auto", "tools", "both", "off"]
F = TypeVar("F", bound=Callable[..., Any])

_NULL_JOURNAL = NullJournal()


class RunResult(NamedTuple):
    """The outcome of `Agent.run`: the answer, or the question if a tool needs input, and the events on the way."""

    output: str
    steps: tuple[Event, ...]
    """Every event except the text deltas, in order."""


class Agent:
    """A model with a memory and tools.

    `model` (or `llm`, its alias) is a `ChatModel`, or a name that `open_model` accepts. `memory` and `memories` are used
    together, as `memory_mode` says. "auto": memories are recalled for the user's message before the first LLM step, and
    the turn is written after the answer. "tools": the model gets tools to search, add and forget instead. "both" does
    both, "off" neither. `memory_timeout` and `write_timeout` limit a search and a write, in seconds; `top_k` is the number
    of memories per search. `model_settings` are passed to the model with every request. Raises ConfigError if the
    settings are invalid or contradict each other.
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
            raise ConfigError("an agent needs exactly one model: pass model or llm", key="model")
        if memory_mode not in get_args(MemoryMode):
            raise ConfigError('expected "auto", "tools", "both" or "off"', key="memory_mode", value=memory_mode)
        if max_steps < 1:
            raise ConfigError("expected at least 1", key="max_steps", value=max_steps)
        self.name = name
        self.description = description
        self.llm = open_model(chosen)
        self.memory_mode = memory_mode
        given = () if memory_mode == "off" else (*_as_sequence(memory), *memories)
        self.memories = tuple(as_memory(one) for one in given)
        self.max_steps = max_steps
        self._recall = Recall(self.memories, timeout=memory_timeout, top_k=top_k)
        self._writes = MemoryWrites(self.memories, write_timeout)
        self._memory_tools = self._build_memory_tools()
        self._model_settings = dict(model_settings or {})
        prompt = "\n\n".join(part.strip() for part in (system_prompt, instructions) if part.strip())
        self._system = [Message("system", prompt)] if prompt else []
        self._tools: dict[str, Tool] = {}
        for one in tools:
            self.add_tool(one)

    @property
    def remembers(self) -> bool:
        """Whether its turns are recalled for and written without the model asking."""
        return bool(self.memories) and self.memory_mode != "tools"

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools it was given, without the memory tools."""
        return tuple(self._tools.values())

    def add_tool(self, thing: Tool | Callable[..., Any]) -> Tool:
        """Offer a tool or function to the model. Raises ConfigError if its name is taken or it cannot be a tool."""
        tool = as_tool(thing)
        name = tool.spec.name
        if name in self._tools or (self._memory_tools is not None and name in self._memory_tools.names):
            raise ConfigError(f"there are two tools named {name!r}", key="tools", value=name)
        if not self._tools and not self.llm.calls_tools:
            log.warning("agent %s: the model %s calls no tools, its tools are ignored", self.name, self.llm.name)
        self._tools[name] = tool
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
            self.add_tool(FunctionTool(added, **settings) if settings else added)
            return added

        return add if function is None else add(function)

    def stream(
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
    ) -> EventStream:
        """Answer the last user message of `state`; the result yields events as they happen. The answer is added to `state`.

        The memory write starts before FinalAnswer is yielded: it completes even if the caller stops there, and a caller
        that exhausts the stream has awaited it. Without `ctx` the turn is a session of its own. `response_schema` is a JSON
        Schema or a pydantic model for the answer. `recall=False` and `remember=False` switch off reading and writing of
        memories for this turn, for the tools too; `top_k` replaces the agent's own. `earlier` are messages that ended in a
        question, to be remembered with this turn.

        The stream raises ModelError if the model cannot answer (the user's message is remembered nevertheless), and
        whatever the journal raises.
        """
        ctx = ctx or InvocationContext(new_id())
        prompt = [*self._system]
        memory = TurnMemory(self._recall, self._writes, ctx, top_k, recall, remember, prompt)
        tools = self._tools
        if self._memory_tools is not None:
            tools = {**tools, **self._memory_tools.allowed(memory)}
        query = ""
        if self.remembers:
            asked = next((message for message in reversed(state.messages) if message.role == "user"), None)
            if asked is not None and asked.content.strip():
                query = asked.content if recall else ""
                memory.to_write = [*earlier, asked] if remember else []
        turn = AgentLoop(
            ctx=ctx,
            state=state,
            prompt=prompt,
            model=self.llm,
            model_settings=self._model_settings,
            schema=_json_schema(response_schema),
            tools=tools,
            memory=memory,
            journal=journal or _NULL_JOURNAL,
            max_steps=self.max_steps if max_steps is None else max_steps,
            query=query,
        )
        return EventStream(turn)

    async def run(
        self,
        text: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        ctx: InvocationContext | None = None,
        on_step: Callable[[Event], object] | None = None,
    ) -> RunResult:
        """Run one turn. What it knows of earlier turns is what the memory of the user (or the session) recalls.

        `on_step` is called with every event as it happens; it may be a plain or an async function. Returns when the
        memory has the turn: to get the answer earlier, use `on_step` or `stream`. Raises as `stream` does.
        """
        if ctx is not None and (session_id is not None or user_id is not None):
            raise ValueError("pass either ctx, or session_id and user_id")
        if ctx is None:
            ctx = InvocationContext(session_id if session_id is not None else new_id(), user_id)
        return await self._run(State([Message("user", text)]), ctx, on_step)

    def run_sync(self, text: str, **kwargs: Any) -> RunResult:
        """`run` for code without an event loop; takes the same arguments."""
        return asyncio.run(self.run(text, **kwargs))

    async def ainvoke(self, state: State | str, *, ctx: InvocationContext | None = None) -> str:
        """Return the answer to a conversation or a text."""
        if isinstance(state, str):
            state = State([Message("user", state)])
        return (await self._run(state, ctx, None)).output

    async def settle(self) -> None:
        """Wait until every memory write that this agent started in this event loop has ended."""
        await self._writes.wait()

    async def _run(
        self, state: State, ctx: InvocationContext | None, on_step: Callable[[Event], object] | None
    ) -> RunResult:
        output = ""
        steps: list[Event] = []

        async def take(event: Event) -> None:
            nonlocal output
            if on_step is not None:
                returned = on_step(event)
                if inspect.isawaitable(returned):
                    await returned
            if isinstance(event, FinalAnswer | InputRequired):
                output = event.content
            if not isinstance(event, TextDelta):
                steps.append(event)

        stream = self.stream(state, ctx=ctx)
        write = await stream.run(take)
        for event in await stream.outcome(write):
            await take(event)
        return RunResult(output, tuple(steps))

    def _build_memory_tools(self) -> MemoryTools | None:
        if not self.memories or self.memory_mode not in ("tools", "both"):
            return None
        if not self.llm.calls_tools:
            problem = f"the model {self.llm.name} calls no tools"
            if self.memory_mode == "tools":
                problem = f'{problem}, so it would never use its memory: set memory_mode to "auto"'
                raise ConfigError(problem, key="memory_mode", value=self.memory_mode)
            log.warning("agent %s: %s, it gets no memory tools; memory_mode is in effect auto", self.name, problem)
            return None
        from .memory_tools import MemoryTools

        return MemoryTools(self.memory_mode)


def _as_sequence(memory: AnyMemory | Sequence[AnyMemory] | None) -> Sequence[AnyMemory]:
    if memory is None:
        return ()
    return memory if isinstance(memory, Sequence) else (memory,)


def _json_schema(schema: Mapping[str, Any] | type[Any] | None) -> Mapping[str, Any] | None:
    if schema is None or isinstance(schema, Mapping):
        return schema
    model_json_schema: Callable[[], Mapping[str, Any]] | None = getattr(schema, "model_json_schema", None)
    if model_json_schema is None:
        raise ConfigError(f"expected a JSON Schema or a pydantic model, got {schema!r}", key="response_schema")
    return model_json_schema()
