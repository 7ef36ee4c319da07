"""/metrics: what is counted, for whom, and in which format."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from retinue_agents import Agent
from retinue_agents.testing import EchoModel
from retinue_memory import Memory, Message
from retinue_memory.errors import MemoryBackendError
from retinue_server.agents import AgentBuilder
from retinue_server.delivery.memory_outbox import OutboxMemory

from .inprocess import Here, ask, eventually, request, running

MEMORIES = "memory: {pad: {}, other: {}}"


class Pad(Memory):
    """Fails and hangs on request, and is written when it may be."""

    name = "pad"

    def __init__(self) -> None:
        self.may_write = asyncio.Event()

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        if query == "fail":
            raise MemoryBackendError("out of order")
        if query == "hang":
            await asyncio.Event().wait()
        return []

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await self.may_write.wait()


async def samples(here: Here) -> dict[str, float]:
    answer = await here.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def test_what_memories_do_is_counted(tmp_path: Path) -> None:
    """Searches with their time, failures by memory, operation and reason, writes by outcome, and those that are owed; every
    memory of the configuration is there from the start, and nothing that a caller chose.
    """
    pad = Pad()

    def agent(builder: AgentBuilder) -> Agent:
        builder.memories["pad"] = pad
        owing = OutboxMemory("pad", pad, builder.outbox)
        return Agent(EchoModel(), memory=owing, memory_timeout=0.05)

    async with running(tmp_path, {"a": agent}, MEMORIES) as here:
        before = await samples(here)
        assert before['retinue_memory_failures_total{memory="other",operation="update",reason="error"}'] == 0
        assert before['retinue_memory_writes_pending{memory="pad"}'] == 0
        client = await here.client()
        for text in ("hello", "fail", "hang"):
            await ask(client, request(text, {"user_id": text}))
        after = await samples(here)
        assert after.keys() == before.keys()
        changed = {name: value for name, value in after.items() if name.startswith("retinue") and value}
        assert changed.pop('retinue_memory_retrieve_seconds_sum{memory="pad"}') >= 0.05
        assert {name: value for name, value in changed.items() if "_bucket" not in name and "_created" not in name} == {
            'retinue_memory_retrieve_seconds_count{memory="pad"}': 3,
            'retinue_memory_failures_total{memory="pad",operation="retrieve",reason="error"}': 1,
            'retinue_memory_failures_total{memory="pad",operation="retrieve",reason="unanswered"}': 1,
            'retinue_memory_writes_pending{memory="pad"}': 3,
        }
        pad.may_write.set()

        async def written() -> bool:
            found = await samples(here)
            pending = found['retinue_memory_writes_pending{memory="pad"}']
            return (found['retinue_memory_writes_total{memory="pad",outcome="stored"}'], pending) == (3, 0)

        await eventually(written, "all is written")


async def test_two_servers_in_a_process_count_for_themselves(tmp_path: Path) -> None:
    """Their registries are their own."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    async with (
        running(tmp_path / "one", {"a": Agent(EchoModel())}) as one,
        running(tmp_path / "two", {"a": Agent(EchoModel())}) as two,
    ):
        await asyncio.gather(samples(one), samples(two))
