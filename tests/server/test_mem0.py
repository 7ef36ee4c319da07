"""A served agent whose memory is mem0's cloud: the second document's story, without its wait of ten seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from retinue_server import TaskClient

from ..memory.mem0_cloud import KEY, Cloud, Fault, eventually  # noqa: TID252 - the one stand-in there is
from .conftest import COUNTRY, Serve, Server, ask, counted, retinue


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud().running() as cloud:
        yield cloud


def config(cloud: Cloud) -> str:
    return f"""
memory:
  default: {{backend: mem0, host: "{cloud.url}", api_key: "{KEY}", grace: 2}}
agents:
  reciter: {{default: true, model: "parts:Recite"}}
"""


def test_alice_is_known_at_once_and_across_a_crash(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """She says where she is from; the next task knows, though mem0 has indexed nothing; so does the one after kill -9. Then
    mem0 has everything she said, once; and nobody else knows of it."""
    cloud.indexing.clear()
    with serve(tmp_path, config(cloud)) as server:
        ask(server.url, "I am from Italy")
        assert "I am from Italy" in ask(server.url, COUNTRY)
        assert "Italy" not in ask(server.url, COUNTRY, user="bob")
        eventually(lambda: pending(server) == 3)
        server.process.kill()
        server.process.wait(10)
    with serve(tmp_path, config(cloud)) as server:
        assert "I am from Italy" in ask(server.url, COUNTRY)
        assert "Italy" not in ask(server.url, COUNTRY, user="bob")
        cloud.indexing.set()
        eventually(lambda: pending(server) == 0)
        assert "I am from Italy" in ask(server.url, COUNTRY)
    turns = [call.body["metadata"]["retinue_turn"] for call in cloud.calls if call.operation == "add"]
    assert len(turns) == len(set(turns))
    assert cloud.texts().count("I am from Italy") == 1


def pending(server: Server) -> int:
    """Turns that mem0 is working on, as the file has it."""
    with closing(sqlite3.connect(server.folder / "var" / "retinue.db")) as db:
        count: int = db.execute("SELECT count(*) FROM mem0_turns WHERE state = 'pending'").fetchone()[0]
        return count


def test_a_kill_while_mem0_is_being_told_loses_and_doubles_nothing(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """The server is killed while a request is under way. Whether mem0 has taken it or not: the next process finds out without
    being asked for anything, and in the end mem0 has it once."""
    for user, arrives in (("alice", True), ("bob", False)):
        cloud.go_on.clear()
        cloud.faults["add"] = [Fault(stall=True, drop=True, after=arrives)]
        before = cloud.count("add")
        with serve(tmp_path, config(cloud)) as server:
            ask(server.url, "I am from Italy", user)
            eventually(lambda before=before: cloud.count("add") == before + 1)  # type: ignore[misc]
            server.process.kill()
            server.process.wait(10)
        cloud.go_on.set()
        with serve(tmp_path, config(cloud)) as server:
            eventually(lambda user=user: italy(cloud, user) == 1)  # type: ignore[misc]
            assert "I am from Italy" in ask(server.url, COUNTRY, user)
        assert italy(cloud, user) == 1


def italy(cloud: Cloud, user: str) -> int:
    return sum((one["user_id"], one["memory"]) == (user, "I am from Italy") for one in cloud.memories.values())


def test_its_owner_sees_and_erases_it(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """Over the server's API: what mem0 is still working on is listed; after the erasure nothing remains, here or there."""
    with serve(tmp_path, config(cloud)) as server, httpx.Client(base_url=f"{server.url}/api/v1") as api:
        cloud.indexing.clear()
        ask(server.url, "I am from Italy")
        eventually(lambda: cloud.count("add") == 1)
        (listed,) = api.get("/memories", params={"user": "alice"}).json()["memories"]
        assert listed["content"] == "I am from Italy"
        cloud.indexing.set()
        eventually(lambda: api.get("/memories", params={"user": "alice"}).json()["memories"][0]["id"] in cloud.memories)
        receipt = api.delete("/users/alice", params={"tasks": "true"}).json()
        assert receipt["deleted"]["memories"] == 1
        assert api.get("/users/alice").json()["remains"] == {}
        assert cloud.memories == {}


def test_an_outage_costs_no_answer(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """mem0 fails at everything: answers come, and what was said arrives when it is well again."""
    cloud.faults = {"ping": [Fault(503)] * 1000}
    with serve(tmp_path, config(cloud)) as server:
        ask(server.url, "I am from Italy")
        ask(server.url, COUNTRY)
        assert cloud.count("add") == 0
        cloud.faults.clear()
        eventually(lambda: italy(cloud, "alice") == 1, 60)


def test_an_outage_is_told_while_what_waits_is_used(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """mem0 takes what is said, but cannot be searched: the answer knows what was said last, and the task and the metrics tell of
    the failure."""
    cloud.indexing.clear()
    cloud.faults["search"] = [Fault(404)] * 100
    with serve(tmp_path, config(cloud)) as server, TaskClient(server.url) as client:
        ask(server.url, "I am from Italy")
        eventually(lambda: cloud.count("add") == 1)
        task = client.send_task(message=COUNTRY, metadata={"user_id": "alice"})
        assert "I am from Italy" in task.text
        (failed,) = task.to_dict()["metadata"]["memory"]["failed"]
        assert (failed["operation"], failed["memory"]) == ("retrieve", "default")
        assert counted(server, "retinue_memory_failures_total", operation="retrieve", reason="error") == 2


def test_a_memory_that_fails_holds_up_no_erasure(tmp_path: Path, serve: Serve, cloud: Cloud) -> None:
    """Her tasks and the other memory are erased; the receipt says which is not, with 503 and exit code 1, until it is."""
    both = config(cloud).replace("memory:\n", "memory:\n  own: {backend: native, embedder: off}\n")
    with (
        serve(tmp_path, both.replace('"parts:Recite"', '"parts:Recite", memory: [default, own]')) as server,
        httpx.Client(base_url=f"{server.url}/api/v1", timeout=60) as api,
    ):
        ask(server.url, "I am from Italy")
        eventually(lambda: italy(cloud, "alice") == 1)
        cloud.faults["delete_all"] = [Fault(400)] * 100
        first = api.delete("/users/alice", params={"tasks": "true"})
        assert (first.status_code, first.json()["failed"]) == (503, ["default"])
        assert first.json()["deleted"]["tasks"] == 1
        assert any("memory default: not erased" in left for left in first.json()["left"])
        assert api.get("/memories", params={"user": "alice", "space": "own"}).json()["memories"] == []
        told = retinue(server, "erase", "--user", "alice", "--yes")
        assert (told.returncode, told.stderr) == (1, "not erased, erase again: default\n")
        assert '"failed": [' in told.stdout
        cloud.faults.clear()
        again = api.delete("/users/alice")
        assert (again.status_code, again.json()["failed"]) == (200, [])
        assert api.get("/users/alice").json()["remains"] == {}
        assert cloud.memories == {}
