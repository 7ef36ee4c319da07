"""The eleven operations through the official client, on every binding, and what each binding refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import httpx
import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import (
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTasksRequest,
    Part,
    Role,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    TaskPushNotificationConfig,
    TaskState,
    a2a_pb2_grpc,
)
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from .conftest import Serve, Server
from .inprocess import ask, begin, events, message, request, rpc, texts, until

COMPLETED, WORKING = TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_WORKING
INPUT_REQUIRED, AUTH_REQUIRED = TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED
BINDINGS = ["JSONRPC", "HTTP+JSON", "GRPC", "0.3"]
HOOK = "https://hooks.invalid/a2a"
CONFIG = """\
server: {{grpc_port: {port}}}
push: {{allow: [127.0.0.1]}}
agents:
  actor: {{default: true, executor: "actor:Actor"}}
  picky: {{executor: "actor:Actor", input_modes: [text/plain]}}
  strict: {{executor: "actor:Actor", extensions: [{{uri: "urn:example:signed", required: true}}, {{uri: "urn:example:x"}}]}}
"""


@pytest.fixture(scope="module")
def stage(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    """A server of its own, and its gRPC port."""
    folder = tmp_path_factory.mktemp("bindings")
    shutil.copy(Path(__file__).with_name("actor.py"), folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(folder, CONFIG.format(port=port)) as server:
        yield server, port


@pytest.fixture
def server(stage: tuple[Server, int]) -> Server:
    return stage[0]


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, headers={"A2A-Version": "1.0"}, timeout=20) as client:
        yield client


class Connect:
    """Makes clients of one binding, and closes them."""

    def __init__(self, http: httpx.AsyncClient, binding: str) -> None:
        self.binding = binding
        self._http = http
        self._made: list[Client] = []

    async def __call__(self, *, streaming: bool = False) -> Client:
        """ "0.3" is JSON-RPC as a client of that version speaks it."""
        card = await A2ACardResolver(self._http, str(self._http.base_url)).get_agent_card()
        old = self.binding == "0.3"
        kept = [one for one in card.supported_interfaces if (one.protocol_version == "0.3") == old]
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(kept)
        config = ClientConfig(
            streaming=streaming,
            httpx_client=self._http,
            grpc_channel_factory=grpc.aio.insecure_channel,
            supported_protocol_bindings=["JSONRPC" if old else self.binding],
        )
        if old:
            self._http.headers.pop("A2A-Version", None)
        made = ClientFactory(config).create(card)
        self._made.append(made)
        return made

    async def close(self) -> None:
        if self.binding == "GRPC":
            for made in self._made:
                await made.close()


@pytest.fixture(params=BINDINGS)
async def connect(http: httpx.AsyncClient, request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    made = Connect(http, request.param)
    yield made
    await made.close()


@pytest.fixture
async def client(connect: Connect) -> Client:
    return await connect()


@pytest.fixture
async def streaming(connect: Connect) -> Client:
    return await connect(streaming=True)


def new_id() -> str:
    return uuid.uuid4().hex


# -- messages ------------------------------------------------------------------------------------------------------------


async def test_a_blocking_send_gets_the_ended_task(client: Client) -> None:
    """With its artifacts, its history, and the ids that the client chose."""
    context_id, message_id = new_id(), new_id()
    task = await ask(client, request("say:hello done", context_id=context_id, message_id=message_id))
    assert (task.status.state, texts(task), task.context_id) == (COMPLETED, ["hello"], context_id)
    assert (task.history[0].message_id, task.history[0].role) == (message_id, Role.ROLE_USER)
    assert task.status.HasField("timestamp")


async def test_a_send_may_return_at_once(client: Client) -> None:
    """The task is acknowledged before it ends, and goes on by itself."""
    task = await begin(client, request("work hang"))
    assert task.id
    assert task.status.state in (TaskState.TASK_STATE_SUBMITTED, WORKING)
    found = await until(client, task.id, WORKING)
    assert found.id == task.id
    assert (await client.cancel_task(CancelTaskRequest(id=task.id))).status.state == TaskState.TASK_STATE_CANCELED


async def test_a_stream_begins_with_the_task_and_ends_with_its_state(streaming: Client) -> None:
    """Every event in order, deltas coalesced and flagged."""
    heard = await events(streaming, request("work many:5 done"))
    kinds = [event.WhichOneof("payload") for event in heard]
    updates = [event.artifact_update for event in heard[2:-1]]
    assert kinds == ["task", "status_update", *["artifact_update"] * len(updates), "status_update"]
    pieces = [one.artifact.parts[0].text for one in updates]
    assert (pieces[0], "".join(pieces)) == ("0 ", "0 1 2 3 4 ")
    middle = [(True, False)] * (len(updates) - 2)
    assert [(one.append, one.last_chunk) for one in updates] == [(False, False), *middle, (True, True)]
    assert heard[-1].status_update.status.state == COMPLETED


async def test_history_is_as_long_as_asked_for(client: Client, connect: Connect) -> None:
    """The newest messages; 0: none; nothing said: all; negative is refused. In sends, gets and lists."""
    sent = request("ask")
    task = await ask(client, sent)
    for _ in range(2):
        await ask(client, request("ask", task_id=task.id))
    every = list((await client.get_task(GetTaskRequest(id=task.id))).history)
    assert len(every) == 5  # three messages, and the two questions that were answered
    for length in (1, 2, 100) if connect.binding == "0.3" else (0, 1, 2, 100):  # its client does not send 0
        found = await client.get_task(GetTaskRequest(id=task.id, history_length=length))
        assert list(found.history) == (every[-length:] if length else [])
    again = request("ask", task_id=task.id)
    again.configuration.history_length = 1
    assert [entry.parts[0].text for entry in (await ask(client, again)).history] == ["ask"]
    if connect.binding != "0.3":
        page = await client.list_tasks(ListTasksRequest(context_id=task.context_id, history_length=0))
        assert not page.tasks[0].history
    with pytest.raises(InvalidParamsError):
        await client.get_task(GetTaskRequest(id=task.id, history_length=-1))


async def test_a_follow_up_continues_its_task(client: Client) -> None:
    """By taskId, its context inferred, and by taskId with contextId; another context is refused."""
    for state, word in ((INPUT_REQUIRED, "ask"), (AUTH_REQUIRED, "auth")):
        asked = await ask(client, request(f"say:one {word}", {"user_id": "alice"}))
        assert asked.status.state == state
        assert asked.status.message.parts[0].text == word
        with pytest.raises(InvalidParamsError):
            await ask(client, request("done", task_id=asked.id, context_id="another"))
        with pytest.raises(InvalidParamsError):
            await ask(client, request("done", {"user_id": "bob"}, task_id=asked.id))
        again = await ask(client, request("say:two ask", task_id=asked.id))
        assert (again.id, again.context_id) == (asked.id, asked.context_id)
        done = await ask(client, request("done", task_id=asked.id, context_id=asked.context_id))
        assert (done.id, done.status.state, texts(done)) == (asked.id, COMPLETED, ["one", "two"])
        said = [entry.parts[0].text for entry in done.history if entry.role == Role.ROLE_USER]
        assert said == [f"say:one {word}", "say:two ask", "done"]
        with pytest.raises(UnsupportedOperationError if _new(client) else A2AError):
            await ask(client, request("done", task_id=asked.id))
    with pytest.raises(TaskNotFoundError):
        await ask(client, request("done", task_id="nowhere"))


def _new(client: Client) -> bool:
    return "Compat" not in type(client._transport).__name__  # type: ignore[attr-defined]  # pyright: ignore


async def test_a_follow_up_by_context_is_another_task(client: Client) -> None:
    """Of the same context."""
    first = await ask(client, request("done"))
    second = await ask(client, request("done", context_id=first.context_id))
    assert second.id != first.id
    assert second.context_id == first.context_id


async def test_an_agent_may_answer_with_a_message(client: Client, streaming: Client) -> None:
    """And nothing else; no task is listed."""
    for one in (client, streaming):
        heard = await events(one, request("direct:hello"))
        assert [event.message.parts[0].text for event in heard] == ["hello"]
        assert heard[0].message.role == Role.ROLE_AGENT


async def test_an_agent_may_reject_and_fail(client: Client) -> None:
    """The state says so, the message why; what crashed says nothing of its inside."""
    for text, state in (("reject", "REJECTED"), ("fail", "FAILED"), ("crash", "FAILED")):
        task = await ask(client, request(text))
        assert TaskState.Name(task.status.state) == f"TASK_STATE_{state}"
        assert task.status.message.parts[0].text
        assert "secret" not in str(task)


async def test_what_an_agent_says_must_be_storable(client: Client) -> None:
    """A number that JSON cannot say, or lists too deep, fail the task with the reason; it can be read like any other."""
    for text in ("nan", "deep"):
        task = await ask(client, request(text))
        assert task.status.state == TaskState.TASK_STATE_FAILED
        assert "stored" in task.status.message.parts[0].text
        assert (await client.get_task(GetTaskRequest(id=task.id))).status.state == TaskState.TASK_STATE_FAILED


# -- tasks ---------------------------------------------------------------------------------------------------------------


async def test_cancel_and_get(client: Client) -> None:
    """Once; what has ended cannot be canceled, what is not there is not found."""
    task = await ask(client, request("ask"))
    assert (await client.cancel_task(CancelTaskRequest(id=task.id))).status.state == TaskState.TASK_STATE_CANCELED
    with pytest.raises(TaskNotCancelableError):
        await client.cancel_task(CancelTaskRequest(id=task.id))
    for operation in (
        client.cancel_task(CancelTaskRequest(id="nowhere")),
        client.get_task(GetTaskRequest(id="nowhere")),
    ):
        with pytest.raises(TaskNotFoundError):
            await operation


async def test_subscribe_hears_what_follows(client: Client, streaming: Client) -> None:
    """The task first, then the follow-up's events; a task that has ended is refused, an unknown one not found."""
    task = await ask(client, request("say:one ask"))
    stream = cast("AsyncGenerator[StreamResponse]", streaming.subscribe(SubscribeToTaskRequest(id=task.id)))
    async with aclosing(stream):
        first = await anext(stream)
        assert (first.task.id, first.task.status.state) == (task.id, INPUT_REQUIRED)
        await ask(client, request("work say:two done", task_id=task.id))
        rest = [event async for event in stream]
    assert rest[-1].status_update.status.state == COMPLETED
    assert [event.artifact_update.artifact.parts[0].text for event in rest if event.HasField("artifact_update")] == [
        "two"
    ]
    for task_id, error in ((task.id, UnsupportedOperationError), ("nowhere", TaskNotFoundError)):
        with pytest.raises(error if _new(streaming) else A2AError):
            await anext(cast("AsyncGenerator[StreamResponse]", streaming.subscribe(SubscribeToTaskRequest(id=task_id))))


async def test_list_filters_and_pages(client: Client, connect: Connect) -> None:
    """By context, state and time; pages that hold every task once; artifacts when asked for. 0.3 has no list."""
    if connect.binding == "0.3":
        with pytest.raises(NotImplementedError):
            await client.list_tasks(ListTasksRequest())
        return
    context_id = new_id()
    made = [await ask(client, request(f"say:{n} {word}", context_id=context_id)) for n, word in enumerate(["done"] * 4)]
    made.append(await ask(client, request("ask", context_id=context_id)))
    newest = [task.id for task in reversed(made)]
    seen: list[str] = []
    token = ""
    for size in (2, 2, 1):
        page = await client.list_tasks(ListTasksRequest(context_id=context_id, page_size=2, page_token=token))
        assert (page.page_size, page.total_size, len(page.tasks)) == (2, 5, size)
        seen += [task.id for task in page.tasks]
        token = page.next_page_token
    assert (seen, token) == (newest, "")
    page = await client.list_tasks(ListTasksRequest(context_id=context_id, status=INPUT_REQUIRED))
    assert [task.id for task in page.tasks] == newest[:1]
    assert page.total_size == 1
    after = ListTasksRequest(context_id=context_id)
    after.status_timestamp_after.CopyFrom(made[2].status.timestamp)
    assert [task.id for task in (await client.list_tasks(after)).tasks] == newest[:2]
    assert not any(task.artifacts for task in page.tasks)
    page = await client.list_tasks(ListTasksRequest(context_id=context_id, include_artifacts=True))
    assert [texts(task) for task in page.tasks] == [[], ["3"], ["2"], ["1"], ["0"]]
    for wrong in (ListTasksRequest(page_size=0), ListTasksRequest(page_size=101), ListTasksRequest(page_token="x")):
        with pytest.raises(InvalidParamsError):
            await client.list_tasks(wrong)


# -- push configs, cards -------------------------------------------------------------------------------------------------


async def test_push_configs_are_kept(client: Client, connect: Connect) -> None:
    """Created, read, listed, deleted, deleted again; an id is made where none is given; unknown ones are not found."""
    task = await ask(client, request("ask"))
    made = await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task.id, id="mine", url="http://127.0.0.1:9/x", token="t")
    )
    assert (made.task_id, made.id, made.url, made.token) == (task.id, "mine", "http://127.0.0.1:9/x", "t")
    key = GetTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
    assert await client.get_task_push_notification_config(key) == made
    other = await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task.id, url="http://127.0.0.1:9/y")
    )
    assert other.id
    listing = ListTaskPushNotificationConfigsRequest(task_id=task.id)
    if connect.binding != "0.3":  # its client cannot read a list
        listed = (await client.list_task_push_notification_configs(listing)).configs
        assert {one.id for one in listed} == {"mine", other.id}
    gone = DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="mine")
    for _ in range(2):
        await client.delete_task_push_notification_config(gone)
    with pytest.raises(TaskNotFoundError):
        await client.get_task_push_notification_config(key)
    with pytest.raises(TaskNotFoundError):
        await client.create_task_push_notification_config(
            TaskPushNotificationConfig(task_id="nowhere", id="x", url="http://127.0.0.1:9/x")
        )
    with pytest.raises(InvalidParamsError):
        await client.create_task_push_notification_config(
            TaskPushNotificationConfig(task_id=task.id, id="x", url="http://169.254.169.254/latest")
        )


async def test_there_is_no_extended_card(http: httpx.AsyncClient, stage: tuple[Server, int]) -> None:
    """The error that the protocol has for it, on every binding, and in 0.3; the card says so, too."""
    answered = await http.post("/", json=rpc("GetExtendedAgentCard"))
    assert answered.json()["error"]["code"] == -32007
    answered = await http.post("/", json=rpc("agent/getAuthenticatedExtendedCard"), headers={"A2A-Version": "0.3"})
    assert answered.json()["error"]["code"] == -32007
    answered = await http.get("/rest/extendedAgentCard")
    assert answered.status_code == 400
    assert answered.json()["error"]["details"][0]["reason"] == "EXTENDED_AGENT_CARD_NOT_CONFIGURED"
    refused = await grpc_refusal(stage[1], "GetExtendedAgentCard", GetExtendedAgentCardRequest())
    assert error_info(refused)[0] == "EXTENDED_AGENT_CARD_NOT_CONFIGURED"
    config = ClientConfig(streaming=False, httpx_client=http)
    client = await ClientFactory(config).create_from_url(str(http.base_url))
    card = await client.get_extended_agent_card(GetExtendedAgentCardRequest())
    assert not card.capabilities.extended_agent_card  # the client has the public one, and does not ask


# -- errors and gates ----------------------------------------------------------------------------------------------------

UNKNOWN_TASK = {"reason": "TASK_NOT_FOUND", "domain": "a2a-protocol.org"}


async def test_errors_carry_their_info(http: httpx.AsyncClient, stage: tuple[Server, int]) -> None:
    """google.rpc.ErrorInfo with reason and domain, on all three bindings (spec 1.0, section 3.3.2)."""
    error = (await http.post("/", json=rpc("GetTask", id="nowhere"))).json()["error"]
    assert error["code"] == -32001
    assert error["data"][0] | UNKNOWN_TASK == error["data"][0]
    assert error["data"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    answered = await http.get("/rest/tasks/nowhere")
    error = answered.json()["error"]
    assert (answered.status_code, error["code"], error["status"]) == (404, 404, "NOT_FOUND")
    assert error["details"][0] | UNKNOWN_TASK == error["details"][0]
    refused = await grpc_refusal(stage[1], "GetTask", GetTaskRequest(id="nowhere"))
    assert refused.code() == grpc.StatusCode.NOT_FOUND
    assert error_info(refused) == ("TASK_NOT_FOUND", "a2a-protocol.org")


async def grpc_refusal(
    port: int, method: str, sent: Any, version: str | None = "1.0", *more: tuple[str, str]
) -> grpc.aio.AioRpcError:
    metadata = ((("a2a-version", version),) if version is not None else ()) + more
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(sent, metadata=metadata)
        return caught.value


def error_info(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    details: dict[str, str | bytes] = dict(error.trailing_metadata() or ())
    found = status_pb2.Status.FromString(cast(bytes, details["grpc-status-details-bin"]))
    info = error_details_pb2.ErrorInfo()
    assert found.details[0].Unpack(info)
    return info.reason, info.domain


@pytest.mark.parametrize("version", [None, "0.3", "2.0", "x", ""])
async def test_another_version_is_refused(
    http: httpx.AsyncClient, stage: tuple[Server, int], version: str | None
) -> None:
    """Methods of 1.0 want A2A-Version 1.0, on every binding; no word means 0.3 (spec 1.0, section 3.6.2)."""
    http.headers.pop("A2A-Version")
    headers = {} if version is None else {"A2A-Version": version}
    said = {"messageId": new_id(), "role": "ROLE_USER", "parts": [{"text": "done"}]}
    for method, params in (
        ("SendMessage", {"message": said}),
        ("SendStreamingMessage", {"message": said}),
        ("GetTask", {"id": "x"}),
    ):
        answered = await http.post("/", json=rpc(method, **params), headers=headers)
        assert answered.json()["error"]["code"] == -32009
    for call in (
        http.post("/rest/message:send", json={"message": said}, headers=headers),
        http.post("/rest/message:stream", json={"message": said}, headers=headers),
        http.get("/rest/tasks/x", headers=headers),
    ):
        answered = await call
        assert answered.status_code == 400
        assert answered.json()["error"]["details"][0]["reason"] == "VERSION_NOT_SUPPORTED"
    for grpc_method, sent in (
        ("GetTask", GetTaskRequest(id="x")),
        ("SendMessage", SendMessageRequest(message=message("done"))),
    ):
        refused = await grpc_refusal(stage[1], grpc_method, sent, version)
        assert error_info(refused)[0] == "VERSION_NOT_SUPPORTED"


async def test_a_patch_of_the_version_is_the_version(http: httpx.AsyncClient) -> None:
    """1.0.1 is spoken to like 1.0."""
    for version in ("1.0", "1.0.1"):
        answered = await http.post("/", json=rpc("GetTask", id="x"), headers={"A2A-Version": version})
        assert answered.json()["error"]["code"] == -32001


async def test_a_media_type_that_is_not_taken_is_refused(http: httpx.AsyncClient) -> None:
    """ContentTypeNotSupported, nothing stored; what the card names is taken, and what has no type."""
    picture = {"url": "https://example.com/x.png", "mediaType": "image/png"}
    context_id = new_id()

    async def send(part: dict[str, Any]) -> dict[str, Any]:
        said = {"messageId": new_id(), "role": "ROLE_USER", "contextId": context_id, "parts": [{"text": "done"}, part]}
        return dict((await http.post("/agents/picky/", json=rpc("SendMessage", message=said))).json())

    refused = (await send(picture))["error"]
    assert refused["code"] == -32005
    assert "text/plain" in refused["message"]
    found = await http.post("/agents/picky/", json=rpc("ListTasks", contextId=context_id))
    assert not found.json()["result"].get("tasks")
    for part in ({"text": "x", "mediaType": "text/plain"}, {"text": "x"}):
        assert "result" in await send(part)
    said = message("done", context_id=context_id)
    said.parts.append(Part(url="https://example.com/x.png", media_type="image/png"))
    config = ClientConfig(streaming=False, httpx_client=http, supported_protocol_bindings=["HTTP+JSON"])
    picky = await ClientFactory(config).create_from_url(f"{str(http.base_url).rstrip('/')}/agents/picky")
    with pytest.raises(ContentTypeNotSupportedError):
        await ask(picky, SendMessageRequest(message=said))


async def test_grpc_takes_no_garbage(stage: tuple[Server, int]) -> None:
    """NaN, deep values, odd ids and long messages are refused as such, with ErrorInfo or by gRPC; nothing is stored."""
    odd, deep, control = request(), request(), request()
    odd.metadata.update({"a": float("nan")})
    nested: Any = "x"
    for _ in range(30):
        nested = {"a": nested}
    deep.message.metadata.update({"a": nested})
    control.message.context_id = "a\nb"
    for sent in (odd, deep, control, SendMessageRequest()):
        refused = await grpc_refusal(stage[1], "SendMessage", sent)
        assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error_info(refused) == ("INVALID_PARAMS", "a2a-protocol.org")
    long = await grpc_refusal(stage[1], "SendMessage", request("x" * 11 * 2**20))
    assert long.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_grpc_caller_who_hangs_up_loses_no_message(stage: tuple[Server, int]) -> None:
    """Wherever in a send the call is cancelled: what was stored is run, and others who wait for it get their answer."""
    context = [new_id() for _ in range(40)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stage[1]}") as channel:
        stub: Any = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = (("a2a-version", "1.0"),)
        sent = [request("say:x done", context_id=one) for one in context]
        for index, one in enumerate(sent):
            call = stub.SendMessage(one, metadata=metadata)
            for _ in range(index):
                await asyncio.sleep(0.0001)
            call.cancel()
        listed: list[Any] = []
        for context_id in context:
            async with asyncio.timeout(10):
                while True:
                    page = await stub.ListTasks(ListTasksRequest(context_id=context_id), metadata=metadata)
                    if all(task.status.state == COMPLETED for task in page.tasks):
                        break
                    await asyncio.sleep(0.01)
            listed += page.tasks
        again = [await stub.SendMessage(one, metadata=metadata) for one in sent]
        assert {answer.task.status.state for answer in again} == {COMPLETED}
        assert {task.id for task in listed} <= {answer.task.id for answer in again}


# -- the card ------------------------------------------------------------------------------------------------------------


async def test_a_required_extension_must_be_named(http: httpx.AsyncClient) -> None:
    """Over JSON-RPC and REST: the card says which, and a request that does not name it is refused and stores nothing."""
    base = "/agents/strict"
    card = (await http.get(f"{base}/.well-known/agent-card.json")).json()
    ours, *configured = card["capabilities"]["extensions"]
    assert ours["uri"] == "urn:retinue:a2a:generation:v1"
    assert configured == [
        {"uri": "urn:example:signed", "required": True},
        {"uri": "urn:example:x", "required": False},
    ]
    version = {"A2A-Version": "1.0"}
    said = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "done"}]}
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": said}}
    refused = (await http.post(f"{base}/", json=call, headers=version)).json()["error"]
    assert refused["code"] == -32008
    assert "urn:example:signed" in refused["message"]
    path = f"{base}/rest/message:send"
    assert (await http.post(path, json={"message": said}, headers=version)).status_code == 400
    assert (await http.get(f"{base}/rest/tasks", headers=version)).json().get("tasks", []) == []
    named = version | {"A2A-Extensions": "urn:example:x, urn:example:signed"}
    assert (await http.post(path, json={"message": said}, headers=named)).status_code == 200
    again = (await http.post(f"{base}/", json=call, headers=named)).json()
    assert again["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_the_card_names_its_bindings_and_can_be_cached(
    http: httpx.AsyncClient, stage: tuple[Server, int]
) -> None:
    """gRPC too; Cache-Control, ETag and Last-Modified are sent, and each of the conditions gets a 304."""
    first = await http.get("/.well-known/agent-card.json")
    interfaces = first.json()["supportedInterfaces"]
    assert {(one["protocolBinding"], one["protocolVersion"]) for one in interfaces} == {
        ("JSONRPC", "1.0"),
        ("JSONRPC", "0.3"),
        ("HTTP+JSON", "1.0"),
        ("GRPC", "1.0"),
    }
    assert next(one["url"] for one in interfaces if one["protocolBinding"] == "GRPC") == f"127.0.0.1:{stage[1]}"
    capabilities = first.json()["capabilities"]
    assert [one["uri"] for one in capabilities.pop("extensions")] == ["urn:retinue:a2a:generation:v1"]
    assert capabilities == {"streaming": True, "pushNotifications": True}
    headers = first.headers
    assert "max-age" in headers["cache-control"]
    for name, value in (("If-None-Match", headers["etag"]), ("If-Modified-Since", headers["last-modified"])):
        again = await http.get("/.well-known/agent-card.json", headers={name: value})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == headers["etag"]
    other = {"If-None-Match": '"x"', "If-Modified-Since": headers["last-modified"]}
    assert (await http.get("/.well-known/agent-card.json", headers=other)).status_code == 200  # the tag decides
    elsewhere = (await http.get("/agents/picky/.well-known/agent-card.json")).json()
    assert "GRPC" not in json.dumps(elsewhere)
    assert elsewhere["defaultInputModes"] == ["text/plain"]
