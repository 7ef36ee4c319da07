"""One turn of an agent: recall, ask the model, use tools, answer, remember."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from retinue_memory import ChatModel, InvocationContext, Message, ModelDelta, ToolCall, Usage, render
from retinue_memory.errors import ModelError, RetinueError
from retinue_memory.ids import new_id

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
from .journal import Journal, JSONObject
from .memory_writes import PendingWrite
from .state import State
from .tools import NeedInput, Tool, ToolContext
from .turn_memory import TurnMemory

Emit = Callable[[Event], Awaitable[None]]
"""Takes each event of a turn as it happens. The turn goes on when it returns."""


@dataclass(slots=True, kw_only=True)
class AgentLoop:
    """What one turn works with; `run` is the turn. Every LLM and tool call is a step of the journal."""

    ctx: InvocationContext
    state: State
    """The conversation. The turn adds its answer or question, and the tool calls before the answer."""
    prompt: list[Message]
    """What the model is sent. It starts as the system prompt."""
    model: ChatModel
    model_settings: Mapping[str, Any]
    schema: Mapping[str, Any] | None
    tools: Mapping[str, Tool]
    memory: TurnMemory
    journal: Journal
    max_steps: int
    query: str
    """What memories are recalled for before the first LLM step. Empty: for nothing."""
    usage: Usage = field(default_factory=Usage, init=False)
    turn_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.turn_id = self.ctx.turn_id or new_id()

    async def run(self, emit: Emit) -> PendingWrite | None:
        """Run the turn. Raises as `Agent.stream` does.

        Returns the memory write that was started, which may be in flight.
        """
        if self.query:
            await self._recall(emit)
        self.prompt += self.state.messages
        asked = len(self.prompt)
        for step in range(1, self.max_steps + 1):
            result = await self._model_step(step, emit)
            calls = self._add_model_result(result)
            if not calls:
                answer = Message("assistant", result["text"], id=f"{self.turn_id}/answer")
                self.state.messages += [*self.prompt[asked:], answer]
                write = self.memory.write(answer)
                await emit(FinalAnswer(answer.content, self.usage))
                return write
            if step == self.max_steps:
                break
            for call in calls:
                await emit(ToolCalled(call))
            outcomes = await self._use_tools(step, calls)
            for call, outcome in zip(calls, outcomes, strict=True):
                for event in self._add_tool_result(call, outcome):
                    await emit(event)
            if questions := [outcome["question"] for outcome in outcomes if "question" in outcome]:
                question = "\n".join(questions)
                self.state.add_message(Message("assistant", question))
                await emit(InputRequired(question))
                return None
        write = self.memory.write()
        await emit(StepLimitReached(self.max_steps))
        return write

    async def _recall(self, emit: Emit) -> None:
        found = await self.memory.retrieve(self.query)
        if block := render(found.messages):
            self.prompt.append(block)
        self.memory.known += [message.content for message in found.messages]
        for failure in found.failures:
            await emit(MemoryFailed("retrieve", failure.memory, failure.problem))
        await emit(MemoryRetrieved(found.messages))

    async def _model_step(self, step: int, emit: Emit) -> JSONObject:
        """One LLM step. Its text is emitted as the model streams it, or at once if the journal has the result already."""
        streamed: list[str] = []
        try:
            result = await self.journal.step(f"llm/{step}", partial(self._ask_model, streamed, emit))
        except ModelError:
            for event in await self.memory.outcome(self.memory.write(), self.memory.recall.timeout):
                await emit(event)
            raise
        if result["text"] and not streamed:
            await emit(TextDelta(result["text"]))
        return result

    async def _ask_model(self, streamed: list[str], emit: Emit) -> JSONObject:
        """Ask the model. Its text is emitted piece by piece, and added to `streamed`. Returns what the journal keeps."""
        calls: list[JSONObject] = []
        usage, finish = Usage(), None
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                if delta.text:
                    streamed.append(delta.text)
                    await emit(TextDelta(delta.text))
                calls += [{"id": c.id, "name": c.name, "arguments": dict(c.arguments)} for c in delta.tool_calls]
                usage = delta.usage or usage
                finish = delta.finish or finish
        tokens = [usage.input_tokens, usage.output_tokens]
        return {"text": "".join(streamed), "tool_calls": calls, "usage": tokens, "finish": finish}

    async def _deltas(self) -> AsyncGenerator[ModelDelta, None]:
        """What the model streams. Whatever a foreign model raises becomes a ModelError."""
        specs = [tool.spec for tool in self.tools.values()]
        try:
            async for delta in self.model.stream(self.prompt, tools=specs, schema=self.schema, **self.model_settings):
                yield delta
        except RetinueError:
            raise
        except Exception as error:
            raise ModelError(f"{self.model.name} failed: {type(error).__name__}: {error}") from error

    def _add_model_result(self, result: JSONObject) -> tuple[ToolCall, ...]:
        """Count the tokens of an LLM step. Return its tool calls, and add them to the prompt."""
        input_tokens, output_tokens = result["usage"]
        self.usage = Usage(self.usage.input_tokens + input_tokens, self.usage.output_tokens + output_tokens)
        calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in result["tool_calls"])
        if calls:
            self.prompt.append(Message("assistant", result["text"], tool_calls=calls))
        return calls

    async def _use_tools(self, step: int, calls: Sequence[ToolCall]) -> list[JSONObject]:
        """Run all calls of one step at once. Returns their outcomes in the order of the calls."""
        uses = [self._use_tool(f"tool/{step}/{i}", call) for i, call in enumerate(calls)]
        if len(uses) == 1:
            return [await uses[0]]
        outcomes: list[JSONObject] = []
        for outcome in await asyncio.gather(*uses, return_exceptions=True):  # if one fails, none is left running
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def _use_tool(self, key: str, call: ToolCall) -> JSONObject:
        """One tool step. Returns what the journal keeps: `content`, `failed` and `effects`, or a `question`."""
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(sorted(self.tools)) or "none"
            return {"content": f"There is no tool named {call.name!r}; there are: {known}.", "failed": True}
        context = ToolContext(self.ctx, call, f"{self.turn_id}/{key}", self.memory)

        async def use() -> JSONObject:
            try:
                result = await tool(call.arguments, context)
            except NeedInput as needed:
                return {"question": needed.question}
            outcome: JSONObject = {"content": result.content, "failed": result.failed}
            return {**outcome, "effects": result.effects} if result.effects else outcome

        return await self.journal.step(key, use, repeatable=tool.retry != "never")

    def _add_tool_result(self, call: ToolCall, outcome: JSONObject) -> Iterator[Event]:
        """Apply a tool's effects, and add its result to the prompt. A question is neither."""
        if "question" in outcome:
            return
        yield from self.memory.apply(outcome.get("effects", {}))
        yield ToolReturned(call, outcome["content"], outcome["failed"])
        self.prompt.append(Message("tool", outcome["content"], name=call.name, tool_call_id=call.id))
