"""What people do with memories, over HTTP and in the terminal, on a server that runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from retinue_server import TaskClient

from .conftest import Serve, Server, ask, retinue

CONFIG = """\
memory:
  default: {embedder: off}
  work: {embedder: off}
agents:
  one: {default: true, model: "parts:Recite", memory: [default, work]}
  reader: {model: "parts:Recite"}
"""
SECONDS = 30.0


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with serve(tmp_path_factory.mktemp("owning"), CONFIG) as running:
        yield running


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def api(server: Server) -> Generator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=SECONDS) as client:
        yield client


def tell(server: Server, user: str, text: str, **metadata: Any) -> dict[str, Any]:
    with TaskClient(server.url) as client:
        return client.send_task(text, {"user_id": user, **metadata}).to_dict()


def memories(api: httpx.Client, user: str, **more: Any) -> list[dict[str, Any]]:
    answer = api.get("/memories", params={"user": user, **more})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["memories"]
    return found


def stored(api: httpx.Client, user: str, text: str) -> dict[str, Any]:
    """The memory that says this, once it has arrived."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for memory in api.get("/memories/search", params={"user": user, "q": text}).json()["memories"]:
            if memory["content"] == text:
                return dict(memory)
    raise AssertionError(f"{text!r} did not arrive: {memories(api, user)}")


def test_a_memory_is_seen_with_where_it_came_from(server: Server, api: httpx.Client, user: str) -> None:
    """List, search with an explanation, get with history and sources."""
    task = tell(server, user, "I keep bees on the roof.")
    found = stored(api, user, "I keep bees on the roof.")
    assert found["sources"] == [task["history"][0]["messageId"]]
    assert found["role"] == "user"
    assert sum(found["signals"].values()) == pytest.approx(found["score"], abs=0.02)
    assert found["id"] in [memory["id"] for memory in memories(api, user)]
    whole = api.get(f"/memories/{found['id']}", params={"user": user}).json()
    assert whole["content"] == "I keep bees on the roof."
    assert whole["history"] == []


def test_a_correction_keeps_what_was_said_before(server: Server, api: httpx.Client, user: str) -> None:
    """Edit: the new text is found, the old one stays in the history; pin marks."""
    tell(server, user, "My boat is called Nora.")
    id_ = stored(api, user, "My boat is called Nora.")["id"]
    changed = api.patch(
        f"/memories/{id_}", params={"user": user}, json={"content": "My boat is called Dora.", "pinned": True}
    )
    assert changed.status_code == 200, changed.text
    assert changed.json()["pinned"] is True
    whole = api.get(f"/memories/{id_}", params={"user": user}).json()
    assert [memory["content"] for memory in whole["history"]] == ["My boat is called Nora."]
    assert stored(api, user, "My boat is called Dora.")["id"] == id_


def test_what_is_added_by_hand_is_recalled(server: Server, api: httpx.Client, user: str) -> None:
    """POST remembers; the agent sees it in its next turn."""
    added = api.post("/memories", params={"user": user}, json={"content": "My shoe size is 43.", "kind": "Entity"})
    assert added.status_code == 201, added.text
    answer = tell(server, user, "What is my shoe size?")
    assert "My shoe size is 43." in json.dumps(answer["artifacts"])
    assert answer["metadata"]["memory"]["retrieved"][0]["id"] == added.json()["id"]


def test_another_user_s_memory_is_not_there(server: Server, api: httpx.Client, user: str) -> None:
    """By no id, no search, no list, no change."""
    tell(server, user, "My locker code is 7731.")
    id_ = stored(api, user, "My locker code is 7731.")["id"]
    other = {"user": f"{user}x"}
    assert api.get(f"/memories/{id_}", params=other).status_code == 404
    assert api.patch(f"/memories/{id_}", params=other, json={"content": "x"}).status_code == 404
    assert api.delete(f"/memories/{id_}", params=other).status_code == 404
    assert api.get("/memories", params=other).json()["memories"] == []
    assert api.get("/memories/search", params=other | {"q": "locker code"}).json()["memories"] == []
    assert api.get("/memories", params={"user": user, "space": "work"}).json()["memories"] != []
    assert api.get("/memories", params={"user": user, "tenant": "t"}).json()["memories"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("GET", "/memories", None, "user, or session"),
        ("GET", "/memories?user=a&session=b", None, "user, or session"),
        ("GET", "/memories?user=a&space=nowhere", None, "no memory 'nowhere'"),
        ("GET", "/memories?user=a&limit=0", None, "limit: expected a whole number"),
        ("GET", "/memories?user=a&kind=Gossip", None, "kind: expected one of RecentMessage"),
        ("GET", "/memories?user=a&since=soon", None, "since: expected a time"),
        ("GET", "/memories?user=a%0Ab", None, "control characters"),
        ("GET", "/memories?user=a&superseded=maybe", None, "superseded: expected true or false"),
        ("GET", "/memories/search?user=a", None, "q: is missing"),
        ("POST", "/memories?user=a", {"content": " "}, "content: expected a text"),
        ("POST", "/memories?user=a", {"content": "x", "color": 1}, "color: unknown"),
        ("POST", "/memories?user=a", [1], "expected a JSON object"),
        ("POST", "/memories/forget?user=a", {}, "say what to forget"),
        ("POST", "/memories/forget?user=a", {"ids": [1]}, "ids: expected a list"),
    ],
)
def test_a_mistake_is_told(api: httpx.Client, method: str, path: str, body: Any, words: str) -> None:
    """400, and one line that names what is wrong."""
    answer = api.request(method, path, json=body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


def test_forgetting_is_for_good(server: Server, api: httpx.Client, user: str) -> None:
    """By id, and by words; the receipt counts, and no search finds it again."""
    tell(server, user, "My passport number is XK220.")
    tell(server, user, "My favourite tea is oolong.")
    passport = stored(api, user, "My passport number is XK220.")
    stored(api, user, "My favourite tea is oolong.")
    receipt = api.post("/memories/forget", params={"user": user}, json={"query": "passport"}).json()
    assert receipt["deleted"]["memories"] >= 1
    assert api.get(f"/memories/{passport['id']}", params={"user": user}).status_code == 404
    assert "passport" not in json.dumps(memories(api, user, limit=500))
    tea = stored(api, user, "My favourite tea is oolong.")
    assert api.delete(f"/memories/{tea['id']}", params={"user": user}).json()["deleted"]["memories"] == 1
    assert api.delete(f"/memories/{tea['id']}", params={"user": user}).status_code == 404


@pytest.mark.parametrize("name", ["team/alice", "a%2Fb", "/", "..", "user?x=1", "zoë", "x/export"])
def test_an_id_may_hold_what_paths_are_made_of(server: Server, api: httpx.Client, user: str, name: str) -> None:
    """Whoever is called so can be listed, exported and erased like everyone, and no neighbour is meant."""
    owner = f"{user}/{name}"
    tell(server, owner, "I play the cello.")
    stored(api, owner, "I play the cello.")
    path = f"/users/{quote(owner, safe='')}"
    assert api.get(path).json()["remains"]["memories"] >= 1
    exported = api.get(f"{path}/export").text
    assert "cello" in exported
    assert api.delete(path, params={"tasks": "true"}).json()["deleted"]["memories"] >= 1
    assert api.get(path).json()["remains"] == {}
    assert api.post(f"{path}/import", content=exported).json()["new"]["memory"] >= 1


def test_a_user_leaves_with_everything_and_comes_back(server: Server, api: httpx.Client, user: str) -> None:
    """Export holds memories, tasks, messages and artifacts; an import elsewhere and a second export give the same lines."""
    task = tell(server, user, "I play the cello.")
    stored(api, user, "I play the cello.")
    lines = api.get(f"/users/{user}/export").text
    values = [json.loads(line) for line in lines.splitlines()]
    assert {value["type"] for value in values} == {"memory", "task"}
    exported = next(value["task"] for value in values if value["type"] == "task")
    assert exported["id"] == task["id"]
    assert exported["artifacts"] == task["artifacts"]
    again = api.post(f"/users/{user}/import", content=lines)
    assert again.status_code == 200, again.text
    assert again.json()["new"]["memory"] == again.json()["new"]["task"] == 0
    api.delete(f"/users/{user}", params={"tasks": "true"})
    back = api.post(f"/users/{user}/import", content=lines)
    assert back.status_code == 200, back.text
    assert back.json()["new"]["task"] == 1
    assert sorted(api.get(f"/users/{user}/export").text.splitlines()) == sorted(lines.splitlines())
    bad = api.post(f"/users/{user}/import", content='{"type": "memory"}\n')
    assert bad.status_code == 400
    assert "line 1" in bad.json()["error"]


def test_an_erased_user_is_gone_from_every_file(server: Server, api: httpx.Client, user: str) -> None:
    """Rows of every table, and the bytes of the database files; a verifier says so; others keep theirs."""
    other = f"{user}-neighbour"
    tell(server, user, "My grandmother's brooch is a zanzibarite.")
    tell(server, other, "My neighbour is a plumber.")
    stored(api, user, "My grandmother's brooch is a zanzibarite.")
    stored(api, other, "My neighbour is a plumber.")
    receipt = api.delete(f"/users/{user}", params={"tasks": "true"}).json()
    assert receipt["deleted"]["tasks"] == 1
    assert receipt["deleted"]["turns"] == 1
    assert receipt["deleted"]["memories"] >= 2
    assert not any("holds open" in place for place in receipt["left"])
    assert api.get(f"/users/{user}").json()["remains"] == {}
    folder = server.folder / "var"
    for file in folder.iterdir():
        assert b"zanzibarite" not in file.read_bytes(), file
    assert stored(api, other, "My neighbour is a plumber.")


def test_a_request_may_keep_memory_out(server: Server, api: httpx.Client, user: str) -> None:
    """The extension: read-only recalls and stores nothing, off does neither; what is wrong is refused."""
    tell(server, user, "I have a parrot named Rio.")
    stored(api, user, "I have a parrot named Rio.")
    read = tell(server, user, "What is my parrot called? zq1", memory={"mode": "read-only", "top_k": 1})
    assert len(read["metadata"]["memory"]["retrieved"]) == 1
    assert "update" not in read["metadata"]["memory"]
    off = tell(server, user, "What is my parrot called? zq2", memory={"mode": "off"})
    assert "memory" not in off["metadata"]
    assert "Rio" not in json.dumps(off["artifacts"])
    last = tell(server, user, "What is my parrot called? zq3")
    assert last["metadata"]["memory"]["update"] in ("pending", "stored")
    stored(api, user, "What is my parrot called? zq3")
    assert not any(
        "zq1" in memory["content"] or "zq2" in memory["content"] for memory in memories(api, user, limit=500)
    )
    card = httpx.get(f"{server.url}/.well-known/agent-card.json").json()
    assert [extension["uri"] for extension in card["capabilities"]["extensions"]] == [
        "urn:retinue:a2a:memory:v1",
        "urn:retinue:a2a:generation:v1",
    ]


@pytest.mark.parametrize("asked", ["on", {"mode": "maybe"}, {"top_k": 0}, {"top_k": 1.5}, {"top_k": "many"}])
def test_an_unknown_wish_is_refused(server: Server, user: str, asked: Any) -> None:
    """InvalidParams, and nothing runs."""
    request = {
        "message": {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "hello"}]},
        "metadata": {"user_id": user, "memory": asked},
    }
    call = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": request}
    answer = httpx.post(server.url, json=call, headers={"A2A-Version": "1.0"}).json()
    assert answer["error"]["code"] == -32602
    assert "memory" in answer["error"]["message"]


def test_a_finished_task_tells_what_became_of_its_memory(server: Server, api: httpx.Client, user: str) -> None:
    """`update` becomes "stored" once every memory has it."""
    task = tell(server, user, "I repair typewriters.")
    found: dict[str, Any] = {}
    call = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": task["id"]}}
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = httpx.post(server.url, json=call, headers={"A2A-Version": "1.0"}).json()["result"]
        if found["metadata"]["memory"]["update"] == "stored":
            return
    raise AssertionError(found)


def test_the_terminal_does_it_all(server: Server, api: httpx.Client, user: str, tmp_path: Path) -> None:
    """list, search, get, add, edit, pin, forget, export, import, erase, as README and --help show them."""
    id_ = retinue(server, "add", "I sail on Sundays.", "--user", user).stdout.strip()
    assert id_
    assert "I sail on Sundays." in retinue(server, "list", "--user", user).stdout
    assert id_ in retinue(server, "search", "sail", "--user", user).stdout
    assert retinue(server, "edit", id_, "I sail on Mondays.", "--user", user).returncode == 0
    assert retinue(server, "pin", id_, "--user", user).returncode == 0
    whole = json.loads(retinue(server, "get", id_, "--user", user).stdout)
    assert (whole["content"], whole["pinned"]) == ("I sail on Mondays.", True)
    file = tmp_path / "user.jsonl"
    assert retinue(server, "export", "--user", user, "--output", str(file)).returncode == 0
    assert retinue(server, "forget", id_, "--user", user).returncode == 0
    assert "Mondays" not in retinue(server, "list", "--user", user, "--json").stdout
    assert json.loads(retinue(server, "import", str(file), "--user", user).stdout)["new"]["memory"] == 1
    assert "Mondays" in retinue(server, "list", "--user", user).stdout
    refused = retinue(server, "erase", "--user", user, stdin="n\n")
    assert refused.returncode == 1
    erased = retinue(server, "erase", "--user", user, "--tasks", "--yes", "--verify")
    assert erased.returncode == 0, erased.stderr
    assert "verified: nothing is left" in erased.stdout
    missing = retinue(server, "get", id_, "--user", user)
    assert (missing.returncode, missing.stderr) == (1, "there is no such memory\n")
    assert retinue(server, "forget", "--user", user).returncode == 2


def test_an_export_without_a_memory_that_is_down_has_all_the_others(tmp_path: Path, serve: Serve) -> None:
    """Of several memories one does not answer, and another cannot be made yet: the rest is exported, and so are the tasks; both
    are named in the file and on the terminal, the exit code is 1, and the file can be imported.
    """
    config = """\
memory:
  away: {backend: mem0-server, url: "http://127.0.0.1:9"}
  late: {backend: "late:Late"}
  default: {embedder: off}
agents:
  reciter: {default: true, model: "parts:Recite"}
  other: {model: "parts:Recite", memory: [away, late]}
"""
    late = "from retinue_memory import Memory\n\ndef Late():\n    raise ConnectionError('nobody answers')\n"
    (tmp_path / "late.py").write_text(late, encoding="utf-8")
    file = tmp_path / "alice.jsonl"
    with serve(tmp_path, config) as server:
        ask(server.url, "I keep bees.")
        retinue(server, "add", 'She says "missing" a lot.', "--user", "alice")
        done = retinue(server, "export", "--user", "alice", "--output", str(file))
        assert done.returncode == 1
        assert "missing is memory away (" in done.stderr
        assert "late (" in done.stderr
        assert retinue(server, "import", str(file), "--user", "bob").returncode == 0
        assert "I keep bees." in retinue(server, "list", "--user", "bob").stdout
        erased = httpx.delete(f"{server.url}/api/v1/users/alice", timeout=30)
        assert (erased.status_code, erased.json()["failed"]) == (503, ["away", "late"])
    values = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert {value["space"] for value in values if value["type"] == "missing"} == {"away", "late"}
    assert any(value["type"] == "memory" and "bees" in json.dumps(value) for value in values)
    assert any(value["type"] == "task" for value in values)


def get_all(*whose: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What mem0's get_all gives: texts, and the fields that say of whom they are."""
    return [
        {"id": uuid.uuid4().hex, "memory": text, "created_at": f"2025-05-{day:02}T08:00:00Z", "metadata": {}} | ids
        for day, (text, ids) in enumerate(whose, 1)
    ]


def test_what_mem0_gave_out_is_taken_by_each_user(server: Server, api: httpx.Client, user: str, tmp_path: Path) -> None:
    """Without --user every user's memories become that user's, what is no user's is left out and said so; again is once."""
    other = f"{user} junior"
    listed = get_all(
        ("Likes plum jam", {"user_id": user}),
        ("Plays the viola", {"user_id": other, "metadata": {"a": 1}}),
        ("Speaks politely", {"agent_id": "butler"}),
        ("Was in a hurry", {"run_id": "r1"}),
    )
    for name, text in (
        ("list.json", json.dumps(listed)),
        ("results.json", json.dumps({"results": listed}, indent=2)),
        ("lines.jsonl", "\n".join(map(json.dumps, listed))),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = retinue(server, "import", str(tmp_path / name))
        first = name == "list.json"
        assert json.loads(done.stdout) == {"new": {"memory": 2 * first}, "users": {user: 1 * first, other: 1 * first}}
        assert done.stderr.splitlines() == [
            "left out: 1 of agent 'butler', 1 of run 'r1'",
            "the metadata of 1 memories is not kept",
        ]
    (jam,) = memories(api, user)
    assert (jam["content"], jam["created_at"]) == ("Likes plum jam", "2025-05-01T08:00:00+00:00")
    assert [memory["content"] for memory in memories(api, other)] == ["Plays the viola"]


def test_of_mem0s_users_one_may_be_chosen(server: Server, api: httpx.Client, user: str, tmp_path: Path) -> None:
    """--user takes that user's memories and those that name nobody; the others are told, and nobody else gets anything."""
    other, file = f"{user}-2", tmp_path / "all.json"
    listed = get_all(("Rows", {"user_id": user}), ("Sails", {"user_id": other}), ("Swims", {}))
    file.write_text(json.dumps(listed), encoding="utf-8")
    done = retinue(server, "import", str(file), "--user", user)
    assert json.loads(done.stdout)["users"] == {user: 2}
    assert done.stderr == f"left out: 1 of user {other!r}\n"
    assert {memory["content"] for memory in memories(api, user)} == {"Rows", "Swims"}
    assert memories(api, other) == []
    nothing = retinue(server, "import", str(file), "--user", f"{user}-3", "--space", "nowhere")
    assert (nothing.returncode, "no memory 'nowhere'" in nothing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (
            '[{"id": "1", "memory": "Rows"}, {"id": "2", "memory": "", "user_id": "x"}]',
            1,
            "imported: item 2: memory is",
        ),
        ('[{"id": "1", "memory": "Rows", "user_id": "x", "created_at": "soon"}]', 1, "item 1: created_at is 'soon'"),
        ('{"results": 5}', 1, "neither an export nor what mem0's get_all gives"),
        ("not json", 1, "neither an export nor"),
        ('[{"id": "1", "memory": "Rows"}]', 1, "left out: 1 of nobody"),
        ('{"type": "memory", "space": "default", "memory": {}}', 2, "say whose it becomes"),
        ("\udcff", 1, "neither an export nor"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_place(
    server: Server, tmp_path: Path, content: str, code: int, said: str
) -> None:
    """Which item and which field, before anything is sent."""
    (tmp_path / "wrong.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    done = retinue(server, "import", str(tmp_path / "wrong.json"))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_what_a_program_exported_is_taken_too(server: Server, user: str, api: httpx.Client, tmp_path: Path) -> None:
    """The values that `ManagedMemory.export` gives, a line each: into the space that is named."""
    exported = """
import asyncio, json, sys
from retinue_memory import InvocationContext, Message, Scope, open_memory

async def main():
    memory = open_memory({"backend": "native", "database": "sqlite:///own.db", "embedder": False})
    ctx = InvocationContext("s", "al")
    await memory.update([Message("user", "I mend clocks")], ctx=ctx)
    async for value in memory.export(Scope.of(ctx)):
        print(json.dumps(value))
    await memory.aclose()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", exported], cwd=tmp_path, capture_output=True, text=True, check=True)
    (tmp_path / "own.jsonl").write_text(done.stdout, encoding="utf-8")
    taken = retinue(server, "import", str(tmp_path / "own.jsonl"), "--user", user, "--space", "work")
    assert taken.returncode == 0, taken.stderr
    assert json.loads(taken.stdout)["new"] == {"memory": 1, "task": 0}
    assert [memory["content"] for memory in memories(api, user, space="work")] == ["I mend clocks"]
    assert memories(api, user) == []


def test_over_http_all_items_are_right_or_none_is_taken(api: httpx.Client, user: str) -> None:
    """The lines of an import may carry mem0's items; another user's among them, and nothing of them is taken."""
    mine, others = get_all(("Rows", {"user_id": user}), ("Sails", {"user_id": "somebody"}))

    def post(*items: dict[str, Any]) -> httpx.Response:
        lines = "\n".join(json.dumps({"type": "memory", "space": "default", "memory": item}) for item in items)
        return api.post(f"/users/{user}/import", content=lines)

    refused = post(mine, others)
    assert refused.status_code == 400
    assert "value 2: memory" in refused.json()["error"]
    assert "somebody" in refused.json()["error"]
    assert memories(api, user) == []
    assert post(mine).json() == {"new": {"memory": 1, "task": 0}}
