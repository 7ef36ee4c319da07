"""What turns owe to memories: delivered once, whether it is handed over in memory or read from its rows."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a2a.types import Task, TaskState
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from retinue_memory import (
    Embedder,
    InvocationContext,
    Memory,
    Message,
    Scope,
)
from retinue_memory.database.base import Alongside
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.native.memory import NativeMemory
from retinue_memory.retry import RetryPolicy
from retinue_server.delivery.memory_delivery import done_alongside
from retinue_server.delivery.memory_outbox import Outbox
from retinue_server.runtime.store.store import Store
from retinue_server.runtime.turn import (
    Caller,
    DueWrite,
    MemoryWrite,
    Progress,
)

from .inprocess import eventually, request

ANYONE = Caller("agent", "", "door", None)
ALICE = Scope("", "default", "user", "alice").key


class Diary(Memory):
    """Keeps what it is told, in a list; refuses as often as it is asked to, and takes nothing while it is not open."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.told: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return []

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        assert kwargs.keys() == {"ctx"}
        if self.refuses:
            self.refuses -= 1
            raise ConnectionError("nobody at home")
        await self.open.wait()
        self.told += [message.content for message in messages]


class Gate(Embedder):
    """Embeds nothing before it is opened."""

    name, dimensions = "gate", 2

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.open.wait(20)
        return np.ones((len(texts), 2), np.float32)


class Turns:
    """Ends turns that owe a write, as a run does."""

    def __init__(self, store: Store, outbox: Outbox) -> None:
        self.store = store
        self.outbox = outbox

    async def end(self, text: str, user: str = "alice", memory: str = "default") -> DueWrite:
        accepted = await self.store.turns.accept(ANYONE, request(text), user=user)
        task = Task()
        task.CopyFrom(accepted.task)
        task.status.state = TaskState.TASK_STATE_COMPLETED
        context = InvocationContext("s", user, turn_id=f"{accepted.task.id}/m")
        write = MemoryWrite(memory, context, [Message("user", text)])
        done = Progress(
            accepted.turn,
            state=task.status.state,
            status_at=1,
            snapshot=task.SerializeToString(),
            generation=1,
            writes=[write],
            done=True,
        )
        (due,) = await self.store.turns.record(done)
        self.outbox.add([due])
        return due

    async def updates(self) -> list[str]:
        """How the memory update of every task went."""
        tasks = await self.store.owners.owned("", "user/alice", 0, 100)
        return [MessageToDict(owned.task.metadata)["memory"]["update"] for owned in tasks]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SQLiteDatabase]:
    database = SQLiteDatabase(tmp_path / "store.db")
    yield database
    await database.aclose()


@pytest.fixture
async def store(database: SQLiteDatabase) -> Store:
    store = Store.over(database)
    await asyncio.to_thread(store.migrate)
    return store


async def test_what_was_just_committed_is_delivered_without_being_read_again(store: Store) -> None:
    """In its order, and each task says so."""
    diary = Diary()
    outbox = Outbox(store.memory_outbox, {"default": diary})
    await outbox.start()
    turns = Turns(store, outbox)
    for number in range(20):
        await turns.end(f"number {number}")
    await eventually(lambda: not outbox.pending.of("default", ALICE), "all is delivered")
    assert diary.told == [f"number {number}" for number in range(20)]
    assert await turns.updates() == ["stored"] * 20
    assert await store.memory_outbox.unconfirmed_writes() == []
    await outbox.stop()


async def test_after_a_failure_everything_is_delivered_once(store: Store) -> None:
    """What was refused is read from its row and tried again; others are delivered meanwhile, and what comes afterwards is."""
    diary = Diary(refuses=1)
    outbox = Outbox(store.memory_outbox, {"default": diary})
    await outbox.start()
    turns = Turns(store, outbox)
    await turns.end("refused at first")
    await eventually(lambda: not diary.refuses, "the first try")
    await turns.end("of somebody else", user="bob")
    await eventually(lambda: len(diary.told) == 2, "what is owed arrives")
    await turns.end("afterwards")
    await eventually(lambda: len(diary.told) == 3, "what is owed arrives")
    assert sorted(diary.told) == ["afterwards", "of somebody else", "refused at first"]
    await eventually(lambda: not outbox.pending.of("default", ALICE), "all is delivered")
    assert await turns.updates() == ["stored", "stored"]
    await outbox.stop()


async def test_what_an_earlier_process_left_is_delivered_before_what_is_new(store: Store) -> None:
    """Rows first: an outbox that stopped, or never ran, left them."""
    diary = Diary()
    left = Turns(store, Outbox(store.memory_outbox, {}))
    for number in range(3):
        await left.end(f"left {number}")
    outbox = Outbox(store.memory_outbox, {"default": diary})
    await outbox.start()
    await Turns(store, outbox).end("new")
    await eventually(lambda: len(diary.told) == 4, "what is owed arrives")
    assert diary.told == ["left 0", "left 1", "left 2", "new"]
    await outbox.stop()


async def test_what_is_owed_to_an_erased_user_is_not_delivered(store: Store) -> None:
    """Although it is in hand, and although they are owed something new by the time its turn comes."""
    diary = Diary()
    outbox = Outbox(store.memory_outbox, {"default": diary})
    turns = Turns(store, outbox)
    await outbox.start()
    diary.open.clear()
    await turns.end("holds up the rest", user="bob")
    await turns.end("erased")
    await store.owners.disown_writes("", "user/alice")
    await outbox.drop("", "alice")
    await turns.end("new")
    diary.open.set()
    await eventually(lambda: "new" in diary.told, "what is owed arrives")
    assert diary.told == ["holds up the rest", "new"]
    await outbox.stop()


async def test_a_memory_of_the_same_database_notes_a_write_as_done_in_its_own_commit(
    store: Store, database: SQLiteDatabase
) -> None:
    """So it is never there without being noted. A replay is noted too; where there is nothing to write, it is not."""
    memory = NativeMemory(database, embedder=None)
    due = await Turns(store, Outbox(store.memory_outbox, {})).end("I live in Lisbon")
    ctx = InvocationContext("s", "alice", turn_id="t")
    done = done_alongside(due, memory, store.database)
    assert done is not None
    await memory.update([Message("user", " ")], ctx=ctx, alongside=done)
    assert not done.committed
    assert len(await store.memory_outbox.unconfirmed_writes()) == 1
    for _ in range(2):
        await memory.update([Message("user", "I live in Lisbon", id="m")], ctx=ctx, alongside=done)
        assert done.committed
        assert await store.memory_outbox.unconfirmed_writes() == []
    assert [found.content for found in await memory.retrieve("Where do I live?", ctx=ctx)] == ["I live in Lisbon"]
    await memory.aclose()


async def test_a_power_failure_after_a_memory_was_written_loses_nothing(
    store: Store, database: SQLiteDatabase, tmp_path: Path
) -> None:
    """The memory's commit need not have reached the disk: without it, the write is owed as it was, and is made again."""
    turns = Turns(store, Outbox(store.memory_outbox, {}))
    due = await turns.end("I live in Lisbon")
    for end in ("", "-wal"):  # what the disk has: the turn's end was flushed, and nothing after it
        shutil.copy(f"{database.path}{end}", tmp_path / f"disk.db{end}")
    memory = NativeMemory(database, embedder=None)
    done = done_alongside(due, memory, store.database)
    await memory.update(list(due.write.messages), ctx=due.write.context, alongside=done)
    assert await store.memory_outbox.unconfirmed_writes() == []
    await memory.aclose()
    later = SQLiteDatabase(tmp_path / "disk.db")
    memory = NativeMemory(later, embedder=None)
    outbox = Outbox(Store.over(later).memory_outbox, {"default": memory})
    assert await memory.retrieve("Where do I live?", ctx=due.write.context) == []
    await outbox.start()
    await eventually(lambda: not outbox.pending.of("default", ALICE), "what is owed arrives")
    (found,) = await memory.retrieve("Where do I live?", ctx=due.write.context)
    assert found.content == "I live in Lisbon"
    await outbox.stop()
    await memory.aclose()
    await later.aclose()


class Beside(Memory):
    """Keeps its rows in the server's database."""

    def __init__(self, database: SQLiteDatabase) -> None:
        self.database = database
        self.told: list[str] = []

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return []


class Late(Beside):
    """Does not come back from a write although it was committed."""

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        alongside: Alongside = kwargs["alongside"]
        assert self.database is not None
        await self.database.write(alongside.operation)
        self.told += [message.content for message in messages]
        await asyncio.Event().wait()


@pytest.mark.parametrize("tries", [40, 1])
async def test_a_write_that_was_made_after_its_time_is_not_owed_any_longer(
    store: Store, database: SQLiteDatabase, tries: int
) -> None:
    """Its memory timed out, but the commit came: the row is gone, nothing is tried again, and the task says so."""
    memory = Late(database)
    outbox = Outbox(
        store.memory_outbox, {"default": memory}, policies={"default": RetryPolicy(timeout_s=0.05, tries=tries)}
    )
    await outbox.start()
    turns = Turns(store, outbox)
    await turns.end("hello")
    await eventually(lambda: not outbox.pending.of("default", ALICE), "it is known to be made")
    assert memory.told == ["hello"]
    assert await turns.updates() == ["stored"]
    assert await store.memory_outbox.failed_writes(10) == []
    await outbox.stop()


class Neighbour(Beside):
    """Hangs at the first try, lets go of the second, writes at the third."""

    def __init__(self, database: SQLiteDatabase) -> None:
        super().__init__(database)
        self._does = iter((self._hang, self._let_go, self._write))

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await next(self._does)(kwargs["alongside"])
        self.told += [message.content for message in messages]

    async def _hang(self, alongside: Alongside) -> None:
        await asyncio.Event().wait()

    async def _let_go(self, alongside: Alongside) -> None:
        raise asyncio.CancelledError

    async def _write(self, alongside: Alongside) -> None:
        assert self.database is not None
        await self.database.write(alongside.operation)
        alongside.committed = True


async def test_a_memory_of_the_same_database_may_hang_or_let_go_of_a_write(
    store: Store, database: SQLiteDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, as any other's, and noted as done with its commit."""
    memory = Neighbour(database)
    outbox = Outbox(store.memory_outbox, {"default": memory}, policies={"default": RetryPolicy(timeout_s=0.05)})
    await outbox.start()
    turns = Turns(store, outbox)
    await turns.end("hello")
    await eventually(lambda: not outbox.pending.of("default", ALICE), "it is delivered")
    assert memory.told == ["hello"]
    assert await turns.updates() == ["stored"]
    problems = [record.getMessage().partition("again: ")[2] for record in caplog.records]
    assert problems == [
        "TimeoutError: not written within 0.05 s",
        "MemoryBackendError: the memory cancelled the write itself",
    ]
    await outbox.stop()


async def test_an_erasure_wins_over_a_write_and_what_goes_with_it(store: Store, database: SQLiteDatabase) -> None:
    """What was dropped is not noted as done by the memory: that is left to the outbox."""
    embedder = Gate()
    memory = NativeMemory(database, embedder=embedder)
    ctx = InvocationContext("s", "alice", turn_id="t")
    due = await Turns(store, Outbox(store.memory_outbox, {})).end("I live in Lisbon")
    done = done_alongside(due, memory, store.database)
    assert done is not None
    written = asyncio.create_task(memory.update([Message("user", "I live in Lisbon")], ctx=ctx, alongside=done))
    await eventually(embedder.entered.is_set, "the text is embedded")
    await memory.erase(Scope.of(ctx, memory.space))
    embedder.open.set()
    await written
    assert not done.committed
    assert await memory.remains(Scope.of(ctx, memory.space)) == {}
    assert len(await store.memory_outbox.unconfirmed_writes()) == 1
    await memory.aclose()


async def test_a_memory_of_its_own_database_is_told_of_no_other(store: Store, tmp_path: Path) -> None:
    """Its commit is another than the store's."""
    due = await Turns(store, Outbox(store.memory_outbox, {})).end("I live in Lisbon")
    memory = NativeMemory(f"sqlite:///{tmp_path}/own.db", embedder=None)
    assert done_alongside(due, memory, store.database) is None
    assert done_alongside(due, Diary(), store.database) is None
    await memory.aclose()


class Queue(Diary):
    """Queues its writes: what it was told is its own to deliver."""

    queues_writes = True

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        assert kwargs.pop("wait") is False
        await super().update(messages, **kwargs)

    async def already_written(self, messages: list[Message], *, ctx: InvocationContext) -> bool:
        raise AssertionError("it knows by the turn's id")


async def test_a_memory_that_queues_is_handed_a_write_until_it_has_queued_it(store: Store) -> None:
    """Its row is there until then, a try that failed is repeated, and what a process that died has left is handed over."""
    left = Turns(store, Outbox(store.memory_outbox, {}))
    await left.end("left")
    memory = Queue(refuses=1)
    outbox = Outbox(store.memory_outbox, {"default": memory})
    await outbox.start()
    await Turns(store, outbox).end("new")
    await eventually(lambda: not outbox.pending.of("default", ALICE), "all is handed over")
    assert memory.told == ["left", "new"]
    assert await store.memory_outbox.unconfirmed_writes() == []
    assert await left.updates() == ["stored", "stored"]
    await outbox.stop()
