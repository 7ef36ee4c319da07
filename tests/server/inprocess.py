"""A real server over HTTP in the test's own event loop, with agents the test made and can direct."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.server.agent_execution import AgentExecutor
from a2a.types import GetTaskRequest, Message, Part, Role, SendMessageRequest, StreamResponse, Task, TaskState

from retinue_agents import Agent
from retinue_server.a2a.foreign import turn_executor
from retinue_server.agents import AgentBuilder
from retinue_server.assembly import Server, build
from retinue_server.config import parse_config
from retinue_server.runtime.executor import TurnExecutor

SECONDS = 10.0
"""How long anything may take before a test gives up."""


@dataclass
class Here:
    """The server of this event loop."""

    url: str
    http: httpx.AsyncClient
    server: Server

    async def client(self, agent: str = "", *, streaming: bool = False, binding: str = "JSONRPC") -> Client:
        config = ClientConfig(streaming=streaming, httpx_client=self.http, supported_protocol_bindings=[binding])
        return await ClientFactory(config).create_from_url(f"{self.url}/agents/{agent}" if agent else self.url)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up.set()


@asynccontextmanager
async def running(
    folder: Path,
    agents: Mapping[str, Agent | AgentExecutor | Callable[[AgentBuilder], Agent]],
    config: str = "",
    *,
    grace: float = 0,
) -> AsyncGenerator[Here]:
    """Serve `agents`, the first as the default, on the database of `folder`; `config` is what else the file would say."""
    names = "\n".join(
        f"  {name}: {{model: 'retinue_agents.testing:EchoModel', memory: off, default: {str(not index).lower()}}}"
        for index, name in enumerate(agents)
    )
    database = f"database: sqlite:////{folder.as_posix().lstrip('/')}/test.db"

    def executors(builder: AgentBuilder) -> dict[str, TurnExecutor]:
        built = {
            name: agent if isinstance(agent, Agent | AgentExecutor) else agent(builder)
            for name, agent in agents.items()
        }
        return {
            name: builder.as_executor(one) if isinstance(one, Agent) else turn_executor(one)
            for name, one in built.items()
        }

    served = build(
        parse_config(f"{database}\nserver: {{grace: {grace}}}\n{config}\nagents:\n{names}\n"), agents=executors
    )
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # said, or asyncio does not hurry
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(
        uvicorn.Config(
            served.app,
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    up = asyncio.create_task(server.up.wait())
    await asyncio.wait((serving, up), timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    assert server.up.is_set(), "the server did not come up"
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(
            base_url=url, headers={"A2A-Version": "1.0"}, timeout=SECONDS * 2, limits=limits
        ) as http:
            yield Here(url, http, served)
    finally:
        server.should_exit = True
        await serving


async def eventually(
    check: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str, seconds: float = SECONDS
) -> None:
    """Wait until `check` says so."""
    async with asyncio.timeout(seconds):
        while True:
            found = check()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)
    raise AssertionError(what)


def message(text: str | None = "hello", *, message_id: str = "", **fields: Any) -> Message:
    """A user's message, with an id of its own."""
    parts = [] if text is None else [Part(text=text)]
    return Message(message_id=message_id or uuid.uuid4().hex, role=Role.ROLE_USER, parts=parts, **fields)


def request(text: str | None = "hello", metadata: Mapping[str, Any] | None = None, **fields: Any) -> SendMessageRequest:
    made = SendMessageRequest(message=message(text, **fields))
    if metadata:
        made.metadata.update(metadata)
    return made


def rpc(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": "1", "method": method, "params": params}


async def events(client: Client, sent: SendMessageRequest) -> list[StreamResponse]:
    async with aclosing(cast("AsyncGenerator[StreamResponse]", client.send_message(sent))) as stream:
        return [event async for event in stream]


async def ask(client: Client, sent: SendMessageRequest) -> Task:
    """Send, block, and take the task."""
    return (await events(client, sent))[-1].task


async def begin(client: Client, sent: SendMessageRequest) -> Task:
    """Send without waiting for the answer."""
    sent.configuration.return_immediately = True
    return await ask(client, sent)


async def until(client: Client, task_id: str, *states: TaskState) -> Task:
    """Poll a task until it is in one of these states."""
    async with asyncio.timeout(SECONDS):
        while True:
            task = await client.get_task(GetTaskRequest(id=task_id))
            if task.status.state in states:
                return task
            await asyncio.sleep(0.005)


def texts(task: Task) -> list[str]:
    """What each artifact says."""
    return ["".join(part.text for part in artifact.parts) for artifact in task.artifacts]
