"""How much longer an answer takes for a memory that needs a second to be searched, and a second to be written.

Beside the plain order (search, ask the model, write, answer), which pays for both, run in the same process at the same time
with the same memory and model: as the agent of a program, and over HTTP as the agent of a server.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from retinue_agents import Agent, FinalAnswerEvent, State
from retinue_agents.testing import EchoModel
from retinue_memory import InvocationContext, Message

from .process import RETINUE, started
from .slow import SECONDS, Slow

_CONFIG = """\
database: sqlite:///delay.db
memory:
  slow: {backend: "slow:Slow"}
agents:
  slow: {default: true, model: echo, memory: slow}
  none: {model: echo, memory: off}
"""


def main(quick: bool) -> None:
    turns = 1 if quick else 5
    with TemporaryDirectory() as folder:
        config = Path(folder, "retinue.yaml")
        config.write_text(_CONFIG, encoding="utf-8")
        shutil.copy(Path(__file__).with_name("slow.py"), folder)
        with started([RETINUE, "serve", "--config", str(config), "--port"], folder) as server:
            found = asyncio.run(_measure(server.url, turns))
    plain = found["search, model, write, answer"]
    print(f"delay: a memory that takes {SECONDS:g} s to be searched and {SECONDS:g} s to be written; median of {turns}")
    for what, seconds in found.items():
        print(f"  {what:<46}{seconds:8.3f} s{seconds / plain:8.2f} x")


async def _measure(url: str, turns: int) -> dict[str, float]:
    """Median seconds to the answer. Every way is warmed up once; then each round runs all of them at once."""
    async with httpx.AsyncClient(base_url=url, headers={"A2A-Version": "1.0"}, timeout=30) as http:
        agent = Agent(EchoModel(), memory=Slow())
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "search, model, write, answer": _in_line,
            "Agent, to its final answer": lambda: _streamed(agent),
            "retinue serve, to the answer": lambda: _sent(http, "/agents/slow/"),
            "retinue serve, without a memory": lambda: _sent(http, "/agents/none/"),
        }
        rounds = [await asyncio.gather(*map(_timed, ways.values())) for _ in range(turns + 1)][1:]
        await agent.settle()
    medians = map(statistics.median, zip(*rounds, strict=True))
    return dict(zip(ways, medians, strict=True))


async def _timed(way: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await way()
    return time.perf_counter() - began


async def _in_line() -> str:
    memory, model = Slow(), EchoModel()
    asked = Message("user", "I have a cat named Tom.")
    found = await memory.retrieve(asked.content)
    answer = "".join([delta.text async for delta in model.stream([*found, asked])])
    await memory.update([asked, Message("assistant", answer)])
    return answer


async def _streamed(agent: Agent) -> str:
    """Up to the final answer: a consumer that stops there loses nothing. A user of its own, so that no write is waited for."""
    said = State([Message("user", "I have a cat named Tom.")])
    async for event in agent.stream(said, ctx=InvocationContext("s", uuid.uuid4().hex)):
        if isinstance(event, FinalAnswerEvent):
            return event.content
    raise AssertionError("there was no answer")


async def _sent(http: httpx.AsyncClient, path: str) -> None:
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "I have a cat named Tom."}]}
    params = {"message": message, "metadata": {"user_id": uuid.uuid4().hex}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params}
    task = (await http.post(path, json=body)).json()["result"]["task"]
    assert task["status"]["state"] == "TASK_STATE_COMPLETED", task
    assert "failed" not in task.get("metadata", {}).get("memory", {}), task
