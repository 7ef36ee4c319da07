"""TaskClient: send a task and wait for it, from a script. Async code uses the official client, which it wraps, directly."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx
from a2a.client import A2AClientError, Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientTimeoutError, AgentCardResolutionError
from a2a.types import GetTaskRequest, Message, Part, Role, SendMessageRequest, StreamResponse, Task, TaskState
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT, VERSION_HEADER
from a2a.utils.errors import JSON_RPC_ERROR_CODE_MAP, A2AError

from retinue_memory.background import LoopClosed, LoopThread
from retinue_memory.errors import RetinueError

if TYPE_CHECKING:
    from google.protobuf.message import Message as Protobuf

T = TypeVar("T")

URL = "http://127.0.0.1:9000"
CONNECT_TIMEOUT_S = 5.0
_FAILED = (TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_REJECTED, TaskState.TASK_STATE_CANCELED)
_UNDER_WAY = (TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING)


class CallError(RetinueError):
    """The server refused the call or did not answer: check the address, the agent's name and what was sent.

    `code` is the A2A error code (-32602: invalid params), or None if no answer came.
    """

    def __init__(self, problem: str, *, code: int | None = None) -> None:
        super().__init__(problem)
        self.code = code


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """The result of a task. `task` is the protocol's; an agent that answers without a task leaves only `message`."""

    task: Task | None
    message: Message | None = None

    @property
    def id(self) -> str:
        return self.task.id if self.task else ""

    @property
    def context_id(self) -> str:
        """The id of the conversation: send the next message with it to continue."""
        return (self.task or self._message).context_id

    @property
    def state(self) -> str:
        """ "completed", "failed", "input-required", "canceled", "rejected", ... as A2A calls them."""
        if self.task is None:
            return "completed"
        return TaskState.Name(self.task.status.state).removeprefix("TASK_STATE_").lower().replace("_", "-")

    @property
    def text(self) -> str:
        """The answer; if there is none, what the agent said with the task's state (a question, a reason)."""
        if self.task is None:
            return _text(self._message.parts)
        answers = [_text(artifact.parts) for artifact in self.task.artifacts]
        return "\n".join(answer for answer in answers if answer) or _text(self.task.status.message.parts)

    @property
    def error(self) -> str | None:
        """Why the task failed, was rejected or canceled. None if it was not."""
        if self.task is None or self.task.status.state not in _FAILED:
            return None
        return _text(self.task.status.message.parts) or f"the task was {self.state}, without a reason"

    def to_dict(self) -> dict[str, Any]:
        """Convert the task (or the message) to the protocol's JSON."""
        from google.protobuf.json_format import MessageToDict

        answer: Protobuf = self.task or self._message
        return MessageToDict(answer)

    @property
    def _message(self) -> Message:
        return self.message or Message()


class TaskClient:
    """Calls the agents of one server, synchronously, from any thread (one with a running event loop too).

    `url` is the server's address, or one agent's own (".../agents/helper"). `key` travels as a bearer token. `timeout`
    is how many seconds the server may be silent. Use it as a context manager, or `close()` it.
    """

    def __init__(self, url: str = URL, key: str | None = None, *, timeout: float = 120.0) -> None:
        self._url = url.rstrip("/")
        self._clients: dict[tuple[str | None, bool], Client] = {}
        self._loop = LoopThread("task-client")
        headers = {VERSION_HEADER: PROTOCOL_VERSION_CURRENT} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_S))

    def send_task(
        self,
        message: str | Message,
        metadata: Mapping[str, Any] | None = None,
        *,
        context_id: str | None = None,
        task_id: str | None = None,
        agent: str | None = None,
        stream: Callable[[str], object] | None = None,
    ) -> FinishedTask:
        """Send a message, wait until its task is done or asks for more, and return it.

        `metadata` is the request's: {"user_id": ...} says whose memory it is. `context_id` continues a conversation,
        `task_id` a task that asked for input. `agent` names one that is not the server's default. `stream` is called with
        each piece of the answer as it comes, in another thread. A failed task is returned like any other (see `error`).
        Raises CallError if the server refuses the message or cannot be reached.
        """
        request = SendMessageRequest(message=_message(message))
        if context_id is not None:
            request.message.context_id = context_id
        if task_id is not None:
            request.message.task_id = task_id
        if metadata:
            request.metadata.update(metadata)
        return self._run(partial(self._send, request, agent, stream))

    def agents(self) -> list[dict[str, Any]]:
        """List the agents: name, description, url, default and card of each. Raises CallError."""
        return self._run(self._agents)

    def close(self) -> None:
        """Close the connections. May be repeated."""
        self._loop.close(self._http.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return self._loop.wait(work)
        except LoopClosed:
            raise CallError("this client is closed: create another") from None

    async def _send(
        self, request: SendMessageRequest, agent: str | None, stream: Callable[[str], object] | None
    ) -> FinishedTask:
        try:
            client = await self._client(agent, streaming=stream is not None)
            task = Task()
            sent = cast("AsyncGenerator[StreamResponse]", client.send_message(request))
            async with aclosing(sent) as events:
                async for event in events:
                    if event.HasField("message"):
                        return FinishedTask(None, event.message)
                    _follow(task, event)
                    if stream and event.HasField("artifact_update"):
                        stream(_text(event.artifact_update.artifact.parts))
            if task.status.state in _UNDER_WAY:  # the stream ended before the task did
                task = await client.get_task(GetTaskRequest(id=task.id))
            return FinishedTask(task)
        except A2AError as error:
            raise self._explain(error) from error

    async def _client(self, agent: str | None, *, streaming: bool) -> Client:
        known = self._clients.get((agent, streaming))
        if known is None:
            factory = ClientFactory(ClientConfig(streaming=streaming, httpx_client=self._http))
            url = f"{self._url}/agents/{agent}" if agent else self._url
            try:
                known = await factory.create_from_url(url)
            except AgentCardResolutionError as error:
                if error.status_code == 404 and agent:
                    names = ", ".join(entry["name"] for entry in await self._agents())
                    raise CallError(f"there is no agent {agent!r} at {self._url}; it has: {names}") from error
                raise
            self._clients[agent, streaming] = known
        return known

    async def _agents(self) -> list[dict[str, Any]]:
        try:
            answer = await self._http.get(f"{self._url}/agents")
            answer.raise_for_status()
            found: list[dict[str, Any]] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._explain(error) from error
        return found

    def _explain(self, error: Exception) -> CallError:
        """Explain an error to someone who does not know the protocol."""
        cause = error.__cause__ if isinstance(error, A2AClientError) and error.__cause__ else error
        match cause:
            case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.UnsupportedProtocol():
                return CallError(
                    f"no server answers at {self._url}: start one with `retinue serve`, or check the address"
                )
            case httpx.TimeoutException() | A2AClientTimeoutError():
                return CallError(f"{self._url} did not answer in time")
            case httpx.HTTPStatusError(response=response):
                return CallError(f"{self._url} answered {response.status_code} {response.reason_phrase}")
            case httpx.HTTPError():
                return CallError(f"the connection to {self._url} broke: {str(cause) or type(cause).__name__}")
            case ValueError():
                return CallError(f"{self._url} answered with something that is not JSON: is it a Retinue server?")
            case _:
                code = next((code for kind, code in JSON_RPC_ERROR_CODE_MAP.items() if type(error) is kind), None)
                return CallError(str(error), code=code)


def list_agents(url: str = URL, key: str | None = None) -> list[dict[str, Any]]:
    """Call `TaskClient.agents` once."""
    with TaskClient(url, key) as client:
        return client.agents()


def _message(message: str | Message) -> Message:
    if isinstance(message, Message):
        return message
    return Message(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=[Part(text=message)])


def _follow(task: Task, event: StreamResponse) -> None:
    """Apply an event to `task`."""
    match event.WhichOneof("payload"):
        case "task":
            task.CopyFrom(event.task)
        case "status_update":
            task.status.CopyFrom(event.status_update.status)
            task.metadata.MergeFrom(event.status_update.metadata)
        case "artifact_update":
            new = event.artifact_update.artifact
            known = next((artifact for artifact in task.artifacts if artifact.artifact_id == new.artifact_id), None)
            if known is None:
                task.artifacts.append(new)
            elif event.artifact_update.append:
                known.parts.extend(new.parts)
            else:
                known.CopyFrom(new)
        case _:
            pass


def _text(parts: Any) -> str:
    return "".join(part.text for part in parts)
