"""TaskClient: what a script sees of a server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from a2a.types import Message, Part, Role

from retinue_memory.errors import RetinueError
from retinue_server import TaskClient
from retinue_server.client import CallError, list_agents

from .conftest import Server


@pytest.fixture
def nowhere() -> str:
    """An address that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_task_is_sent_and_comes_back_finished(server: Server) -> None:
    """The call of the seed document, with what a script wants to know of the answer."""
    with TaskClient(server.url) as task_client:
        done = task_client.send_task(message="I am from Italy", metadata={"user_id": "alice"})
        assert (done.text, done.state, done.error) == ("I am from Italy", "completed", None)
        assert done.task is not None
        assert (done.id, done.context_id) == (done.task.id, done.task.context_id)
        assert done.task.metadata["user_id"] == "alice"
        again = task_client.send_task(message="And you?", metadata={"user_id": "alice"}, context_id=done.context_id)
        assert again.context_id == done.context_id
        assert again.id != done.id


def test_the_answer_can_be_heard_as_it_comes(server: Server) -> None:
    """`stream` gets the pieces; together they are the text."""
    pieces: list[str] = []
    with TaskClient(server.url) as client:
        done = client.send_task("What?", agent="reciter", stream=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == done.text == "system: Recite.\nuser: What?\n"


def test_any_message_can_be_sent(server: Server) -> None:
    """A protocol message goes as it is; a server's address may be that of one agent."""
    said = Message(message_id="mine", role=Role.ROLE_USER, parts=[Part(text="one"), Part(text="two")])
    with TaskClient(f"{server.url}/agents/echo/") as client:
        assert client.send_task(said).text == "one\ntwo"


def test_a_task_that_asks_goes_on_by_its_id(server: Server) -> None:
    """input-required is a state like another; what the agent asks is the text."""
    with TaskClient(server.url) as client:
        asked = client.send_task("hello", agent="upper")
        assert (asked.state, asked.text, asked.error) == ("input-required", "how loud?", None)
        done = client.send_task("loud", task_id=asked.id, agent="upper")
        assert (done.state, done.text, done.id) == ("completed", "LOUD", asked.id)


@pytest.mark.parametrize("stream", [None, print])
def test_an_answer_without_a_task_is_one_too(server: Server, stream: None) -> None:
    """An agent may answer with a message."""
    with TaskClient(server.url) as client:
        done = client.send_task("hi", agent="direct", stream=stream)
    assert (done.task, done.text, done.state, done.error) == (None, "hello", "completed", None)
    assert done.to_dict()["parts"] == [{"text": "hello"}]


def test_a_failed_task_is_returned_with_its_reason(server: Server) -> None:
    """A failure of the agent is an outcome, not an exception."""
    with TaskClient(server.url) as client:
        done = client.send_task("hello", agent="failing")
    assert done.state == "failed"
    assert "the model is out of order" in (done.error or "")


def test_what_the_server_refuses_raises_with_its_code(server: Server) -> None:
    """A protocol error carries the A2A code and the server's words."""
    with TaskClient(server.url) as client:
        with pytest.raises(CallError, match="user_id: expected a non-empty string") as refused:
            client.send_task("hello", {"user_id": ""})
        assert refused.value.code == -32602
        with pytest.raises(CallError) as unknown:
            client.send_task("hello", task_id="nowhere")
        assert unknown.value.code == -32001


def test_an_unknown_agent_is_told_with_those_that_there_are(server: Server) -> None:
    """Someone who mistypes a name sees the right one."""
    with TaskClient(server.url) as client, pytest.raises(CallError, match=r"no agent 'ecko' .*: echo, reciter"):
        client.send_task("hello", agent="ecko")


@pytest.mark.parametrize("agent", [None, "helper"])
def test_no_server_is_one_clear_error(nowhere: str, agent: str | None) -> None:
    """The message says what to do."""
    with TaskClient(nowhere) as client, pytest.raises(RetinueError, match=r"no server answers at .*retinue serve"):
        client.send_task("hello", agent=agent)
    with pytest.raises(RetinueError, match="no server answers at"):
        list_agents(nowhere)


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_one_clear_error(url: str) -> None:
    """Not an exception of the HTTP library."""
    with TaskClient(url) as client, pytest.raises(RetinueError, match="no server answers at"):
        client.send_task("hello")


async def test_it_works_where_an_event_loop_runs(server: Server) -> None:
    """In a notebook, say, whose own loop is running in the same thread."""
    assert asyncio.get_running_loop().is_running()
    with TaskClient(server.url) as client:
        assert client.send_task("hello").text == "hello"


def test_the_agents_are_listed(server: Server) -> None:
    """As the server lists them."""
    assert [entry["name"] for entry in list_agents(server.url)][:2] == ["echo", "reciter"]


def test_closing_twice_is_fine(server: Server) -> None:
    """And a closed client says that it is closed."""
    client = TaskClient(server.url)
    client.close()
    client.close()
    with pytest.raises(RetinueError, match="closed"):
        client.send_task("hello")
