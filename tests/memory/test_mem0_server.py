"""Mem0Server over HTTP against mem0's REST server: the promises of every memory, and what a server and a network do to them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from retinue_memory import Message, Scope, open_memory
from retinue_memory.errors import ConfigError, MemoryBackendError
from retinue_memory.mem0 import Mem0Server
from retinue_memory.testing import ManagedConformance, turn_of

from .mem0_rest import Fault, RestServer

KEY, ADMIN = "m0sk-an-ordinary-key", "m0sk-the-admin-key"
ALICE = Scope.of(turn_of())


def every_line(messages: Sequence[Mapping[str, str]]) -> str:
    """A model that draws each new message of the user, in other words."""
    new = messages[-1]["content"].split("## New Messages\n")[1].split("\n\n## ")[0]
    said = [line.removeprefix("user: ") for line in new.splitlines() if line.startswith("user: ")]
    return json.dumps({"memory": [{"id": str(n), "text": f"The user said: {text}"} for n, text in enumerate(said)]})


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[RestServer]:
    server = RestServer(tmp_path / "mem0", generate=every_line)
    yield server
    server.stop()


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Mem0Server]]:
    """Makes memories, and closes them."""
    made: list[Mem0Server] = []

    def make(url: str, api_key: str | None = None, *, infer: bool = False, **settings: Any) -> Mem0Server:
        made.append(Mem0Server(url, api_key, infer=infer, **settings))
        return made[-1]

    yield make
    for memory in made:
        await memory.aclose()


class TestMem0Server(ManagedConformance):
    """Everything that holds of any memory."""

    imports_exactly = False

    @pytest.fixture
    async def memory(self, rest: RestServer) -> AsyncIterator[Mem0Server]:
        memory = Mem0Server(rest.url, infer=False)
        yield memory
        await memory.aclose()


async def found(memory: Mem0Server, query: str, user: str = "alice") -> list[str]:
    return [message.content for message in await memory.retrieve(query, top_k=20, ctx=turn_of(user))]


def kept(rest: RestServer, user: str = "alice") -> list[str]:
    """What the server itself lists."""
    answer = httpx.get(f"{rest.url}/memories", params={"user_id": user, "top_k": 1000}, headers={"X-API-Key": ADMIN})
    return [row["memory"] for row in answer.json()["results"]]


def put(rest: RestServer, *texts: str, **ids: str) -> None:
    """As another program does."""
    said = [{"role": "user", "content": text} for text in texts]
    body = {"messages": said, "infer": False, **ids}
    assert httpx.post(f"{rest.url}/memories", json=body, timeout=60).is_success


async def test_what_a_team_has_on_its_server_is_found(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """A plain user id is the server's own: what other programs stored is recalled, and they see what is stored here."""
    put(rest, "I sail on Sundays", user_id="alice")
    memory = opened(rest.url)
    assert await found(memory, "when do I sail") == ["I sail on Sundays"]
    await memory.update([Message("user", "I row on Mondays")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    assert sorted(kept(rest)) == ["I row on Mondays", "I sail on Sundays"]


async def test_the_servers_model_draws_facts(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """With `infer`, what is remembered is what the server made of it; it names the messages that it came from."""
    memory = opened(rest.url, infer=True)
    await memory.update([Message("user", "I keep bees", id="m1"), Message("assistant", "Nice")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    (hit,) = await memory.retrieve("bees", ctx=turn_of())
    assert hit.content == "The user said: I keep bees"
    assert "m1" in hit.metadata["memory"]["sources"]


async def test_a_refused_key_is_said_and_never_shown(
    tmp_path: Path, opened: Callable[..., Mem0Server], caplog: pytest.LogCaptureFixture
) -> None:
    """401: an error that says what to set; the key is in no message and no log, even where it is part of the address."""
    caplog.set_level(logging.DEBUG)
    rest = RestServer(tmp_path / "mem0", key=KEY, admin=ADMIN)
    try:
        memory = opened(rest.url.replace("http://", "http://someone:s3cret@"), "m0sk-wrong")
        with pytest.raises(MemoryBackendError, match=r"401.*api_key") as caught:
            await found(memory, "anything")
        shown = f"{caught.value}{caught.value.__cause__!r}{caplog.text}"
        assert "m0sk-wrong" not in shown
        assert "s3cret" not in shown
        assert await found(opened(rest.url, KEY), "anything") == []
    finally:
        rest.stop()


@pytest.mark.parametrize(
    "fault", [Fault(502), Fault(503, {"Retry-After": "0.2"}), Fault(429, {"Retry-After": "0.2"}), Fault()]
)
async def test_a_passing_failure_is_not_noticed(
    rest: RestServer, opened: Callable[..., Mem0Server], fault: Fault
) -> None:
    """A search that fails once is asked again, after the time that the server asks for."""
    memory = opened(rest.url)
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    rest.requests.clear()
    rest.faults = [fault]
    began = monotonic()
    assert await found(memory, "bees") == ["I keep bees"]
    assert rest.count("POST", "/search") == 2
    assert monotonic() - began >= float(fault.headers.get("Retry-After", 0))


@pytest.mark.parametrize("fault", [Fault(), Fault(after=True), Fault(502), Fault(429, {"Retry-After": "0.1"})])
async def test_a_write_that_breaks_is_kept_once(
    rest: RestServer, opened: Callable[..., Mem0Server], fault: Fault
) -> None:
    """Whether the server had it already or not: found by the next retrieve, and in the end there exactly once."""
    memory = opened(rest.url, grace=1.0)
    rest.faults_of["POST"] = [fault]
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    rest.faults_of.clear()
    assert await found(memory, "bees") == ["I keep bees"]
    assert await memory.wait_indexed(turn_of())
    assert await found(memory, "bees") == ["I keep bees"]
    assert kept(rest) == ["I keep bees"]


async def test_a_slow_search_is_an_error_in_time(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """The deadline is kept, and the error says so; another user's search meanwhile is answered."""
    memory = opened(rest.url, timeout=0.5)
    rest.faults = [Fault(seconds=30)] * 3
    began = monotonic()
    slow = asyncio.create_task(found(memory, "anything"))
    with pytest.raises(MemoryBackendError, match=r"no answer within 0.5 s"):
        await slow
    assert monotonic() - began < 6
    rest.faults.clear()
    assert await found(memory, "anything", user="bob") == []


async def test_a_server_that_restarts_loses_nothing(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """While it is down writing is an error that says so; once it is back what was said is sent, though nobody asks again,
    and is there once."""
    memory = opened(rest.url)
    await memory.update([Message("user", "Said before")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    rest.stop()
    with pytest.raises(MemoryBackendError, match="is the mem0 server running"):
        await memory.update([Message("user", "Said while it was down")], ctx=turn_of(turn="t1"))
    rest.start()
    await memory.update([Message("user", "Said while it was down")], ctx=turn_of(turn="t1"))
    assert await memory.wait_indexed(turn_of())
    assert sorted(await found(memory, "said")) == ["Said before", "Said while it was down"]
    assert sorted(kept(rest)) == ["Said before", "Said while it was down"]


async def test_a_server_that_is_down_is_left_alone(opened: Callable[..., Mem0Server]) -> None:
    """After a few failures in a row nothing is asked for a while: an error at once."""
    memory = opened("http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(MemoryBackendError):
            await found(memory, "anything")
    began = monotonic()
    with pytest.raises(MemoryBackendError, match="in a row"):
        await found(memory, "anything")
    assert monotonic() - began < 0.2


@pytest.mark.parametrize("key", [KEY, ADMIN])
async def test_an_ordinary_key_erases_too(tmp_path: Path, opened: Callable[..., Mem0Server], key: str) -> None:
    """mem0 lets only administrators delete all of a user's in one go: others delete one by one."""
    rest = RestServer(tmp_path / "mem0", key=KEY, admin=ADMIN)
    try:
        memory = opened(rest.url, key)
        for number in range(5):
            for user in ("alice", "bob"):
                await memory.update([Message("user", f"Note {number}")], ctx=turn_of(user))
        assert await memory.wait_indexed()
        await memory.erase(ALICE)
        assert kept(rest) == []
        assert len(kept(rest, "bob")) == 5
    finally:
        rest.stop()


async def test_a_session_is_erased_without_its_users(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """What a user said in a session of that name, stored by another program with both ids, is the user's and stays."""
    put(rest, "I sail", user_id="alice", run_id="s1")
    memory = opened(rest.url)
    await memory.update([Message("user", "Nobody sails")], ctx=turn_of(None, session="s1"))
    assert await memory.wait_indexed()
    assert [hit.content for hit in await memory.retrieve("sail", ctx=turn_of(None, session="s1"))] == ["Nobody sails"]
    await memory.erase(Scope.of(turn_of(None, session="s1")))
    assert await memory.retrieve("sail", ctx=turn_of(None, session="s1")) == []
    assert kept(rest) == ["I sail"]


async def test_more_than_the_server_lists_is_said(rest: RestServer, opened: Callable[..., Mem0Server]) -> None:
    """Nothing is left out in silence: of a user with more memories than the server lists there is no export."""
    put(rest, *(f"Note {number}" for number in range(1001)), user_id="alice")
    memory = opened(rest.url, grace=1.0)
    with pytest.raises(MemoryBackendError, match="lists no more than 1000"):
        _ = [value async for value in memory.export(ALICE)]
    for fault in (Fault(), Fault(after=True)):  # nor are they hard to write to, to search, or to erase
        rest.faults_of["POST"] = [fault]
        await memory.update([Message("user", f"I keep bees, {fault.after}")], ctx=turn_of())
        rest.faults_of.clear()
        assert await memory.wait_indexed(turn_of())
        assert f"I keep bees, {fault.after}" in await found(memory, f"I keep bees, {fault.after}")
    said = [
        body["messages"][0]["content"]
        for method, path, body in rest.requests
        if (method, path) == ("POST", "/memories")
    ]
    assert said[1:] == ["I keep bees, False", "I keep bees, False", "I keep bees, True"]
    assert (await memory.remains(ALICE))["memories"] == 1000
    await memory.erase(ALICE)
    assert await memory.remains(ALICE) == {}


async def test_it_comes_from_a_config(rest: RestServer) -> None:
    """`backend: mem0-server` with its keys."""
    memory = open_memory({"backend": "mem0-server", "url": rest.url, "timeout": 3, "infer": False}, name="team")
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    assert [hit.content for hit in await memory.retrieve("bees", ctx=turn_of())] == ["I keep bees"]
    await memory.aclose()


@pytest.mark.parametrize(
    ("entry", "key", "problem"),
    [
        ({}, "url", "address of the server"),
        ({"url": "127.0.0.1:8888"}, "url", "an address such as"),
        ({"url": "http://127.0.0.1:8888", "api_kee": "x"}, "api_kee", 'did you mean "api_key"'),
        ({"url": "http://127.0.0.1:8888", "timeout": 0}, "timeout", "more than 0"),
        ({"url": "http://127.0.0.1:8888", "api_key": "line\nbreak"}, "api_key", "printable"),
        ({"url": "http://127.0.0.1:8888", "api_key": 7}, "api_key", "text"),
    ],
)
def test_a_wrong_setting_is_named(entry: dict[str, Any], key: str, problem: str) -> None:
    """The key and what is wrong with it, at start."""
    with pytest.raises(ConfigError, match=problem) as caught:
        open_memory({"backend": "mem0-server", **entry})
    assert caught.value.key == key
