"""A database as the first version wrote it (`tests/data/README.md`), served by this one: a real server on a copy of it."""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.types import StreamResponse, TaskPushNotificationConfig
from google.protobuf.json_format import MessageToDict

from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_server.runtime.store.store import Store

from ..memory.mem0_cloud import KEY, Cloud  # noqa: TID252 - the one stand-in there is
from .brain import Brain, Call, Line, eventually, text
from .conftest import Serve, Server
from .test_recovery import Caller, answers, kill, said

JSONObject = dict[str, Any]

FIRST = Path(__file__).parents[1] / "data" / "first.db.gz"
CAROL = {"user_id": "carol"}
REPLAYED, ASKED, INTERRUPTED, WAITING, PAYING, ENDED_LAST = 26, 27, 36, 37, 38, 39
"""The places of tasks: the one of the message "replayed", one in input-required, one interrupted between two steps, one whose
message waits behind that, one interrupted in a tool that must not be repeated, and the last that ended before the kill."""
GIVEN_UP, PENDING, IN_MEM0 = 33, 34, 35
"""The places of tasks whose memory write was given up, is pending, and is on its way to mem0."""


class Old:
    """The copy, before a server has upgraded it."""

    def __init__(self, folder: Path, brain: Brain) -> None:
        self.path = folder / "var" / "retinue.db"
        self.path.parent.mkdir()
        self.path.write_bytes(gzip.decompress(FIRST.read_bytes()))
        with closing(sqlite3.connect(self.path)) as db, db:
            self.ids: dict[int, str] = dict(db.execute("SELECT place, id FROM tasks"))
            self.numbers: dict[str, int] = dict(db.execute("SELECT id, seq FROM tasks"))
            self.pushes: dict[str, list[JSONObject]] = {}
            for task_id, payload in db.execute("SELECT task_id, payload FROM push_outbox WHERE dead = 0 ORDER BY id"):
                event = MessageToDict(StreamResponse.FromString(payload))
                self.pushes.setdefault(task_id, []).append(event)
            self._move_on(db, brain)

    @staticmethod
    def _move_on(db: sqlite3.Connection, brain: Brain) -> None:
        """What happened since the kill: time went by, and the webhooks have another address, at which somebody listens."""
        for table in ("push_outbox", "memory_outbox"):
            db.execute(f"UPDATE {table} SET due_at = 1")
        db.execute("UPDATE mem0_turns SET due = 1")
        for task_id, blob in db.execute("SELECT task_id, config FROM push_configs").fetchall():
            config = TaskPushNotificationConfig.FromString(blob)
            config.url = f"{brain.url}/push/{task_id}"
            db.execute("UPDATE push_configs SET config = ? WHERE task_id = ?", (config.SerializeToString(), task_id))


@pytest.fixture
def brain(tmp_path: Path) -> Iterator[Brain]:
    with Brain().serving(tmp_path) as serving:
        serving.script = _script
        yield serving


def _script(call: Call) -> Iterable[Line]:
    return text("on it goes") if call.what == "ask" else [{}]


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud().running() as cloud:
        yield cloud


@pytest.fixture
def old(tmp_path: Path, brain: Brain) -> Old:
    return Old(tmp_path, brain)


@pytest.fixture
def server(tmp_path: Path, serve: Serve, old: Old, cloud: Cloud) -> Iterator[Server]:
    """A server of this version on the copy, with the agents and memories of the config that filled it."""
    config = f"""\
server: {{grace: 0.3}}
push: {{allow: [127.0.0.1]}}
memory:
  default: {{embedder: off}}
  once: {{backend: "thinking:Remote"}}
  down: {{backend: "thinking:Remote"}}
  cloud: {{backend: mem0, host: "{cloud.url}", api_key: "{KEY}", grace: 2}}
agents:
  assistant: {{default: true, model: "thinking:Model"}}
  slow: {{model: "thinking:Model", tools: ["thinking:look", "thinking:pay"], memory: off}}
  asker: {{executor: "thinking:Asker"}}
  direct: {{executor: "parts:Direct"}}
  failing: {{model: "parts:Fail", memory: off}}
  once: {{model: "thinking:Model", memory: once}}
  down: {{model: "thinking:Model", memory: down}}
  cloud: {{model: "thinking:Model", memory: cloud}}
"""
    with serve(tmp_path, config) as server:
        yield server


def delivered(brain: Brain, task_id: str, count: int) -> list[JSONObject]:
    """The events that a task's webhook got, at least so many."""

    def arrived() -> list[JSONObject] | None:
        events = [call.body for call in brain.of(f"push/{task_id}")]
        return events if len(events) >= count else None

    events: list[JSONObject] = eventually(arrived, f"{count} events are pushed")
    return events


def wait_until_stored(server: Server, agent: str, task_id: str) -> None:
    """Wait until all memory writes of a task are made."""
    eventually(partial(_is_stored, server, agent, task_id), "the memory write is made")


def _is_stored(server: Server, agent: str, task_id: str) -> bool:
    return bool(Caller(server, agent).task(task_id)["metadata"]["memory"]["update"] == "stored")


def remembered(brain: Brain) -> list[str]:
    """What users said, as the memories `once` and `down` were told it."""
    return [call.body["said"][0] for call in brain.of("remember")]


def test_an_interrupted_turn_goes_on_and_the_message_behind_it_is_answered_after_it(
    server: Server, old: Old, brain: Brain
) -> None:
    """Its committed model call and tool call are not made again."""
    caller = Caller(server, "slow")
    assert answers(caller.ended(old.ids[INTERRUPTED])) == ["on it goes"]
    assert answers(caller.ended(old.ids[WAITING])) == ["on it goes"]
    asked = [(call.body["step"], call.body["prompt"][-1]) for call in brain.of("ask")]
    assert asked == [(2, ["tool", "seen"]), (1, ["user", "another behind it"])]
    assert brain.of("look") == []


def test_a_tool_that_must_not_be_repeated_is_not(server: Server, old: Old, brain: Brain) -> None:
    """The process died during its call: the task fails, and says that the outcome is unknown."""
    task = Caller(server, "slow").ended(old.ids[PAYING], "TASK_STATE_FAILED")
    assert "outcome unknown" in said(task["status"]["message"])
    assert brain.of("pay") == []


def test_an_old_question_is_answered(server: Server, old: Old, brain: Brain) -> None:
    """The task waits as it did; with the answer it ends, and its webhook gets the events before and after the upgrade."""
    task_id = old.ids[ASKED]
    caller = Caller(server, "asker")
    assert caller.task(task_id)["status"]["state"] == "TASK_STATE_INPUT_REQUIRED"
    task = caller.send("the red one", taskId=task_id, metadata=CAROL)
    assert (task["id"], task["status"]["state"]) == (task_id, "TASK_STATE_COMPLETED")
    assert said(task["status"]["message"]) == "THE RED ONE"
    before = old.pushes[task_id]
    events = delivered(brain, task_id, len(before) + 1)
    assert events[: len(before)] == before
    assert events[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


def test_an_old_message_that_is_sent_again_is_a_replay(server: Server, old: Old, brain: Brain) -> None:
    """The task that it started is the answer, and no model is asked; with another content it is refused."""
    caller = Caller(server, "assistant")
    task = caller.send("finished", messageId="replayed", contextId="c1", metadata=CAROL)
    assert (task["id"], task["status"]["state"]) == (old.ids[REPLAYED], "TASK_STATE_COMPLETED")
    assert answers(task) == ["Noted: finished"]
    with pytest.raises(AssertionError, match="messageId"):
        caller.send("another", messageId="replayed", contextId="c1", metadata=CAROL)
    sent = [["user", "finished"], ["user", "another"]]
    assert [call for call in brain.of("ask") if call.body["prompt"][-1] in sent] == []


def test_due_pushes_are_delivered_in_their_order(server: Server, old: Old, brain: Brain) -> None:
    """Each config's, but not those that were given up."""
    for place in (REPLAYED, ENDED_LAST):
        task_id = old.ids[place]
        assert delivered(brain, task_id, len(old.pushes[task_id])) == old.pushes[task_id]


def test_due_memory_writes_are_made_in_their_order(server: Server, old: Old, brain: Brain) -> None:
    """One that was given up stays so, is listed with its problem, and is made if its owner asks."""
    for place in (PENDING, ENDED_LAST):
        wait_until_stored(server, "down", old.ids[place])
    assert remembered(brain) == ["owed", "owed at the end"]
    with httpx.Client(base_url=f"{server.url}/api/v1") as api:
        (failed,) = api.get("/failed-writes").json()["writes"]
        assert failed == {
            "memory": "once",
            "user": "dave",
            "task": old.ids[GIVEN_UP],
            "tries": 1,
            "problem": "MemoryBackendError: the backend is down",
        }
        api.post("/failed-writes/retry").raise_for_status()
    wait_until_stored(server, "once", old.ids[GIVEN_UP])
    assert remembered(brain) == ["owed", "owed at the end", "given up"]


def test_a_pending_mem0_write_is_delivered_once(server: Server, old: Old, cloud: Cloud) -> None:
    """A write to mem0 that was pending in the old file is delivered, once."""
    wait_until_stored(server, "cloud", old.ids[IN_MEM0])
    eventually(lambda: cloud.texts().count("kept for mem0") == 1, "mem0 has it")
    assert cloud.count("add") == 1


def test_tasks_are_listed(server: Server) -> None:
    """All that there were, by the counters as by the rows; a direct answer was no task, and is none."""
    listed: dict[tuple[str, str], tuple[int, int]] = {}
    for agent, tenant in (("assistant", ""), ("assistant", "acme"), ("slow", ""), ("asker", ""), ("direct", "")):
        params = {"pageSize": 100} | ({"tenant": tenant} if tenant else {})
        found = Caller(server, agent).call("ListTasks", **params)
        listed[agent, tenant] = found["totalSize"], len(found["tasks"])
    assert listed == {
        ("assistant", ""): (25, 25),
        ("assistant", "acme"): (1, 1),
        ("slow", ""): (3, 3),
        ("asker", ""): (3, 3),
        ("direct", ""): (0, 0),
    }


def test_memories_are_listed(tmp_path: Path, old: Old, serve: Serve) -> None:
    """Those that hold, of each user and tenant."""
    users = [("alice", ""), ("alice", "acme"), ("bob", ""), ("carol", "")]
    now = int(datetime.now(UTC).timestamp() * 1e6)
    query = """
        SELECT content FROM memories
        WHERE owner = 'user' AND owner_id = ? AND tenant = ?
          AND valid_to IS NULL AND quarantined IS NULL AND (expires_at IS NULL OR expires_at > ?)
        """
    with closing(sqlite3.connect(old.path)) as db:
        before = {user: sorted(content for (content,) in db.execute(query, (*user, now))) for user in users}
    assert all(before.values())
    config = "memory: {default: {embedder: off}}\nagents: {assistant: {model: echo}}\n"
    with serve(tmp_path, config) as server, httpx.Client(base_url=f"{server.url}/api/v1") as api:
        for user, tenant in users:
            page = api.get("/memories", params={"user": user, "tenant": tenant, "limit": 100}).json()
            assert sorted(memory["content"] for memory in page["memories"]) == before[user, tenant]


def test_the_file_is_whole_and_of_this_version(server: Server, old: Old, serve: Serve) -> None:
    """No page is damaged, its tables are those of a new file, tasks keep their numbers, and the next start finds it usable."""
    Caller(server, "slow").ended(old.ids[WAITING])
    kill(server)
    new = SQLiteDatabase(server.folder / "new.db")
    Store.over(new).migrate()
    new.close()
    assert columns(old.path).items() >= columns(new.path).items()
    with closing(sqlite3.connect(old.path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert "events" not in columns(old.path)
        generations = dict(db.execute("SELECT id, generation FROM tasks"))
    for place in (REPLAYED, GIVEN_UP, IN_MEM0):
        assert generations[old.ids[place]] == old.numbers[old.ids[place]]
    with serve(server.folder, (server.folder / "retinue.yaml").read_text(encoding="utf-8")) as again:
        assert Caller(again, "assistant").call("ListTasks")["totalSize"] == 25


def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The columns of each table, as SQLite describes them."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: db.execute(f"PRAGMA table_xinfo({name})").fetchall() for name in tables}
