"""The server from outside: its addresses, cards, bindings and refusals, through a real process and the official client."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Part,
    SendMessageRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import A2AError, InvalidParamsError, TaskNotFoundError

from .conftest import CONFIG, Serve, Server
from .inprocess import events, message, rpc

CARD = "/.well-known/agent-card.json"


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, headers={"A2A-Version": "1.0"}, timeout=20) as client:
        yield client


async def send(
    client: Client, text: str | None = "hello", metadata: dict[str, Any] | None = None, **fields: Any
) -> Task:
    request = SendMessageRequest(message=message(text, **fields))
    if metadata:
        request.metadata.update(metadata)
    return (await events(client, request))[-1].task


def answer(task: Task) -> str:
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


async def connect(
    http: httpx.AsyncClient, agent: str = "", *, binding: str = "JSONRPC", streaming: bool = False
) -> Client:
    config = ClientConfig(streaming=streaming, httpx_client=http, supported_protocol_bindings=[binding])
    base = str(http.base_url).rstrip("/")
    return await ClientFactory(config).create_from_url(f"{base}/agents/{agent}" if agent else base)


async def test_it_is_healthy(http: httpx.AsyncClient) -> None:
    """/healthz answers 200 with JSON."""
    answered = await http.get("/healthz")
    assert (answered.status_code, answered.json()) == (200, {"status": "ok"})


async def test_it_lists_its_agents(http: httpx.AsyncClient, server: Server) -> None:
    """GET /agents names every agent with its address and card, and says which is the default."""
    listed = (await http.get("/agents")).json()
    assert listed[0] == {
        "name": "echo",
        "description": "Says it again.",
        "url": f"{server.url}/agents/echo/",
        "default": True,
        "card": f"{server.url}/agents/echo{CARD}",
    }
    assert [entry["name"] for entry in listed] == ["echo", "reciter", "rememberer", "failing", "upper", "direct"]
    assert [entry["name"] for entry in listed if entry["default"]] == ["echo"]
    assert (await http.get("/agents/")).json() == listed
    for entry in listed:
        assert (await http.get(entry["card"])).status_code == 200


async def test_the_card_says_what_and_where(http: httpx.AsyncClient, server: Server) -> None:
    """The default agent's card at / and its own address: both JSON-RPC versions on one URL, REST below rest/."""
    at_root, at_name = (await http.get(CARD)).json(), (await http.get(f"/agents/echo{CARD}")).json()
    for card, base in ((at_root, server.url), (at_name, f"{server.url}/agents/echo")):
        assert card["supportedInterfaces"] == [
            {"url": f"{base}/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": f"{base}/", "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
            {"url": f"{base}/rest", "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"},
        ]
        assert card["url"] == f"{base}/"  # where a 0.3 client looks
        assert (card["name"], card["description"], card["version"]) == ("echo", "Says it again.", "1.0.0")
        assert card["capabilities"]["streaming"] is True
        assert card["provider"] == {"organization": "Example", "url": "https://example.com"}
        assert card["defaultInputModes"] == ["text/plain", "application/json"]
        assert card["defaultOutputModes"] == ["text/plain"]
        assert card["skills"] == [
            {
                "id": "repeat",
                "name": "Repeat",
                "description": "Says it again.",
                "tags": ["words"],
                "examples": ["Hello"],
            }
        ]


async def test_the_card_is_cached_by_its_tag(http: httpx.AsyncClient) -> None:
    """Cache-Control and ETag are sent; a client that has the card gets 304; another host gets another card."""
    first = await http.get(CARD)
    assert "max-age" in first.headers["cache-control"]
    assert (await http.get(CARD, headers={"If-None-Match": first.headers["etag"]})).status_code == 304
    assert (await http.get(CARD, headers={"If-None-Match": '"other"'})).status_code == 200
    elsewhere = await http.get(CARD, headers={"Host": "agents.example.com"})
    assert elsewhere.json()["supportedInterfaces"][0]["url"] == "http://agents.example.com/"
    assert elsewhere.headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
@pytest.mark.parametrize("agent", ["", "echo"])
async def test_the_official_client_gets_an_answer(http: httpx.AsyncClient, agent: str, binding: str) -> None:
    """Blocking and streaming sends, get, list and cancel work on both bindings, at / and at /agents/{name}/."""
    client = await connect(http, agent, binding=binding)
    task = await send(client, "hello there", {"user_id": "alice"})
    assert (task.status.state, answer(task)) == (TaskState.TASK_STATE_COMPLETED, "hello there")
    assert answer(await client.get_task(GetTaskRequest(id=task.id))) == "hello there"
    page = await client.list_tasks(ListTasksRequest(context_id=task.context_id))
    assert [found.id for found in page.tasks] == [task.id]
    with pytest.raises(A2AError):
        await client.cancel_task(CancelTaskRequest(id=task.id))  # it has ended
    streamed = await events(
        await connect(http, agent, binding=binding, streaming=True), SendMessageRequest(message=message("one two"))
    )
    kinds = [event.WhichOneof("payload") for event in streamed]
    assert kinds[0] == "task"
    assert "artifact_update" in kinds
    assert streamed[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED


@pytest.mark.parametrize("base", ["/", "/agents/echo/", "/agents/echo"])
async def test_an_old_client_gets_an_answer(http: httpx.AsyncClient, base: str) -> None:
    """A2A 0.3 works on the same address, with or without the slash."""
    said = {"kind": "message", "messageId": "m1", "role": "user", "parts": [{"kind": "text", "text": "hello"}]}
    answered = await http.post(base, json=rpc("message/send", message=said), headers={"A2A-Version": ""})
    result = answered.json()["result"]
    assert (result["kind"], result["status"]["state"]) == ("task", "completed")
    assert result["artifacts"][0]["parts"][0]["text"] == "hello"


async def test_an_old_client_hears_a_stream(http: httpx.AsyncClient) -> None:
    """A2A 0.3 streams too, and its bad requests are refused as such."""
    said = {"kind": "message", "messageId": "old", "role": "user", "parts": [{"kind": "text", "text": "hello"}]}
    old = {"A2A-Version": ""}
    streamed = await http.post("/", json=rpc("message/stream", message=said), headers=old)
    heard = [json.loads(line.removeprefix("data:"))["result"] for line in streamed.text.splitlines() if "data:" in line]
    assert [event["kind"] for event in heard][0::3] == ["task", "status-update"]
    assert heard[-1]["status"]["state"] == "completed"
    refused = await http.post("/", json=rpc("message/send", message=said | {"metadata": {"user_id": ""}}), headers=old)
    assert refused.json()["error"]["code"] == -32602


async def test_an_unknown_agent_is_404_and_says_who_is_there(http: httpx.AsyncClient) -> None:
    """Whatever the method and the path below it."""
    for method, path in (("POST", "/agents/nobody/"), ("POST", "/agents/nobody"), ("GET", f"/agents/nobody{CARD}")):
        answered = await http.request(method, path, json=rpc("SendMessage"))
        assert answered.status_code == 404
        assert answered.json()["agents"] == ["echo", "reciter", "rememberer", "failing", "upper", "direct"]
        assert "'nobody'" in answered.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/agents/echo/nowhere", 404),
        ("POST", "/rest/message:shout", 404),
        ("GET", "/", 405),
    ],
)
async def test_what_is_not_there_is_json_too(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    """No answer of the server is a page of HTML or plain text."""
    answered = await http.request(method, path)
    assert (answered.status_code, next(iter(answered.json()))) == (status, "error")


BAD_USERS: dict[str, Any] = {
    "empty": "",
    "blank": "  ",
    "fraction": 1.5,
    "too large": 2**53,
    "too small": -(2**53),
    "boolean": True,
    "null": None,
    "list": ["alice"],
    "object": {"id": "alice"},
    "control character": "al\u0000ice",
    "endless": "a" * 10_000,
}


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("agent", ["echo", "upper"])
async def test_a_bad_user_is_refused_before_anything_runs(
    http: httpx.AsyncClient, agent: str, streaming: bool, binding: str
) -> None:
    """user_id is a non-empty string or a whole number below 2^53: anything else is InvalidParams, and no task is stored."""
    client = await connect(http, agent, binding=binding, streaming=streaming)
    context_id = uuid.uuid4().hex
    for user in BAD_USERS.values():
        with pytest.raises(InvalidParamsError, match="user_id"):
            await send(client, "hello", {"user_id": user}, context_id=context_id)
    assert not (await client.list_tasks(ListTasksRequest(context_id=context_id))).tasks


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_message_without_text_is_refused_by_a_model(http: httpx.AsyncClient, streaming: bool) -> None:
    """No parts, no text, only blanks: InvalidParams with the reason, and no task is stored."""
    client = await connect(http, streaming=streaming)
    context_id = uuid.uuid4().hex
    blank, picture = message("  \n"), message(None)
    picture.parts.append(Part(url="https://example.com/x.png", media_type="image/png"))
    for said in (message(None), message(""), blank, picture):
        said.context_id = context_id
        with pytest.raises(InvalidParamsError):
            await events(client, SendMessageRequest(message=said))
    assert not (await client.list_tasks(ListTasksRequest(context_id=context_id))).tasks


async def test_a_message_without_text_is_welcome_to_an_executor(http: httpx.AsyncClient) -> None:
    """What a foreign executor accepts is its own matter."""
    client = await connect(http, "upper")
    picture = message(None)
    picture.parts.append(Part(url="https://example.com/x.png", media_type="image/png"))
    task = (await events(client, SendMessageRequest(message=picture)))[-1].task
    assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED


async def test_a_follow_up_by_task_alone_keeps_its_context(http: httpx.AsyncClient) -> None:
    """The context is inferred from the task; another context, and an unknown task, are refused."""
    client = await connect(http, "upper")
    asked = await send(client, "hello", {"user_id": 42})
    assert asked.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
    with pytest.raises(InvalidParamsError):
        await send(client, "loud", task_id=asked.id, context_id="another")
    with pytest.raises(TaskNotFoundError):
        await send(client, "loud", task_id="nowhere")
    done = await send(client, "loud", task_id=asked.id)
    assert (done.id, done.context_id) == (asked.id, asked.context_id)
    assert done.status.message.parts[0].text == "LOUD"


async def test_an_executor_may_answer_with_a_message(http: httpx.AsyncClient) -> None:
    """A direct Message is passed on as such."""
    answered = await events(await connect(http, "direct"), SendMessageRequest(message=message()))
    assert [event.message.parts[0].text for event in answered] == ["hello"]


async def test_a_failing_model_fails_the_task_with_its_reason(http: httpx.AsyncClient) -> None:
    """The caller learns why, and gets no stack trace."""
    task = await send(await connect(http, "failing"))
    assert task.status.state == TaskState.TASK_STATE_FAILED
    assert "the model is out of order" in task.status.message.parts[0].text


async def test_a_context_is_a_conversation(http: httpx.AsyncClient) -> None:
    """The next message of a context comes with what was said before; another user's in a context of that name does not."""
    client = await connect(http, "reciter")
    context_id = uuid.uuid4().hex
    await send(client, "I am Alice", {"user_id": "alice"}, context_id=context_id)
    again = await send(client, "Who am I?", {"user_id": "alice"}, context_id=context_id)
    assert answer(again).splitlines()[:2] == ["system: Recite.", "user: I am Alice"]
    assert answer(again).splitlines()[-1] == "user: Who am I?"
    other = await send(client, "Who am I?", {"user_id": "bob"}, context_id=context_id)
    assert "Alice" not in answer(other)
    elsewhere = await send(client, "Who am I?", {"user_id": "alice"})
    assert answer(elsewhere).splitlines() == ["system: Recite.", "user: Who am I?"]


async def test_a_tenant_is_apart(http: httpx.AsyncClient) -> None:
    """A task of one tenant is not found by another."""
    client = await connect(http)
    request = SendMessageRequest(message=message(), tenant="red")
    task = (await events(client, request))[-1].task
    assert (await client.get_task(GetTaskRequest(id=task.id, tenant="red"))).id == task.id
    for tenant in ("blue", ""):
        with pytest.raises(TaskNotFoundError):
            await client.get_task(GetTaskRequest(id=task.id, tenant=tenant))


async def test_memory_survives_a_restart(serve: Serve, tmp_path: Path) -> None:
    """What a user said in one conversation is known in another, after a restart, and to nobody else."""
    said = {"user_id": "alice"}
    for turn in range(2):
        with serve(tmp_path) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
                client = await connect(http, "rememberer")
                if turn == 0:
                    await send(client, "My bicycle is green", said)
                mine = await send(client, "Which colour is my bicycle?", said)
                theirs = await send(client, "Which colour is my bicycle?", {"user_id": "bob"})
                assert "My bicycle is green" in answer(mine)
                assert "green" not in answer(theirs)


async def test_public_url_is_what_the_cards_say(serve: Serve, tmp_path: Path) -> None:
    """Behind a proxy, cards and the list name the address that callers use."""
    config = f"server: {{public_url: https://agents.example.com/here/}}\n{CONFIG}"
    with serve(tmp_path, config) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            card = (await http.get(f"/agents/upper{CARD}")).json()
            assert card["supportedInterfaces"][0]["url"] == "https://agents.example.com/here/agents/upper/"
            assert (await http.get("/agents")).json()[0]["url"] == "https://agents.example.com/here/agents/echo/"
