"""Mem0Local over the real mem0 library: the promises of every memory, and what the library alone does not keep."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from retinue_agents.testing import ScriptedModel
from retinue_memory import (
    Embedder,
    Message,
    Scope,
    open_memory,
)
from retinue_memory.errors import ConfigError, MemoryBackendError, ModelError
from retinue_memory.mem0 import Mem0Local
from retinue_memory.native.embedder import MiniLM
from retinue_memory.testing import (
    HashEmbedder,
    ManagedConformance,
    MemoryConformance,
    turn_of,
)
from retinue_server.assembly import build
from retinue_server.config import load_config

MARK = "Zebrafish"
"""In everything that the erased user says, and in nothing else."""
ALICE, BOB = Scope.of(turn_of("alice")), Scope.of(turn_of("bob"))
Opened = Callable[..., Mem0Local]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Makes memories over one folder, and closes them."""
    made: list[Mem0Local] = []

    def make(**settings: Any) -> Mem0Local:
        settings.setdefault("embedder", HashEmbedder(1024))
        made.append(Mem0Local(tmp_path / "mem0", **settings))
        return made[-1]

    yield make
    for memory in made:
        await memory.aclose()


class TestMem0Local(ManagedConformance):
    """Everything that holds of any memory."""

    imports_exactly = False

    @pytest.fixture
    async def memory(self, opened: Opened) -> Mem0Local:
        return opened()


class TestMem0LocalWhoseModelFails(MemoryConformance):
    """Nor does it matter whether the model that is to draw facts ever answers."""

    @pytest.fixture
    async def memory(self, opened: Opened) -> Mem0Local:
        return opened(model=ScriptedModel())


async def found(memory: Mem0Local, query: str, user: str = "alice", top_k: int = 100) -> list[str]:
    return [message.content for message in await memory.retrieve(query, top_k=top_k, ctx=turn_of(user))]


def facts(*texts: str) -> str:
    return json.dumps({"memory": [{"id": str(number), "text": text} for number, text in enumerate(texts)]})


# -- the embedder -------------------------------------------------------------------------------------------------------


async def test_meaning_is_found_without_a_shared_word(opened: Opened, minilm: MiniLM) -> None:
    """The built-in embedder makes the vectors: what is asked in other words is found first."""
    memory = opened(embedder=minilm)
    for text in ("My daughter plays the violin", "The car is in the garage", "We paint the kitchen in May"):
        await memory.update([Message("user", text)], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    assert (await found(memory, "which music instrument does her child practise"))[0] == "My daughter plays the violin"


async def test_a_folder_belongs_to_its_embedder(opened: Opened) -> None:
    """Vectors of two embedders cannot be compared: another one is refused by name, before anything is written."""
    memory = opened()
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    await memory.aclose()
    other = opened(embedder=HashEmbedder(32))
    with pytest.raises(MemoryBackendError, match="made with the embedder 'hash-1024', not 'hash-32'"):
        await found(other, "bees")
    await other.aclose()
    assert await found(opened(), "bees") == ["I keep bees"]


async def test_without_an_embedder_it_says_so(opened: Opened) -> None:
    """mem0 cannot do without vectors: the error says what to install."""
    with pytest.raises(MemoryBackendError, match=r"retinue\[local\]"):
        await found(opened(embedder=lambda: None), "bees")


# -- the model ----------------------------------------------------------------------------------------------------------


async def test_a_model_draws_facts(opened: Opened) -> None:
    """Any ChatModel works by way of mem0's own extraction: it is asked for JSON, and what it draws is what is remembered."""
    model = ScriptedModel([facts("The user keeps bees", "The user has two hives")])
    memory = opened(model=model)
    await memory.update(
        [Message("user", "I keep bees in two hives", id="m1"), Message("assistant", "Nice")], ctx=turn_of()
    )
    assert await memory.wait_indexed(turn_of())
    hits = await memory.retrieve("the user", top_k=9, ctx=turn_of())
    assert sorted(hit.content for hit in hits) == ["The user has two hives", "The user keeps bees"]
    assert all("m1" in hit.metadata["memory"]["sources"] for hit in hits)
    (request,) = model.requests
    assert request.schema is not None
    assert "I keep bees in two hives" in request.messages[-1].content


@pytest.mark.parametrize(
    "answer",
    [ModelError("over quota"), "I cannot help with that", '{"memory": [{"fact": "x"}]}', "", '{"memory": "no"}'],
)
async def test_what_a_model_makes_nothing_of_is_kept_as_it_was_said(opened: Opened, answer: str | ModelError) -> None:
    """A model that fails or answers with rubbish loses nothing: the messages themselves are the memory."""
    memory = opened(model=ScriptedModel([answer]))
    await memory.update([Message("user", "I keep bees"), Message("assistant", "How many hives?")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    assert sorted(await found(memory, "bees hives")) == ["How many hives?", "I keep bees"]


class Slow(ScriptedModel):
    """Answers when it may."""

    def __init__(self, answer: str) -> None:
        super().__init__([answer] * 3)
        self.asked, self.may_answer = threading.Event(), threading.Event()

    async def stream(self, messages: Any, **settings: Any) -> AsyncIterator[Any]:
        self.asked.set()
        await asyncio.to_thread(self.may_answer.wait, 20)
        async for delta in super().stream(messages, **settings):
            yield delta


async def test_a_slow_model_holds_up_nobody(opened: Opened) -> None:
    """While the model answers one user, others are read and written, and what was said is found already."""
    model = Slow(facts("The user keeps bees"))
    memory = opened(model=model)
    writing = asyncio.create_task(memory.update([Message("user", "I keep bees")], ctx=turn_of()))
    await asyncio.to_thread(model.asked.wait, 20)
    assert await found(memory, "bees") == ["I keep bees"]
    added = await memory.add(BOB, "Bob sails")
    assert await found(memory, "sails", "bob") == ["Bob sails"]
    assert (await memory.get(BOB, added.id)) == added
    model.may_answer.set()
    await writing
    assert await memory.wait_indexed(turn_of())
    assert await found(memory, "bees") == ["The user keeps bees"]


async def test_an_erasure_wins_over_a_model(opened: Opened) -> None:
    """What a model draws from messages that were erased while it answered is not kept."""
    model = Slow(facts(f"The user keeps {MARK}"))
    memory = opened(model=model, patience=0.2)
    writing = asyncio.create_task(memory.update([Message("user", f"I keep {MARK}")], ctx=turn_of()))
    await asyncio.to_thread(model.asked.wait, 20)
    await memory.erase(ALICE)
    assert await found(memory, MARK) == []
    model.may_answer.set()
    await asyncio.gather(writing, return_exceptions=True)
    assert await memory.wait_indexed(turn_of())
    assert await found(memory, MARK) == []
    assert await memory.remains(ALICE) == {}


# -- concurrency --------------------------------------------------------------------------------------------------------


async def test_forty_writers_at_once_lose_nothing(opened: Opened) -> None:
    """Round after round: everything that was accepted is there, once, now and after a restart."""
    memory, texts = opened(), list[str]()
    for rnd in range(5):
        texts += [f"Round {rnd} box {number}" for number in range(40)]
        await asyncio.gather(*(memory.update([Message("user", text)], ctx=turn_of()) for text in texts[-40:]))
    assert sorted(await found(memory, "round box", top_k=400)) == sorted(texts)
    await memory.aclose()
    again = opened()
    assert sorted(await found(again, "round box", top_k=400)) == sorted(texts)
    assert len((await again.browse(ALICE, limit=1000)).records) == len(texts)


async def test_readers_and_writers_do_not_disturb_each_other(opened: Opened) -> None:
    """Reads while others write, edit and delete: each answer is one that held at some moment, and none fails."""
    memory = opened()
    await memory.update([Message("user", "The anchor stays")], ctx=turn_of())
    writing = asyncio.gather(
        *(memory.update([Message("user", f"Note {number}")], ctx=turn_of()) for number in range(60))
    )
    for _ in range(40):
        assert "The anchor stays" in await found(memory, "anchor")
    await writing
    records = (await memory.browse(ALICE, limit=1000)).records
    notes = [record for record in records if record.content.startswith("Note")]
    await asyncio.gather(
        *(memory.edit(ALICE, record.id, f"{record.content} edited") for record in notes[:20]),
        *(memory.forget(ALICE, ids=[record.id]) for record in notes[20:40]),
        *(found(memory, "anchor") for _ in range(20)),
    )
    contents = [record.content for record in (await memory.browse(ALICE, limit=1000)).records]
    assert len(contents) == 41
    assert sum(content.endswith("edited") for content in contents) == 20


async def test_the_event_loop_is_never_held_up(opened: Opened) -> None:
    """The import of mem0, writing and searching are all off the caller's loop."""
    lags: list[float] = []

    async def watch() -> None:
        while True:
            began = monotonic()
            await asyncio.sleep(0.01)
            lags.append(monotonic() - began - 0.01)

    memory = opened()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(memory.update([Message("user", f"Note {n}")], ctx=turn_of()) for n in range(40)))
    await asyncio.gather(*(found(memory, f"note {n}") for n in range(20)))
    watching.cancel()
    assert sorted(lags)[len(lags) // 2] < 0.05
    assert max(lags) < 1.0


async def test_a_folder_is_one_memorys(opened: Opened) -> None:
    """A second one, here or in another process, is told so by name; it works once the first is closed."""
    first = opened()
    await first.update([Message("user", "I keep bees")], ctx=turn_of())
    second = opened(database=None)
    with pytest.raises(MemoryBackendError, match="in use by another process or memory"):
        await found(second, "bees")
    await first.aclose()
    assert await found(second, "bees") == ["I keep bees"]


async def test_a_damaged_folder_is_named(opened: Opened, tmp_path: Path) -> None:
    """What is wrong and where; nothing stays open, and it works again once it is repaired."""
    history = tmp_path / "mem0" / "history.db"
    history.parent.mkdir()
    history.write_text("This is no database, and long enough to be taken for one." * 20, encoding="utf-8")
    memory = opened()
    with pytest.raises(MemoryBackendError, match=r"mem0 cannot be opened \(DatabaseError"):
        await found(memory, "bees")
    history.unlink()
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    assert await found(memory, "bees") == ["I keep bees"]


# -- erasure ------------------------------------------------------------------------------------------------------------


def traces(folder: Path, mark: str = MARK) -> list[str]:
    """The files that still hold the mark, in UTF-8 or UTF-16."""
    pieces = [mark.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.name for path in files if any(piece in path.read_bytes() for piece in pieces)]


async def test_what_is_erased_is_gone_from_the_bytes(opened: Opened, tmp_path: Path) -> None:
    """Memories, edits, deletions, the history and the last messages that mem0 keeps beside: after an erasure no file
    holds a word of it, nor does the process hand it out; others keep theirs."""
    model = ScriptedModel([facts(f"The user breeds {MARK}")] * 21)
    memory = opened(model=model)
    for number in range(20):
        await memory.update([Message("user", f"{MARK} number {number}")], ctx=turn_of())
    assert await memory.wait_indexed(turn_of())
    records = [await memory.add(ALICE, f"{MARK} {number} by hand {'word ' * number}") for number in range(40)]
    for record in records[:10]:
        await memory.edit(ALICE, record.id, f"{MARK} edited")
    await memory.forget(ALICE, ids=[record.id for record in records[10:20]])
    await memory.update([Message("user", f"{MARK} once more")], ctx=turn_of())
    kept = [await memory.add(BOB, f"Bob {number} {'word ' * number}") for number in range(20)]
    assert traces(tmp_path) != []
    assert set(await memory.remains(ALICE)) == {"memories", "mem0_turns", "history", "messages"}
    receipt = await memory.erase(ALICE)
    assert receipt.deleted["memories"] == 31
    assert receipt.deleted["history"] >= 41
    assert receipt.deleted["messages"] >= 1
    assert await memory.remains(ALICE) == {}
    assert traces(tmp_path) == []
    assert len((await memory.browse(BOB, limit=1000)).records) == len(kept)
    assert len(await memory.history(BOB, kept[0].id)) == 1
    await memory.aclose()
    assert traces(tmp_path) == []
    again = opened()
    assert await found(again, MARK) == []
    assert len((await again.browse(BOB, limit=1000)).records) == len(kept)


async def test_what_is_forgotten_has_no_history(opened: Opened, tmp_path: Path) -> None:
    """A memory that is deleted is gone from mem0's history as well, and from the bytes of the files."""
    memory = opened()
    await memory.add(ALICE, "I keep bees")
    record = await memory.add(ALICE, f"I breed {MARK}")
    await memory.edit(ALICE, record.id, f"I breed many {MARK}")
    await memory.forget(ALICE, ids=[record.id])
    assert await memory.history(ALICE, record.id) == []
    with sqlite3.connect(tmp_path / "mem0" / "history.db") as db:
        assert db.execute("SELECT count(*) FROM history").fetchone() == (1,)
    db.close()
    assert traces(tmp_path) == []


# -- crashes ------------------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from retinue_memory import Message
from retinue_memory.mem0 import Mem0Local
from retinue_memory.testing import HashEmbedder, turn_of

async def main():
    memory = Mem0Local(sys.argv[1], embedder=HashEmbedder(1024))
    async def write(worker):
        for number in range(10_000):
            turn = f"turn-{worker}-{number}"
            said = [Message("user", f"{turn} asked"), Message("assistant", f"{turn} answered")]
            await memory.update(said, ctx=turn_of(turn=turn))
            print(turn, flush=True)
    await asyncio.gather(*(write(worker) for worker in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("turns", [5, 40])
async def test_a_crash_loses_and_doubles_nothing(opened: Opened, tmp_path: Path, turns: int) -> None:
    """Killed while four writers write: every turn that was acknowledged is there, whole and once; no other is there in part."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path / "mem0"), stdout=PIPE)
    assert process.stdout is not None
    acknowledged = [(await process.stdout.readline()).decode().strip() for _ in range(turns)]
    process.send_signal(signal.SIGKILL)
    acknowledged += (await process.stdout.read()).decode().split()
    await process.wait()
    memory = opened()
    assert await memory.wait_indexed()
    contents = [record.content for record in (await memory.browse(ALICE, limit=1000)).records]
    assert len(contents) == len(set(contents))
    for turn in acknowledged:
        assert f"{turn} asked" in contents
        assert f"{turn} answered" in contents
    whole = {content.rpartition(" ")[0] for content in contents}
    assert len(contents) == 2 * len(whole)


# -- at start and end ---------------------------------------------------------------------------------------------------


async def test_nothing_is_imported_or_written_before_the_first_use(tmp_path: Path) -> None:
    """Making the memory costs nothing; using it neither phones home nor writes outside of its folder."""
    program = f"""
import asyncio, os, sys
from retinue_memory import Message
from retinue_memory.mem0 import Mem0Local
from retinue_memory.testing import HashEmbedder, turn_of
memory = Mem0Local({str(tmp_path / "mem0")!r}, embedder=HashEmbedder())
assert not {{"mem0", "qdrant_client", "posthog", "numpy"}} & set(sys.modules), sorted(sys.modules)
assert not os.path.exists({str(tmp_path / "mem0")!r})
async def main():
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    print([hit.content for hit in await memory.retrieve("bees", ctx=turn_of())])
    from mem0.memory import telemetry
    assert telemetry.MEM0_TELEMETRY is False
    assert telemetry.client_telemetry.posthog is None
    await memory.aclose()
asyncio.run(main())
"""
    home = tmp_path / "home"
    home.mkdir()
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEM0_")} | {"HOME": str(home)}
    strict = ("-W", "error", "-X", "dev")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *strict, "-c", program, stdout=PIPE, stderr=PIPE, env=env
    )
    out, err = await process.communicate()
    assert out.decode() == "['I keep bees']\n", err.decode()
    assert b"ResourceWarning" not in err
    assert list(home.iterdir()) == []


async def test_what_users_say_is_not_logged(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    """mem0 logs the texts of its memories; ours does not let it."""
    caplog.set_level(logging.INFO)
    memory = opened()
    record = await memory.add(ALICE, f"I breed {MARK}")
    await memory.edit(ALICE, record.id, f"I breed many {MARK}")
    await memory.forget(ALICE, ids=[record.id])
    assert MARK not in caplog.text


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_it_comes_from_a_config(in_folder: Path) -> None:
    """`backend: mem0-local` alone is enough; it has a folder of its own below var/."""
    embedder: Embedder = HashEmbedder()
    memory = open_memory({"backend": "mem0-local"}, name="team", embedder=embedder)
    await memory.update([Message("user", "I keep bees")], ctx=turn_of())
    assert [hit.content for hit in await memory.retrieve("bees", ctx=turn_of())] == ["I keep bees"]
    await memory.aclose()
    assert (in_folder / "var" / "mem0" / "team" / "history.db").exists()


DRAWING = """
import json
from retinue_memory import ChatModel, ModelDelta

class Draws(ChatModel):
    async def stream(self, messages, *, tools=(), schema=None, **settings):
        assert schema is not None
        yield ModelDelta(json.dumps({"memory": [{"id": "0", "text": "The user keeps bees"}]}))
"""


async def test_a_servers_config_names_its_model(in_folder: Path, minilm: MiniLM) -> None:
    """`model` is what an agent's `model` is: a spec that the server knows."""
    (in_folder / "drawing.py").write_text(DRAWING, encoding="utf-8")
    (in_folder / "retinue.yaml").write_text(
        """
memory:
  default: {backend: mem0-local, model: "drawing:Draws"}
agents:
  echo: {default: true, model: "retinue_agents.testing:EchoModel"}
""",
        encoding="utf-8",
    )
    server = build(load_config(in_folder / "retinue.yaml"))
    server.open()
    try:
        memory = server.memories["default"]
        await memory.update([Message("user", "I have four hives")], ctx=turn_of())
        assert [hit.content for hit in await memory.retrieve("bees", ctx=turn_of())] == ["The user keeps bees"]
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("entry", "key", "problem"),
    [
        ({"pth": "x"}, "pth", 'did you mean "path"'),
        ({"path": ""}, "path", "folder"),
        ({"model": "nowhere:Model"}, "model", "there is no module"),
        ({"model": 7}, "model", "ChatModel"),
        ({"model_timeout": -1}, "model_timeout", "more than 0"),
        ({"infer": "yes"}, "infer", "true or false"),
    ],
)
def test_a_wrong_setting_is_named(entry: dict[str, Any], key: str, problem: str) -> None:
    """The key and what is wrong with it, at start."""
    with pytest.raises(ConfigError, match=problem) as caught:
        open_memory({"backend": "mem0-local", **entry})
    assert caught.value.key == key
