"""Programs written for mem0's library, over a memory of ours."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from retinue_memory import (
    InvocationContext,
    Message,
    Scope,
    open_memory,
)
from retinue_memory.errors import ConfigError
from retinue_memory.mem0_compat import AsyncMemory, Memory
from retinue_memory.mem0_items import items_of, read_item
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder, turn_of

PROGRAM = '''
import json, os, sys
from hashlib import sha256

os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": os.getcwd(), "OPENAI_API_KEY": "unused"}


class Words:
    """An embedder for mem0: a direction for each word."""

    def __init__(self, config=None):
        self.config = config

    def embed(self, text, memory_action="add"):
        vector = [0.0] * 64
        for word in text.lower().split():
            vector[sha256(word.encode()).digest()[0] % 64] += 1
        return vector

    def embed_batch(self, texts, memory_action="add"):
        return [self.embed(text) for text in texts]


def theirs():
    from mem0 import Memory
    from mem0.utils.factory import EmbedderFactory

    EmbedderFactory.provider_to_class["openai"] = "program.Words"
    store = {"path": os.getcwd() + "/qdrant", "collection_name": "c", "embedding_model_dims": 64, "on_disk": True}
    return Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": store},
            "embedder": {"provider": "openai", "config": {}},
            "history_db_path": os.getcwd() + "/history.db",
        }
    )


def ours():
    from retinue_memory.mem0_compat import Memory

    return Memory.from_config({"backend": "native", "database": "sqlite:///ours.db", "embedder": False})


def program(memory):
    """What a program does with it, and what it sees."""
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My boat is called Petrel", "name": "Ann"},
        {"role": "assistant", "content": "A Petrel is a fine boat name"},
    ]
    seen = []
    added = memory.add(said, user_id="ann", run_id="r1", infer=False)["results"]
    seen.append([(one["memory"], one["event"], one["role"], one["actor_id"]) for one in added])
    memory.add("Her berth is number nine", user_id="ann", infer=False)
    memory.add({"role": "user", "content": "My boat is called Skua"}, user_id="bob", infer=False)
    everything = memory.get_all(filters={"user_id": "ann"})["results"]
    fields = ("memory", "user_id", "role")
    seen.append(sorted(tuple(one[name] for name in fields) for one in everything))
    assert len(memory.get_all(filters={"user_id": "ann"}, top_k=2)["results"]) == 2
    seen.append(sorted(one["memory"] for one in memory.get_all(filters={"user_id": "ann", "run_id": "r1"})["results"]))
    found = memory.search("boat called Petrel", filters={"user_id": "ann"}, top_k=3)["results"]
    seen.append((found[0]["memory"], found[0]["run_id"], 0 < found[0]["score"] <= 1))
    only = memory.search("berth number", filters={"user_id": "ann", "run_id": "r1"})["results"]
    seen.append("Her berth is number nine" in [one["memory"] for one in only])
    id = next(one["id"] for one in everything if "called" in one["memory"])
    seen.append([memory.get(id)[name] for name in fields])
    seen.append(sorted(memory.update(id, "My boat is called Fulmar")))
    seen.append(memory.get(id)["memory"])
    changes = memory.history(id)
    seen.append([(one["old_memory"], one["new_memory"], one["event"], one["memory_id"] == id) for one in changes])
    seen.append(sorted(changes[0]))
    seen.append(sorted(memory.delete(id)))
    seen.append(memory.get(id))
    for wrong in (
        lambda: memory.delete(id),
        lambda: memory.add("Nobody's", infer=False),
        lambda: memory.get_all(),
        lambda: memory.search("boat"),
        lambda: memory.search(" ", filters={"user_id": "ann"}),
        lambda: memory.delete_all(),
        lambda: memory.get_all(filters={"user_id": ""}),
    ):
        try:
            wrong()
        except Exception:
            seen.append("refused")
        else:
            seen.append("no error")
    seen.append(sorted(memory.delete_all(user_id="ann")))
    seen.append([one["memory"] for user in ("ann", "bob") for one in memory.get_all(filters={"user_id": user})["results"]])
    memory.close()
    return {"seen": seen, "item": sorted(everything[0]), "hit": sorted(found[0])}


if __name__ == "__main__":
    print(json.dumps({"theirs": program(theirs()), "ours": program(ours())}))
'''


def test_one_program_runs_over_both(tmp_path: Path) -> None:
    """The same calls give the same texts, owners, events, errors and shapes from mem0's own class and from ours."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    both = json.loads(run(tmp_path, "program.py").splitlines()[-1])
    assert both["ours"]["seen"] == both["theirs"]["seen"]
    assert set(both["ours"]["item"]) >= set(both["theirs"]["item"])
    assert set(both["ours"]["hit"]) >= set(both["theirs"]["hit"])


def test_the_parameters_are_those_of_mem0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every parameter of mem0's methods that ours do not refuse on purpose has its name and, where it is given by position,
    its place; the coroutines have the same."""
    monkeypatch.setenv("MEM0_DIR", str(tmp_path))
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    mem0: Any = importlib.import_module("mem0")
    refused = {"kwargs", "llm", "expiration_date", "memory_type", "prompt", "reference_date"}
    for name in ("add", "search", "get_all", "get", "update", "delete", "delete_all", "history"):
        for theirs, ours in ((mem0.Memory, Memory), (mem0.AsyncMemory, AsyncMemory)):
            wanted = inspect.signature(getattr(theirs, name)).parameters
            offered = inspect.signature(getattr(ours, name)).parameters
            assert wanted.keys() - refused <= offered.keys(), name
            by_place = [
                one for one in wanted.values() if one.kind is one.POSITIONAL_OR_KEYWORD and one.name not in refused
            ]
            places = [one.name for one in by_place if one.name != "data"]
            assert [*offered][: len(places)] == places, name


MOVE = """
import json, sys
from program import theirs

memory = theirs()
for line in sys.stdin:
    memory.add(**json.loads(line))
print(json.dumps(memory.get_all(filters={"user_id": "ann"}, top_k=1000)))
memory.close()
"""


async def test_memories_move_to_mem0_and_back(tmp_path: Path, native: NativeMemory) -> None:
    """The recipe of the guide makes calls of an export that mem0's own class takes; what that gives out comes back to us."""
    guide = (Path(__file__).parents[2] / "docs/guides/moving.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^```python\n(# to_mem0.py\n.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    address, database = f"sqlite:///{tmp_path}/move.db", tmp_path / "move.db"
    told = ["I live in Ghent", "I live in Bruges now", "I own a red kayak", "My aunt is called Ada"]
    leaving = NativeMemory(f"sqlite:///{database}", embedder=None)
    for text in told:
        await leaving.update(
            [Message("user", text, name="Ann"), Message("assistant", f"Noted: {text}")], ctx=turn_of("ann")
        )
    await leaving.update([Message("user", "I am Bob")], ctx=turn_of("bob"))
    await leaving.aclose()
    for name, program in (("to_mem0.py", recipe), ("program.py", PROGRAM), ("move.py", MOVE)):
        (tmp_path / name).write_text(program, encoding="utf-8")
    calls = await asyncio.to_thread(run, tmp_path, "to_mem0.py", address, "ann")
    moved = json.loads((await asyncio.to_thread(run, tmp_path, "move.py", stdin=calls)).splitlines()[-1])
    held = [text for text in told if "Ghent" not in text]
    assert {item["memory"] for item in moved["results"] if item["role"] == "user"} == set(held)

    async def items() -> AsyncIterator[dict[str, Any]]:
        for item in items_of(moved):
            yield item

    ann = Scope.of(turn_of("ann"))
    assert await native.import_(ann, items()) == len(moved["results"])
    back = (await native.browse(ann)).records
    assert {(record.content, record.speaker) for record in back if record.role == "user"} == {
        (text, "Ann") for text in held
    }


def run(folder: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, input=stdin, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [folder, *sys.path]))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
async def native(tmp_path: Path) -> AsyncIterator[NativeMemory]:
    memory = NativeMemory(f"sqlite:///{tmp_path}/memory.db", embedder=HashEmbedder())
    yield memory
    await memory.aclose()


def texts(answer: dict[str, Any]) -> list[str]:
    return [item["memory"] for item in answer["results"]]


async def test_it_is_the_same_memory(native: NativeMemory) -> None:
    """What an agent of ours was told is found through mem0's shapes, and the other way round; scopes are the same."""
    memory = AsyncMemory(native)
    await native.update([Message("user", "I collect stamps")], ctx=InvocationContext("monday", "alice"))
    (stamps,) = (await memory.search("stamps", user_id="alice"))["results"]
    assert (stamps["memory"], stamps["run_id"], stamps["user_id"]) == ("I collect stamps", "monday", "alice")
    await memory.add("I collect coins", user_id="alice", run_id="tuesday", timestamp=1_700_000_000)
    (coins,) = await native.retrieve("coins", top_k=1, ctx=turn_of("alice"))
    assert (coins.content, coins.created_at.timestamp()) == ("I collect coins", 1_700_000_000)
    await memory.add("It rains in this session", run_id="s9")
    assert await native.retrieve("rain", ctx=InvocationContext("s9"))
    assert texts(await memory.get_all(run_id="s9")) == ["It rains in this session"]
    assert texts(await memory.search("coins stamps", user_id="bob", limit=5)) == []


async def test_runs_and_agents_are_told_apart(native: NativeMemory) -> None:
    """Of a user: all, those of a run, of an agent, of both. An agent has a memory of its own. What is deleted is only those."""
    memory = AsyncMemory(native)
    for agent, run in ((None, None), (None, "a@b"), ("guide", None), ("guide", "r/1"), ("cook", "r/1")):
        added = await memory.add(f"Said to {agent} in {run}", user_id="al", agent_id=agent, run_id=run)
        ((item),) = added["results"]
        assert (item["user_id"], item["agent_id"], item["run_id"]) == ("al", agent, run)
    await memory.add("The guide's own", agent_id="guide")

    async def of(**ids: str) -> set[str]:
        found, hits = await memory.get_all(filters=ids), await memory.search("said to in", filters=ids)
        assert set(texts(hits)) == set(texts(found))
        return {text.removeprefix("Said to ") for text in texts(found)}

    assert len(await of(user_id="al")) == 5
    assert await of(user_id="al", run_id="a@b") == {"None in a@b"}
    assert await of(user_id="al", agent_id="guide") == {"guide in None", "guide in r/1"}
    assert await of(user_id="al", agent_id="cook", run_id="r/1") == {"cook in r/1"}
    assert texts(await memory.get_all(agent_id="guide")) == ["The guide's own"]
    await memory.delete_all(user_id="al", agent_id="guide")
    assert len(await of(user_id="al")) == 3
    await memory.delete_all(user_id="al")
    assert await of(user_id="al") == set()
    assert await native.remains(Scope.of(turn_of("al"))) == {}
    assert texts(await memory.get_all(agent_id="guide")) == ["The guide's own"]


async def test_an_id_says_whose_it_is_and_reaches_no_other(native: NativeMemory) -> None:
    """It works in another process too, since nothing is kept beside it; made up or put together, it finds nothing."""
    added = await AsyncMemory(native).add("I have a key", user_id="al/ice @ home")
    id_ = added["results"][0]["id"]
    memory = AsyncMemory(native)
    item = await memory.get(id_)
    assert item is not None
    assert (item["memory"], item["user_id"]) == ("I have a key", "al/ice @ home")
    own = id_.rpartition("/")[2]
    for wrong in ("", "x", own, f"user/bob/{own}", f"session/al/{own}", f"user//{own}", id_ + "x", "user/al%2Fice"):
        assert await memory.get(wrong) is None
        assert await memory.history(wrong) == []
        for call in (memory.delete(wrong), memory.update(wrong, "mine")):
            with pytest.raises(ValueError, match="there is no memory"):
                await call
    assert await memory.get(id_) == item
    assert await AsyncMemory(native, tenant="other").get(id_) is None


async def test_what_cannot_be_heeded_is_said(native: NativeMemory, caplog: pytest.LogCaptureFixture) -> None:
    """Metadata are a warning, a filter by them is an error: an answer never holds more than was asked for."""
    memory = AsyncMemory(native)
    with caplog.at_level(logging.WARNING):
        await memory.add("I row", user_id="al", metadata={"topic": "sport"})
    assert "metadata is not stored: topic" in caplog.text
    for filters, said in (
        ({"user_id": "al", "topic": "sport"}, "cannot be filtered by 'topic'"),
        ({"OR": [{"user_id": "al"}, {"user_id": "bo"}]}, "cannot be filtered by 'OR'"),
        ({"user_id": "*"}, "user_id is '\\*'"),
        ({"user_id": {"in": ["al"]}}, "user_id is {"),
        ({"agent_id": "a", "run_id": "r"}, "leave out run_id"),
    ):
        with pytest.raises(ValueError, match=said):
            await memory.search("row", filters=filters)
    with pytest.raises(ValueError, match="given twice"):
        await memory.search("row", user_id="al", filters={"user_id": "bo"})
    assert texts(await memory.search("row", filters={"AND": [{"user_id": "al"}]}, explain=True)) == ["I row"]
    wrong: list[Any] = [5, [5], [{"role": "poet", "content": "x"}], [{"role": "user"}], {"content": "x"}]
    for messages in wrong:
        with pytest.raises(ValueError, match="message"):
            await memory.add(messages, user_id="al")
    picture = {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "My kite"}]}
    assert texts(await memory.add([picture], user_id="al")) == ["My kite"]
    assert (await memory.add([{"role": "system", "content": "x"}], user_id="al"))["results"] == []


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Memory]:
    config = {"backend": "native", "database": f"sqlite:///{tmp_path}/plain.db", "embedder": False}
    with Memory.from_config(config) as memory:
        yield memory


async def test_it_may_be_called_where_a_loop_runs(plain: Memory) -> None:
    """The plain class in a coroutine, or in many threads at once: a call waits, and nothing is lost."""
    plain.add("I am up", user_id="al")
    await asyncio.gather(
        *(asyncio.to_thread(plain.add, f"Shelf {number} holds box {number}", user_id="al") for number in range(20))
    )
    assert len(plain.get_all(user_id="al", limit=99)["results"]) == 21


async def test_what_leaves_can_come_back(native: NativeMemory, plain: Memory) -> None:
    """What get_all gives is taken by `import_`, of ours as of mem0's; texts and times stay."""
    for number in range(3):
        plain.add(f"Fact {number} of geese", user_id="al", timestamp=1_700_000_000 + number)
    document = json.loads(json.dumps(plain.get_all(user_id="al")))
    assert {read_item(item, "item").user for item in items_of(document)} == {"al"}

    async def items() -> AsyncIterator[dict[str, Any]]:
        for item in document["results"]:
            yield item

    scope = Scope.of(turn_of("al"))
    assert await native.import_(scope, items()) == 3
    assert [record.content for record in (await native.browse(scope)).records] == texts(document)
    assert await native.import_(scope, items()) == 0


async def test_only_a_managed_memory_will_do(tmp_path: Path) -> None:
    """One that cannot list or delete is refused when it is named, by its key."""
    with pytest.raises(ConfigError, match="cannot be managed"):
        AsyncMemory.from_config("tests.memory.test_callbacks:Plain")
    memory = open_memory({"backend": "native", "database": f"sqlite:///{tmp_path}/x.db"})
    assert isinstance(memory, NativeMemory)
    async with AsyncMemory(memory) as like:
        assert texts(await like.get_all(user_id="al")) == []
