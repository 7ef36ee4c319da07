"""Load on an A2A server: JSON-RPC over kept-alive HTTP/1.1 with little work a request, and every answer checked."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from .process import Server

_LONGEST = 15.0
"""Seconds after which a burst sends no more, however few of its tasks were sent."""
_RUN = uuid.uuid4().hex
_NUMBERS = itertools.count()
_THINGS = "bicycle", "passport", "umbrella", "camera", "guitar", "kettle", "notebook"
_PLACES = "in the kitchen", "at my sister's", "behind the shed", "on the top shelf", "in the blue box"


@dataclass(frozen=True, slots=True)
class Burst:
    """What to send: `tasks` messages by `clients` at once, each on a connection of its own.

    `length`: characters of each message, at least; `users`: each client names a user and wants memories in the answer.
    """

    clients: int
    tasks: int
    path: str = "/"
    streams: bool = False
    length: int = 0
    users: bool = False
    cold: bool = False
    """Whether the memories may be missing from an answer: indexes that are loaded all at once may come too late for it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a burst cost the server and took: CPU in ms a task, tasks a second, and the ms until half, or 99 of 100, had
    their answers.
    """

    cpu: float
    rate: float
    p50: float
    p99: float


def send(server: Server, burst: Burst) -> Figures:
    """Send a burst. Exits where an answer is not a completed task."""
    return asyncio.run(_send(server, burst))


async def _send(server: Server, burst: Burst) -> Figures:
    connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(burst.clients)]
    seconds: list[float] = []
    left = _left(burst)  # shared: who is done with one takes the next
    computed, began = server.cpu_seconds(), time.perf_counter()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for user, connection in enumerate(connections):
            group.create_task(_client(*connection, burst, f"user-{user}", left, seconds))
    took = time.perf_counter() - began
    computed = await _at_rest(server) - computed
    for _, writer in connections:
        writer.close()
    cuts = statistics.quantiles(seconds, n=100)
    return Figures(computed * 1000 / len(seconds), len(seconds) / took, cuts[49] * 1000, cuts[98] * 1000)


def _left(burst: Burst) -> Iterator[None]:
    until = time.perf_counter() + _LONGEST
    for _ in range(burst.tasks):
        if time.perf_counter() < until:
            yield


async def _at_rest(server: Server) -> float:
    """What the server has computed once it is done with what it does after its answers, such as remembering them."""
    seconds, before = server.cpu_seconds(), 0.0
    deadline = time.perf_counter() + 10
    while seconds - before > 0.002 and time.perf_counter() < deadline:
        await asyncio.sleep(0.05)
        seconds, before = server.cpu_seconds(), seconds
    return seconds


async def _client(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    burst: Burst,
    user: str,
    left: Iterator[None],
    seconds: list[float],
) -> None:
    for _ in left:
        request = _request(burst, user)
        began = time.perf_counter()
        writer.write(request)
        answer = await _answer(reader)
        seconds.append(time.perf_counter() - began)
        if b"TASK_STATE_COMPLETED" not in answer or (burst.users and not burst.cold and b'"sources"' not in answer):
            raise SystemExit(f"the server did not complete a task: {answer.decode(errors='replace')}")


def said(number: int) -> str:
    """Something that a user might say, different for every number."""
    return f"I left the {_THINGS[number % 7]} {_PLACES[number % 5]}, next to parcel {number}."


def _request(burst: Burst, user: str) -> bytes:
    number = next(_NUMBERS)
    message = {
        "messageId": f"{_RUN}-{number}",
        "role": "ROLE_USER",
        "parts": [{"text": said(number).ljust(burst.length, ".")}],
    }
    params = {"message": message} | ({"metadata": {"user_id": user}} if burst.users else {})
    method = "SendStreamingMessage" if burst.streams else "SendMessage"
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    head = (
        f"POST {burst.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nA2A-Version: 1.0\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return await reader.readexactly(int(value))
    chunks: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(chunks)
