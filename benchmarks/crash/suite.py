"""The run itself: start, load, kill, look at what is left, start again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx

from . import checks
from .clients import Client, Door
from .ledger import INTERRUPTED, TERMINAL, JSONObject, Ledger
from .receiver import Receiver

ROOT = Path(__file__).parents[2]

CONFIG = """\
database: sqlite:///crash.db
server: {grace: 5}
push: {allow: [127.0.0.1]}
memory:
  default: {embedder: off}
agents:
  worker:
    model: "benchmarks.crash.parts:Model"
    tools: ["benchmarks.crash.parts:look", "benchmarks.crash.parts:charge", "benchmarks.crash.parts:question"]
"""
_START_SECONDS, _END_SECONDS = 60.0, 120.0
_DURING_START = 0.15
"""How many of the kills strike a server that is not up yet."""
_LONGEST_LIFE = 1.3


async def run(folder: str, kills: int, seed: int, clients: int) -> list[str]:
    """Kill the server so often, print what was measured, and return every broken promise."""
    began, chance, ledger, receiver, door = time.monotonic(), random.Random(seed), Ledger(), Receiver(), Door()
    place = Path(folder)
    (place / "retinue.yaml").write_text(CONFIG, encoding="utf-8")
    wreck = checks.Wreck(ledger)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # a kept connection may be a dead one
    http = httpx.AsyncClient(headers={"A2A-Version": "1.0"}, timeout=60, limits=limits, trust_env=False)
    async with receiver.serving(), _endpoint() as endpoint, http:
        servers = _Servers(place, endpoint)
        crowd = [
            Client(f"c{number}", f"{seed}/{number}", door, ledger, http, receiver.url) for number in range(clients)
        ]
        await servers.start(0)
        await servers.ready()
        await servers.stop()
        checks.log_pushes(place / "crash.db")
        work = [asyncio.create_task(client.run()) for client in crowd]
        for generation in range(kills):
            await servers.start(generation)
            if chance.random() < _DURING_START:
                await asyncio.sleep(chance.uniform(0, servers.start_seconds))
            else:
                door.open(await servers.ready())
                await asyncio.sleep(chance.uniform(0.02, _LONGEST_LIFE))
            door.close()
            await servers.kill()
            copy = checks.copied(place / "crash.db", place / "copy")
            await asyncio.to_thread(wreck.look, copy, generation, ledger.acknowledged)
        await servers.start(kills)
        door.open(await servers.ready())
        for client in crowd:
            client.done = True
        for ended in await asyncio.gather(*work, return_exceptions=True):
            if ended is not None:
                ledger.violation(f"a client broke off: {ended!r}")
        await _wait_for_the_end(await door.url(), http, place / "crash.db", ledger)
        code = await servers.stop()
        if code != 0:
            ledger.violation(f"SIGTERM: exit code {code}")
        calls = [(generation, message, key) for generation, message, key in (await http.get(f"{endpoint}/log")).json()]
    with closing(sqlite3.connect(place / "crash.db")) as db:
        wreck.look(place / "crash.db", kills, ledger.acknowledged)
        report = _report(db, calls, wreck, ledger, receiver)
    print("\n".join(report))
    print(f"  {'seconds':<58}{time.monotonic() - began:8.1f}")
    print(f"  {'broken promises':<58}{len(ledger.violations):8}")
    return ledger.violations


def _report(
    db: sqlite3.Connection, calls: list[tuple[int, str, str]], wreck: checks.Wreck, ledger: Ledger, receiver: Receiver
) -> list[str]:
    again, in_flight = checks.repeated(calls, wreck, ledger)
    if again > in_flight:
        ledger.violation(f"{again} calls were repeated, but only {in_flight} steps were in flight at the kills")
    if receiver.unauthentic:
        ledger.violation(f"{receiver.unauthentic} pushes came without their token")
    unknown = checks.never_twice(calls, db, ledger)
    remembered = checks.memories(db, ledger)
    delivered, delivered_again = checks.pushes(db, receiver.arrived, ledger)
    figures = {
        "messages sent": len(ledger.sent),
        "tasks acknowledged": len(ledger.acknowledged),
        **{f"  {state}": count for state, count in checks.ends(db, wreck, ledger).most_common()},
        "model and tool calls": len(calls),
        "  made again": again,
        "  in flight at the kills: the most that may be": in_flight,
        "tasks that ended with an unknown outcome": unknown,
        "messages remembered": remembered,
        "pushes delivered": delivered,
        "  of these again": delivered_again,
        **dict(sorted(ledger.counts.items())),
        "slowest cancel, ms": round(1000 * ledger.slowest_cancel),
    }
    return [f"  {name:<58}{figure:8}" for name, figure in figures.items()]


async def _wait_for_the_end(url: str, http: httpx.AsyncClient, database: Path, ledger: Ledger) -> None:
    """Until every acknowledged task has ended, and nothing is owed to memories and webhooks."""
    left, deadline = ledger.acknowledged, time.monotonic() + _END_SECONDS
    while left and time.monotonic() < deadline:
        for task_id in sorted(left):
            request: JSONObject = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": task_id}}
            answer = (await http.post(url, json=request)).json()
            if "error" in answer:
                ledger.violation(f"acknowledged task {task_id}: {answer['error']}")
                left.discard(task_id)
                continue
            if answer["result"]["status"]["state"] in TERMINAL | INTERRUPTED:
                ledger.seen(answer["result"])
                left.discard(task_id)
        await asyncio.sleep(0.2)
    owed = "SELECT (SELECT count(*) FROM memory_outbox) + (SELECT count(*) FROM push_outbox)"
    with closing(sqlite3.connect(database)) as db:
        while db.execute(owed).fetchone()[0] and time.monotonic() < deadline:  # noqa: ASYNC110 - it waits for another process
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _endpoint() -> AsyncGenerator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.crash.endpoint", stdout=asyncio.subprocess.PIPE, env=_environment()
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class _Servers:
    """One server after another on the same folder."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._began = 0.0
        self.start_seconds = 1.0
        """How long the last start took."""

    async def start(self, generation: int) -> None:
        self._began = time.monotonic()
        with (self._folder / "server.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "retinue_server.cli", "serve", "--config", "retinue.yaml", "--port", "0"),
                cwd=self._folder,
                env=_environment(CRASH_ENDPOINT=self._endpoint, CRASH_GENERATION=str(generation)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def ready(self) -> str:
        """The server's address, once it serves."""
        assert self._process.stdout is not None
        line = (await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)).decode()
        if " at http://" not in line:
            raise RuntimeError((self._folder / "server.log").read_text(encoding="utf-8")[-3000:])
        self.start_seconds = time.monotonic() - self._began
        return line.split(" at ")[1].split()[0]

    async def kill(self) -> None:
        if self._process.returncode is not None:
            raise RuntimeError((self._folder / "server.log").read_text(encoding="utf-8")[-3000:])
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        self._process.terminate()
        return await asyncio.wait_for(self._process.wait(), _START_SECONDS)


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETINUE_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | more
