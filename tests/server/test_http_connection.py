"""HTTP connections, byte for byte: every response is whole, in order, and sent as soon as the client waits for it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Iterator

import pytest

from .conftest import Serve, Server
from .inprocess import rpc

SECONDS = 20.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module", params=["httptools", "h11"])
def parsing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Server]:
    """A server on each of uvicorn's parsers: it falls back on h11 if httptools is not installed."""
    if request.param == "httptools":
        yield request.getfixturevalue("server")
        return
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "httptools.py").write_text("raise ImportError", encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(hidden), os.environ.get("PYTHONPATH"))))
    with serve(tmp_path_factory.mktemp("h11"), PYTHONPATH=path) as server:
        yield server


@pytest.fixture
async def connection(parsing: Server) -> AsyncGenerator[Streams]:
    host, _, port = parsing.url.removeprefix("http://").rstrip("/").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(SECONDS):
        yield reader, writer
    writer.close()


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join((line, "Host: 127.0.0.1", "A2A-Version: 1.0", *fields, "", "")).encode()


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read the next response: its status line and body."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = next((line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length:")), b"0")
    return lines[0], await reader.readexactly(int(length))


async def test_a_body_is_asked_for_where_the_client_waits_for_that(connection: Streams) -> None:
    """`Expect: 100-continue` is answered before the body arrives."""
    reader, writer = connection
    body = json.dumps(rpc("GetTask", id="nothing")).encode()
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue")
    writer.write(head("POST / HTTP/1.1", *fields))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    status, answer = await answered(reader)
    assert status == b"HTTP/1.1 200 OK"
    assert json.loads(answer)["error"]["code"] == -32001


async def test_answers_follow_each_other_on_a_connection(connection: Streams) -> None:
    """Pipelined requests are answered in order."""
    reader, writer = connection
    writer.write(head("GET /healthz HTTP/1.1") + head("GET /nowhere HTTP/1.1") + head("GET /healthz HTTP/1.1"))
    found = [await answered(reader) for _ in range(3)]
    assert [status for status, _ in found] == [b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 200 OK"]
    assert found[0][1] == found[2][1] == b'{"status":"ok"}'


async def test_a_head_without_a_body_is_sent(connection: Streams) -> None:
    """The response to HEAD is sent, also as the last one of a connection."""
    reader, writer = connection
    writer.write(head("HEAD /healthz HTTP/1.1", "Connection: close"))
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
