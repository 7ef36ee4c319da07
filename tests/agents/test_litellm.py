"""LiteLLMChat over real HTTP: the embedded runtime's own OpenAI endpoint, and an endpoint that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from retinue_agents import (
    Agent,
    LiteLLMChat,
    Message,
    ModelDelta,
    State,
    TextDelta,
    ToolCall,
)
from retinue_memory import ToolSpec
from retinue_memory.errors import ModelError
from retinue_memory.weights import SMOLLM2, Weight

pytestmark = pytest.mark.filterwarnings(  # litellm, of its own models
    "ignore:Accessing the 'model_:DeprecationWarning", "ignore:Item '.*' on TypedDict class:UserWarning"
)

KEY = "sk-a-key-that-must-not-be-seen"
HELLO = [Message("user", "Hello!")]


@pytest.fixture(scope="session")
def openai_endpoint(weights: Mapping[Weight, Path]) -> Iterator[str]:
    """The embedded runtime's OpenAI-compatible endpoint on 127.0.0.1, which requires a key."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]

    runtime: Any = xllamacpp
    params = runtime.CommonParams()
    params.model.path = str(weights[SMOLLM2])
    params.n_ctx, params.n_parallel, params.cache_ram_mib = 1024, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    params.ui, params.warmup, params.verbosity = False, False, -1
    server = runtime.Server(params)
    yield f"{server.listening_address}/v1"
    del server


class Endpoint:
    """An OpenAI-compatible endpoint; the first segment of the path selects its behaviour."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.left = asyncio.Event()
        """Set if a client disconnects during its answer."""
        self.url = ""
        self.serving: list[asyncio.Task[None]] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self.handle(reader, writer)))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:")
                )
                body = json.loads(await reader.readexactly(length))
                how = head.split(" ", 2)[1].split("/")[1]
                self.requests.append((head, body))
                await getattr(self, how)(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done
        finally:
            writer.close()

    async def close(self) -> None:
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    def respond(self, writer: asyncio.StreamWriter, status: str, body: object, *headers: str) -> None:
        text = json.dumps(body)
        lines = (f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(text)}", *headers)
        writer.write("\r\n".join((*lines, "", text)).encode())

    def start_stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, delta: object, finish: str | None = None, **more: object) -> None:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
        self.data(writer, json.dumps(chunk))

    def data(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end_stream(self, writer: asyncio.StreamWriter) -> None:
        self.data(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")

    async def fine(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.start_stream(writer)
        self.event(writer, {"role": "assistant", "content": "Hel"})
        self.event(writer, {"content": "lo"})
        self.event(writer, {}, "stop")
        self.event(writer, {}, usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})
        self.end_stream(writer)

    async def calls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Two tool calls, their arguments in fragments; after a tool's result, a text."""
        self.start_stream(writer)
        if self.requests[-1][1]["messages"][-1]["role"] == "tool":
            self.event(writer, {"role": "assistant", "content": "Rome"})
            self.event(writer, {}, "stop")
            return self.end_stream(writer)
        for index, country in enumerate(("Italy", "Spain")):
            function = {"name": "capital", "arguments": ""}
            call = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
            self.event(writer, {"role": "assistant", "content": None, "tool_calls": [call]})
            for piece in ('{"coun', f'try": "{country}"', "}"):
                self.event(writer, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        self.event(writer, {}, "tool_calls")
        return self.end_stream(writer)

    async def badcall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.start_stream(writer)
        function = {"name": "capital", "arguments": '{"country": '}
        self.event(writer, {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]})
        self.event(writer, {}, "tool_calls")
        self.end_stream(writer)

    async def busy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Refuse the first request with 429."""
        if len(self.requests) > 1:
            return await self.fine(reader, writer)
        return self.respond(writer, "429 Too Many Requests", {"error": {"message": "slow down"}}, "retry-after: 0")

    async def full(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        error = {"error": {"message": f"no quota for {KEY}"}}
        self.respond(writer, "429 Too Many Requests", error, "retry-after: 3600")

    async def broken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.respond(writer, "503 Service Unavailable", {"error": {"message": "maintenance"}}, "retry-after: 0")

    async def refused(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.respond(writer, "401 Unauthorized", {"error": {"message": f"Incorrect API key provided: {KEY}"}})

    async def unknown(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.respond(writer, "404 Not Found", {"error": {"message": "no model m", "code": "model_not_found"}})

    async def drop(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start an answer and drop the connection."""
        self.start_stream(writer)
        self.event(writer, {"role": "assistant", "content": "Hel"})
        await writer.drain()
        writer.transport.abort()

    async def cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End the HTTP response properly, but before the answer is finished."""
        self.start_stream(writer)
        self.event(writer, {"role": "assistant", "content": "Hel"})
        writer.write(b"0\r\n\r\n")

    async def silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start an answer and send nothing more until the client disconnects."""
        self.start_stream(writer)
        self.event(writer, {"role": "assistant", "content": "Hel"})
        await writer.drain()
        await reader.read()
        self.left.set()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.accept, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield endpoint
    server.close()
    await endpoint.close()


def model(url: str, how: str = "", **settings: Any) -> LiteLLMChat:
    return LiteLLMChat("openai/m", api_key=KEY, api_base=f"{url}/{how}" if how else url, **settings)


async def collect(chat: LiteLLMChat, **kwargs: Any) -> list[ModelDelta]:
    return [delta async for delta in chat.stream(HELLO, **kwargs)]


async def failure(chat: LiteLLMChat) -> ModelError:
    with pytest.raises(ModelError) as raised:
        await collect(chat)
    shown = "".join(traceback.format_exception(raised.value))
    assert KEY not in shown
    return raised.value


async def test_a_real_endpoint_answers_in_a_stream(openai_endpoint: str) -> None:
    """Several deltas, then usage and finish reason; the same through an agent."""
    deltas = await collect(model(openai_endpoint), max_tokens=16, temperature=0)
    assert len([delta for delta in deltas if delta.text]) > 3
    assert deltas[-1].finish in ("stop", "length")
    assert deltas[-1].usage is not None
    assert 0 < deltas[-1].usage.output_tokens <= 16
    agent = Agent(model(openai_endpoint), model_settings={"max_tokens": 16, "temperature": 0})
    events = [event async for event in agent.stream(State(list(HELLO)))]
    heard = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert heard == "".join(delta.text for delta in deltas)


async def test_a_real_endpoint_follows_a_schema(openai_endpoint: str) -> None:
    """An answer with a schema is JSON of its shape."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    deltas = await collect(model(openai_endpoint), schema=schema, max_tokens=60, temperature=0)
    assert isinstance(json.loads("".join(delta.text for delta in deltas))["city"], str)


async def test_a_real_endpoint_refuses_a_wrong_key(openai_endpoint: str) -> None:
    """The error says what to do, and is not retryable."""
    with pytest.raises(ModelError, match=r"openai/m: the API key was refused \(401\)") as raised:
        await collect(LiteLLMChat("openai/m", api_key="wrong", api_base=openai_endpoint))
    assert not raised.value.retryable


def test_one_model_serves_several_event_loops(openai_endpoint: str) -> None:
    """`run_sync` starts a new loop each time."""
    agent = Agent(model(openai_endpoint), model_settings={"max_tokens": 4, "temperature": 0})
    assert agent.run_sync("Hello!").output == agent.run_sync("Hello!").output


async def test_what_is_sent_is_the_openai_shape(endpoint: Endpoint) -> None:
    """Roles, tool calls and results, tools, schema and settings are sent as the API defines them."""
    conversation = [
        Message("system", "Be kind."),
        Message("user", "capital?", name="alice"),
        Message("assistant", "", tool_calls=(ToolCall("c1", "capital", {"country": "Italy"}),)),
        Message("tool", "Rome", name="capital", tool_call_id="c1"),
    ]
    parameters = {"type": "object", "properties": {"country": {"type": "string"}}}
    chat = model(endpoint.url, "fine", temperature=0.5)
    spec = ToolSpec("capital", "Of a country.", parameters)
    async for _ in chat.stream(conversation, tools=[spec], schema={"type": "object"}):
        pass
    head, body = endpoint.requests[0]
    assert f"bearer {KEY}" in head.lower()
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert body["messages"][1]["content"] == "capital?"
    called = body["messages"][2]["tool_calls"][0]
    assert (called["id"], called["function"]["name"]) == ("c1", "capital")
    assert json.loads(called["function"]["arguments"]) == {"country": "Italy"}
    assert body["messages"][3]["tool_call_id"] == "c1"
    assert body["tools"][0]["function"] == {"name": "capital", "description": "Of a country.", "parameters": parameters}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["temperature"], body["stream"]) == (0.5, True)
    assert set(body) == {"messages", "model", "tools", "response_format", "temperature", "stream", "stream_options"}


async def test_the_answer_carries_text_finish_and_usage(endpoint: Endpoint) -> None:
    """The deltas carry the text, and the last one the finish reason and the tokens."""
    deltas = await collect(model(endpoint.url, "fine"))
    assert "".join(delta.text for delta in deltas) == "Hello"
    last = deltas[-1]
    assert last.usage is not None
    assert (last.finish, last.usage.input_tokens, last.usage.output_tokens) == ("stop", 7, 2)


async def test_tool_calls_are_put_together_from_their_pieces(endpoint: Endpoint) -> None:
    """An agent runs both calls of a step and the model gets the results."""

    def capital(country: str) -> str:
        return {"Italy": "Rome", "Spain": "Madrid"}[country]

    result = await Agent(model(endpoint.url, "calls"), tools=[capital]).run("capitals?")
    assert result.output == "Rome"
    sent = endpoint.requests[1][1]["messages"]
    assert [(m["tool_call_id"], m["content"]) for m in sent if m["role"] == "tool"] == [
        ("call_0", "Rome"),
        ("call_1", "Madrid"),
    ]


async def test_broken_arguments_of_a_tool_call_are_a_model_error(endpoint: Endpoint) -> None:
    """Arguments that are no JSON object raise ModelError."""
    assert "not a JSON object" in str(await failure(model(endpoint.url, "badcall")))


async def test_too_many_requests_are_tried_again(endpoint: Endpoint) -> None:
    """A 429 before the first piece is retried after Retry-After."""
    deltas = await collect(model(endpoint.url, "busy"))
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert len(endpoint.requests) == 2


async def test_a_long_retry_after_is_not_waited_for(endpoint: Endpoint) -> None:
    """An hour is an error at once, marked as retryable; the provider's text is shown without the key."""
    error = await failure(model(endpoint.url, "full"))
    assert str(error) == "openai/m: too many requests, or no quota left (429): no quota for ***"
    assert error.retryable
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("how", "said", "retryable", "requests"),
    [
        ("refused", "the API key was refused (401)", False, 1),
        ("unknown", "does not know this model or address (404)", False, 1),
        ("broken", "503", True, 3),
        ("drop", "the connection ended in the middle of the answer", True, 1),
        ("cut", "the connection ended in the middle of the answer", True, 1),
        ("silent", "no answer within 0.2 seconds", True, 2),
        ("stall", "nothing more within 0.2 seconds", True, 1),
    ],
)
async def test_every_failure_is_a_model_error_with_a_reason(
    endpoint: Endpoint, how: str, said: str, retryable: bool, requests: int
) -> None:
    """Retried only if that can help, and never after a piece of the answer was delivered."""
    timeout = 0.2 if how in ("silent", "stall") else 5
    error = await failure(model(endpoint.url, how, timeout=timeout, retries=requests - 1 or 2))
    assert said in str(error)
    assert error.retryable is retryable
    assert len(endpoint.requests) == requests


async def test_without_a_key_nothing_is_sent(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where to set the key."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    error = await failure(LiteLLMChat("openai/m", api_base=f"{endpoint.url}/fine"))
    assert str(error) == "openai/m: there is no API key: set api_key, or the provider's environment variable"
    assert not error.retryable
    assert endpoint.requests == []


async def test_an_unknown_provider_is_an_error_at_the_first_request() -> None:
    """A provider that LiteLLM does not know is a ModelError that is not retried."""
    error = await failure(LiteLLMChat("opnai/m"))
    assert str(error).startswith("opnai/m: LiteLLM knows no such provider")
    assert not error.retryable


async def test_a_refused_connection_is_a_retryable_error() -> None:
    """An endpoint that nobody listens on raises a ModelError that names the problem."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        error = await failure(model(f"http://127.0.0.1:{probe.getsockname()[1]}", retries=0))
    assert "no connection" in str(error)
    assert error.retryable


async def test_cancelling_closes_the_stream(endpoint: Endpoint) -> None:
    """The provider sees the connection close at once and can stop generating."""
    agent = Agent(model(endpoint.url, "stall"))
    begun = asyncio.Event()

    def hear(event: object) -> None:
        if isinstance(event, TextDelta):
            begun.set()

    task = asyncio.create_task(agent.run("hello", on_step=hear))
    async with asyncio.timeout(20):
        await begun.wait()
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await endpoint.left.wait()
    assert time.monotonic() - start < 2


async def test_nothing_is_printed_or_logged(
    endpoint: Endpoint, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """litellm's own output, which may contain the key, is suppressed."""
    await collect(model(endpoint.url, "fine"))
    await failure(model(endpoint.url, "refused"))
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text
    assert (out, err) == ("", "")
