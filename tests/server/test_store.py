"""The behaviour of the store. Each test runs on every kind of database."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from a2a.types import (
    Message,
    Part,
    Role,
    SendMessageRequest,
    StreamResponse,
    Task,
    TaskPushNotificationConfig,
    TaskState,
    TaskStatus,
)
from a2a.utils.errors import InvalidParamsError, TaskNotFoundError, UnsupportedOperationError
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue_memory import InvocationContext, ToolCall
from retinue_memory import Message as Said
from retinue_memory.database.base import Connection
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_server.runtime.store.store import Store
from retinue_server.runtime.store.tasks import Listing
from retinue_server.runtime.turn import (
    Accepted,
    Caller,
    Continues,
    MemoryWrite,
    Progress,
    StaleAttempt,
    Turn,
    TurnState,
)

from .inprocess import request

SUBMITTED, WORKING, COMPLETED = (
    TaskState.TASK_STATE_SUBMITTED,
    TaskState.TASK_STATE_WORKING,
    TaskState.TASK_STATE_COMPLETED,
)
FAILED, CANCELED, REJECTED = (
    TaskState.TASK_STATE_FAILED,
    TaskState.TASK_STATE_CANCELED,
    TaskState.TASK_STATE_REJECTED,
)
INPUT_REQUIRED = TaskState.TASK_STATE_INPUT_REQUIRED

LATER = 2**52
"""Microseconds since the epoch, in a hundred years."""
ANYONE = Caller("agent", "", "door", None)
"""A caller who may act for every user of the tenant."""


@dataclass
class Opened:
    """A store, and a function that counts the rows of each table."""

    store: Store
    rows: Callable[[], Awaitable[dict[str, int]]]


Open = Callable[[Path], AbstractAsyncContextManager[Opened]]


@asynccontextmanager
async def open_sqlite(folder: Path) -> AsyncGenerator[Opened]:
    database = SQLiteDatabase(folder / "store.db")
    store = Store.over(database)
    await asyncio.to_thread(store.migrate)

    def rows(db: Connection) -> dict[str, int]:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}

    yield Opened(store, lambda: database.read(rows))
    await database.aclose()


@pytest.fixture(params=[open_sqlite], ids=["sqlite"])
def open_store(request: pytest.FixtureRequest) -> Open:
    """Opens the store of a folder. Opened again, it is as a new process finds it."""
    opener: Open = request.param
    return opener


@pytest.fixture
async def opened(open_store: Open, tmp_path: Path) -> AsyncIterator[Opened]:
    async with open_store(tmp_path) as found:
        yield found


@pytest.fixture
def store(opened: Opened) -> Store:
    return opened.store


async def accept(
    store: Store, text: str = "hello", *, caller: Caller = ANYONE, user: str | None = "alice", **fields: Any
) -> Accepted:
    return await store.turns.accept(caller, request(text, **fields), user=user)


_clock = iter(range(1_000_000, 2**40))


def progress(accepted: Accepted, state: TaskState = WORKING, *, at: int | None = None, **more: Any) -> Progress:
    """The next progress of a turn, one generation later."""
    task = Task()
    task.CopyFrom(accepted.task)
    task.status.state = state
    at = next(_clock) if at is None else at
    task.status.timestamp.FromMicroseconds(at)
    fields: dict[str, Any] = {"generation": next(_clock)} | more
    return Progress(accepted.turn, state=state, status_at=at, snapshot=task.SerializeToString(), **fields)


async def end(store: Store, accepted: Accepted, state: TaskState = COMPLETED, **more: Any) -> None:
    await store.turns.record(progress(accepted, state, done=True, **more))


async def status_of(store: Store, accepted: Accepted) -> TaskStatus:
    task = await store.tasks.get(accepted.turn.caller, accepted.task.id)
    assert task is not None
    return task.event.status


async def state_of(store: Store, accepted: Accepted) -> TaskState:
    task = await store.tasks.get(accepted.turn.caller, accepted.task.id)
    assert task is not None
    return task.event.status.state


def push_config(task_id: str, config_id: str = "c", **fields: Any) -> TaskPushNotificationConfig:
    fields = {"url": "https://example.com/hook"} | fields
    return TaskPushNotificationConfig(task_id=task_id, id=config_id, **fields)


def status(task_id: str, state: TaskState) -> bytes:
    event = StreamResponse()
    event.status_update.task_id = task_id
    event.status_update.status.state = state
    return event.SerializeToString()


# -- accept --------------------------------------------------------------------------------------------------------------


async def test_a_first_message_makes_a_task(store: Store) -> None:
    """The task is submitted, its history is the message, ids are filled in on both, and the user is in its metadata."""
    found = await accept(store)
    turn, task = found.turn, found.task
    assert (turn.attempt, turn.new_task, turn.new_context, turn.owner, found.replay) == (
        1,
        True,
        True,
        "user/alice",
        False,
    )
    assert (turn.task_id, turn.context_id) == (task.id, task.context_id)
    assert turn.request.message == task.history[0]
    assert task.history[0].task_id == task.id
    assert (task.status.state, task.metadata["user_id"]) == (SUBMITTED, "alice")
    assert await store.tasks.get(ANYONE, task.id) == (task, 1)


async def test_a_client_keeps_its_ids(store: Store) -> None:
    """contextId and messageId stay; a second message of the context does not start a new one."""
    first = await accept(store, context_id="mine", message_id="m1")
    second = await accept(store, context_id="mine", message_id="m2")
    assert (first.task.context_id, first.task.history[0].message_id) == ("mine", "m1")
    assert (second.turn.new_context, second.turn.new_task) == (False, True)
    assert first.task.id != second.task.id


async def test_a_follow_up_goes_to_its_task(store: Store) -> None:
    """A taskId is enough: context and user are the task's."""
    first = await accept(store, context_id="mine")
    await end(store, first, INPUT_REQUIRED)
    second = await accept(store, "more", user=None, task_id=first.task.id)
    turn = second.turn
    assert (turn.task_id, turn.context_id, turn.owner) == (first.task.id, "mine", "user/alice")
    assert (turn.new_task, turn.new_context) == (False, False)
    assert turn.request.message.context_id == "mine"
    assert turn.request.metadata["user_id"] == "alice"
    assert second.task.status.state == INPUT_REQUIRED


async def test_a_context_without_a_user_is_its_owners(store: Store) -> None:
    """A message that names a context but no user belongs to the owner of the context, if there is exactly one."""
    await accept(store, context_id="one", user="alice")
    assert (await accept(store, context_id="one", user=None)).turn.owner == "user/alice"
    await accept(store, context_id="one", user="bob")
    assert (await accept(store, context_id="one", user=None)).turn.owner == "principal/door"
    assert (await accept(store, user=None)).turn.owner == "principal/door"


async def test_what_cannot_be_accepted_is_refused_and_not_stored(opened: Opened) -> None:
    """An unknown task, another context, another user, an ended task."""
    store = opened.store
    parked, ended = await accept(store), await accept(store)
    await end(store, parked, INPUT_REQUIRED)
    await end(store, ended)
    before = await opened.rows()
    with pytest.raises(TaskNotFoundError):
        await accept(store, task_id="nowhere")
    with pytest.raises(InvalidParamsError, match="contextId"):
        await accept(store, task_id=parked.task.id, context_id="another")
    with pytest.raises(InvalidParamsError, match="user_id"):
        await accept(store, task_id=parked.task.id, user="bob")
    with pytest.raises(UnsupportedOperationError, match="completed"):
        await accept(store, task_id=ended.task.id)
    assert await opened.rows() == before


async def test_the_same_message_is_a_replay(opened: Opened) -> None:
    """It answers with the same task, running or ended, for first messages and follow-ups, and stores nothing."""
    store = opened.store
    first = await accept(store, message_id="m1")
    await end(store, first, INPUT_REQUIRED)
    second = await accept(store, "more", message_id="m2", task_id=first.task.id)
    rows = await opened.rows()
    for found in (await accept(store, message_id="m1"), await accept(store, "more", message_id="m2")):
        assert (found.replay, found.over, found.task.id) == (True, found.turn.id == first.turn.id, first.task.id)
    await end(store, second)
    again = await accept(store, "more", message_id="m2", task_id=first.task.id)
    assert (again.replay, again.over, again.task.status.state) == (True, True, COMPLETED)
    assert (await opened.rows())["turns"] == rows["turns"]
    with pytest.raises(InvalidParamsError, match="messageId"):
        await accept(store, "other", message_id="m1")


async def test_replays_at_once_make_one_task(opened: Opened) -> None:
    """Of fifty equal messages one is stored."""
    found = await asyncio.gather(*(accept(opened.store, message_id="m1") for _ in range(50)))
    assert [one.replay for one in found].count(False) == 1
    assert len({one.task.id for one in found}) == 1
    assert (await opened.rows())["tasks"] == 1


async def test_a_replay_of_a_direct_answer_gets_it(store: Store) -> None:
    """The message is the answer; its task is never listed or found."""
    first = await accept(store, message_id="m1")
    answer = Message(message_id="a", role=Role.ROLE_AGENT, parts=[Part(text="hi")])
    await end(store, first, SUBMITTED, answer=answer)
    assert (await accept(store, message_id="m1")).answer == answer
    assert await store.tasks.get(ANYONE, first.task.id) is None
    assert await store.tasks.page(ANYONE, Listing()) == ([], 0)


# -- owners -------------------------------------------------------------------------------------------------------------

STRANGERS = {
    "user": Caller("agent", "", "bob", "user/bob"),
    "principal": Caller("agent", "", "door", "principal/door"),
    "lookalike": Caller("agent", "", "alice", "user/alice "),
    "case": Caller("agent", "", "alice", "user/Alice"),
    "wildcard": Caller("agent", "", "alice", "user/%"),
    "empty": Caller("agent", "", "", ""),
    "quote": Caller("agent", "", "", "' OR owner <> '"),
    "tenant": Caller("agent", "red", "alice", "user/alice"),
    "anyone of another tenant": Caller("agent", "red", "door", None),
    "agent": Caller("other", "", "alice", "user/alice"),
    "anyone of another agent": Caller("other", "", "door", None),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
async def test_a_task_is_found_by_its_owner_only(opened: Opened, stranger: Caller) -> None:
    """Another user, tenant or agent cannot find or change it by any method, nor learn that it exists."""
    store = opened.store
    alice = Caller("agent", "", "alice", "user/alice")
    found = await accept(store, caller=alice, context_id="shared", message_id="m1")
    task_id = found.task.id
    assert await store.push.set_push_config(alice, push_config(task_id))
    await end(store, found, INPUT_REQUIRED)
    before = await opened.rows()

    assert await store.tasks.get(stranger, task_id) is None
    assert await store.tasks.page(stranger, Listing()) == ([], 0)
    assert await store.tasks.page(stranger, Listing(context_id="shared")) == ([], 0)
    assert await store.tasks.page(stranger, Listing(state=INPUT_REQUIRED)) == ([], 0)
    assert await store.push.push_configs(stranger, task_id) is None
    assert not await store.push.set_push_config(stranger, push_config(task_id, url="https://evil.example"))
    assert not await store.push.delete_push_config(stranger, task_id, "c")
    with pytest.raises(TaskNotFoundError) as known:
        await accept(store, caller=stranger, user=None, task_id=task_id, message_id="m2")
    with pytest.raises(TaskNotFoundError) as unknown:
        await accept(store, caller=stranger, user=None, task_id=str(uuid.uuid4()), message_id="m3")
    assert len(str(known.value)) == len(str(unknown.value))
    canceled = Task()
    canceled.CopyFrom(found.task)
    canceled.status.state = CANCELED
    assert await store.turns.end(stranger, canceled, await status_of(store, found), b"") is None
    assert await opened.rows() == before
    assert await state_of(store, found) == INPUT_REQUIRED

    own = await accept(store, caller=stranger, user=None, context_id="shared", message_id="m1", text="other")
    assert (own.replay, own.turn.new_context) == (False, True)
    assert own.task.id != task_id
    assert await store.tasks.context(own.turn, 10) == [own.task]


async def test_a_caller_for_all_reaches_every_user_of_its_tenant(store: Store) -> None:
    """`visible_owner` None means the tasks of all owners of the agent and tenant."""
    tasks = {(await accept(store, user=user)).task.id for user in ("alice", "bob", None)}
    listed, total = await store.tasks.page(ANYONE, Listing())
    assert ({task.event.id for task in listed}, total) == (tasks, 3)
    assert all([await store.tasks.get(ANYONE, task_id) for task_id in tasks])


async def test_odd_ids_are_ids(store: Store) -> None:
    """Ids compare byte for byte: case, spaces, wildcards, composed and decomposed letters differ."""
    users = ["a", "A", "a ", " a", "%", "_", "a%", "é", "e\u0301", "'", '"', "\u200b", "👩‍👩‍👧", "NULL", "0", "user/a"]
    ids = [(await accept(store, user=user, context_id=user, message_id="same")).task.id for user in users]
    assert len(set(ids)) == len(users)
    for user, task_id in zip(users, ids, strict=True):
        caller = Caller("agent", "", "x", f"user/{user}")
        assert [task.event.id for task in (await store.tasks.page(caller, Listing()))[0]] == [task_id]
        assert [task.event.id for task in (await store.tasks.page(ANYONE, Listing(context_id=user)))[0]] == [task_id]


# -- progress of a turn ----------------------------------------------------------------------------------------------------


async def test_progress_is_written_together(store: Store) -> None:
    """Snapshot, steps, pushes and memory writes share one commit."""
    found = await accept(store)
    await store.push.set_push_config(ANYONE, push_config(found.task.id))
    call = ToolCall("c", "look", {"at": "👩‍👩‍👧"})
    said = [Said("user", "é", metadata={"origin": "note"}), Said("assistant", "", tool_calls=(call,))]
    write = MemoryWrite("default", InvocationContext("s", metadata={"user_id": "é"}), said)
    pushed = status(found.task.id, COMPLETED)
    await end(store, found, steps=[("llm/0", '{"a":1}'), ("tool/1", None)], pushes=[pushed], writes=[write])
    assert await state_of(store, found) == COMPLETED
    assert await store.turns.steps(found.turn) == {"llm/0": '{"a":1}', "tool/1": None}
    assert [due.payload for due in await store.push.due_pushes(10)] == [pushed]
    assert [due.write for due in await store.memory_outbox.due_writes("default", 10)] == [write]
    assert await store.memory_outbox.unconfirmed_writes() == [write]
    assert await update(store, found) == "pending"


async def test_a_stale_attempt_writes_nothing(open_store: Open, tmp_path: Path) -> None:
    """After a recovery every write of the old attempt fails; the new attempt continues."""
    async with open_store(tmp_path) as opened:
        old = await accept(opened.store)
        await opened.store.turns.record(progress(old, steps=[("a", "1")]))
    async with open_store(tmp_path) as opened:
        store = opened.store
        (new,) = await store.turns.recover()
        assert (new.turn.id, new.turn.attempt) == (old.turn.id, 2)
        before = await opened.rows()
        for done in (False, True):
            with pytest.raises(StaleAttempt):
                await store.turns.record(progress(old, COMPLETED, done=done, steps=[("b", "1")], pushes=[b"x"]))
        assert await opened.rows() == before
        assert await state_of(store, new) == WORKING
        await end(store, new)
        assert await state_of(store, new) == COMPLETED
        for late in (old, new):
            with pytest.raises(StaleAttempt):
                await end(store, late, FAILED)


@pytest.mark.parametrize("state", [COMPLETED, FAILED, CANCELED, REJECTED])
async def test_a_terminal_state_is_never_overwritten(opened: Opened, state: TaskState) -> None:
    """Neither a turn of the task nor `end` overwrites it; a turn that tries writes nothing."""
    store = opened.store
    first = await accept(store)
    await end(store, first, INPUT_REQUIRED)
    second = await accept(store, "more", task_id=first.task.id)
    ended = Task()
    ended.CopyFrom(first.task)
    ended.status.state = state
    parked = await status_of(store, first)
    assert await store.turns.end(ANYONE, ended, parked, b"") == []
    before = await opened.rows()
    with pytest.raises(StaleAttempt):
        await store.turns.record(progress(second, WORKING, steps=[("a", "1")], done=True))
    assert await store.turns.end(ANYONE, ended, parked, b"") is None
    assert await state_of(store, first) == state
    assert await opened.rows() == before


async def test_a_task_does_not_complete_while_a_message_waits_for_it(opened: Opened) -> None:
    """It raises Continues and writes nothing; the agent may choose any state but COMPLETED."""
    store = opened.store
    first = await accept(store)
    second = await accept(store, "more", task_id=first.task.id)
    before = await opened.rows()
    with pytest.raises(Continues):
        await store.turns.record(progress(first, COMPLETED, done=True, steps=[("a", "1")]))
    assert await opened.rows() == before
    assert await state_of(store, first) == SUBMITTED
    await end(store, first, WORKING)
    await end(store, second)
    assert await state_of(store, first) == COMPLETED


async def test_recovery_returns_the_open_turns(open_store: Open, tmp_path: Path) -> None:
    """Oldest first, with the request, whether task and context are new, and the number of crashes during the turn."""
    async with open_store(tmp_path) as opened:
        store = opened.store
        done, first = await accept(store), await accept(store, context_id="c")
        waiting = await accept(store, "more", task_id=first.task.id)
        await end(store, done)
    for crashes in (1, 1, 2):
        async with open_store(tmp_path) as opened:
            found = await opened.store.turns.recover()
            assert [one.turn.id for one in found] == [first.turn.id, waiting.turn.id]
            assert [one.turn.crashes for one in found] == [crashes, 0]  # a waiting turn is not running
            assert [one.turn.new_task for one in found] == [True, False]
            assert found[0].turn.request == first.turn.request
            assert [one.turn.owner for one in found] == ["user/alice"] * 2
            assert found[0].task.id == first.task.id
            if found[0].turn.attempt > 2:
                await opened.store.turns.mark(found[0].turn, TurnState.RUNNING)
    async with open_store(tmp_path) as opened:
        (one, other) = await opened.store.turns.recover()
        assert one.turn.crashes == 3
        await opened.store.turns.record(progress(one, steps=[("llm/0", "{}")]))
    async with open_store(tmp_path) as opened:
        (one, other) = await opened.store.turns.recover()
        assert (one.turn.crashes, other.turn.crashes) == (1, 0)  # a committed step proves progress
        await end(opened.store, one, WORKING)
        await end(opened.store, other)
        assert await opened.store.turns.recover() == []


async def test_recovery_drops_the_turns_of_a_task_that_has_ended(open_store: Open, tmp_path: Path) -> None:
    """A message that waited for a failed or canceled task is never run."""
    async with open_store(tmp_path) as opened:
        store = opened.store
        first = await accept(store)
        await accept(store, "more", task_id=first.task.id)
        await end(store, first, FAILED)
    async with open_store(tmp_path) as opened:
        assert await opened.store.turns.recover() == []
        assert await opened.store.tasks.purge(2**60, 10) == 1
        assert not (await opened.rows())["turns"]


async def test_a_step_is_started_then_recorded(store: Store) -> None:
    """The result replaces NULL."""
    found = await accept(store)
    await store.turns.record(progress(found, steps=[("tool/0", None)]))
    assert await store.turns.steps(found.turn) == {"tool/0": None}
    await store.turns.record(progress(found, steps=[("tool/0", "{}"), ("llm/1", '{"text": "\\u0000"}')]))
    assert await store.turns.steps(found.turn) == {"tool/0": "{}", "llm/1": '{"text": "\\u0000"}'}
    other = await accept(store)
    assert await store.turns.steps(other.turn) == {}


async def test_end_writes_if_nothing_happened_since(store: Store) -> None:
    """It replaces only the status that the caller found, not another of the same state. Its event is pushed to the task's
    configs, and its memory writes are pending."""
    found = await accept(store)
    await store.push.set_push_config(ANYONE, push_config(found.task.id))
    await end(store, found, INPUT_REQUIRED)
    ended = Task()
    ended.CopyFrom(found.task)
    ended.status.state = CANCELED
    parked = await status_of(store, found)
    again = await accept(store, "more", task_id=found.task.id)
    await end(store, again, INPUT_REQUIRED)
    write = MemoryWrite("default", InvocationContext("s", "alice"), [])
    assert await store.turns.end(ANYONE, ended, parked, b"", [write]) is None
    assert await state_of(store, found) == INPUT_REQUIRED
    assert await store.memory_outbox.unconfirmed_writes() == []
    event = status(found.task.id, CANCELED)
    owed = await store.turns.end(ANYONE, ended, await status_of(store, found), event, [write])
    assert [due.write for due in owed or ()] == [write]
    assert [due.id for due in await store.memory_outbox.due_writes("default", 10)] == [due.id for due in owed or ()]
    assert await state_of(store, found) == CANCELED
    assert [due.payload for due in await store.push.due_pushes(10)] == [event]


async def test_a_turn_reloads_its_task(store: Store) -> None:
    """With its stored generation."""
    first = await accept(store)
    second = await accept(store, "more", task_id=first.task.id)
    await end(store, first, WORKING, generation=7)
    found = await store.turns.reload(second.turn)
    assert found is not None
    assert (found[0].status.state, found[1]) == (WORKING, 7)
    assert await store.turns.reload(replace(second.turn, task_id="nowhere")) is None


async def test_a_context_is_what_was_said_before(store: Store) -> None:
    """The newest tasks of owner and context up to the turn's own, oldest first, up to the limit."""
    mine = [await accept(store, str(n), context_id="c") for n in range(4)]
    await accept(store, "theirs", context_id="c", user="bob")
    await accept(store, "elsewhere", context_id="d")
    turn = mine[2].turn
    assert [task.id for task in await store.tasks.context(turn, 10)] == [one.task.id for one in mine[:3]]
    assert [task.id for task in await store.tasks.context(turn, 2)] == [one.task.id for one in mine[1:3]]


# -- lists ---------------------------------------------------------------------------------------------------------------


async def test_a_list_is_filtered(store: Store) -> None:
    """By context, state and time of the status, alone and combined, newest first; the total counts all matches."""
    made: list[tuple[Accepted, str, TaskState, int]] = []
    for n in range(24):
        context, state = f"c{n % 3}", (COMPLETED, FAILED)[n % 2]
        found = await accept(store, context_id=context)
        await end(store, found, state, at=10_000 + n)
        made.append((found, context, state, 10_000 + n))
    for caller in (ANYONE, Caller("agent", "", "alice", "user/alice")):
        for context in ("", "c0", "c1", "nowhere"):
            for wanted in (0, COMPLETED, FAILED, WORKING):
                for after in (-1, 10_005, 10_023):
                    expected = [
                        found.task.id
                        for found, of, ended, at in reversed(made)
                        if context in ("", of) and wanted in (0, ended) and at > after
                    ]
                    listing = Listing(context_id=context, state=wanted, after=after, size=100)
                    tasks, total = await store.tasks.page(caller, listing)
                    assert [task.event.id for task in tasks] == expected
                    assert total == len(expected)
                    assert await store.tasks.page(caller, replace(listing, count=False)) == (tasks, 0)


async def test_totals_follow_what_happens(store: Store) -> None:
    """For each state, of one owner and of all, while tasks are created, change, answer with a message, end and are purged."""
    alice = Caller("agent", "", "alice", "user/alice")

    async def totals(caller: Caller) -> list[int]:
        states = (0, SUBMITTED, WORKING, COMPLETED, CANCELED)
        return [(await store.tasks.page(caller, Listing(state=state)))[1] for state in states]

    mine = [await accept(store) for _ in range(3)]
    await accept(store, user="bob")
    assert await totals(alice) == [3, 3, 0, 0, 0]
    assert await totals(ANYONE) == [4, 4, 0, 0, 0]
    await store.turns.record(progress(mine[0]))
    await store.turns.record(progress(mine[0]))
    assert await totals(alice) == [3, 2, 1, 0, 0]
    await end(store, mine[0], at=100)
    answer = Message(message_id="a", role=Role.ROLE_AGENT, parts=[Part(text="hi")])
    await end(store, mine[1], SUBMITTED, answer=answer, at=100)
    canceled = Task()
    canceled.CopyFrom(mine[2].task)
    canceled.status.state = CANCELED
    assert await store.turns.end(ANYONE, canceled, await status_of(store, mine[2]), b"") == []
    assert await totals(alice) == [2, 0, 0, 1, 1]
    await store.tasks.purge(200, 10)
    assert await totals(alice) == [1, 0, 0, 0, 1]
    assert await totals(ANYONE) == [2, 1, 0, 0, 1]
    assert await totals(Caller("agent", "red", "alice", "user/alice")) == [0] * 5


async def test_a_file_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    """Version 1 has no index of rare states, and an event log; its tasks can be listed by rare states."""
    async with open_sqlite(tmp_path) as opened:
        await end(opened.store, await accept(opened.store), INPUT_REQUIRED)
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.executescript(
            "DROP INDEX tasks_of_owner_by_state; DROP INDEX tasks_of_agent_by_state;"
            "ALTER TABLE tasks RENAME COLUMN generation TO seq; CREATE TABLE events (task_id TEXT);"
            "UPDATE schema_version SET version = 1 WHERE component = 'runtime'"
        )
    async with open_sqlite(tmp_path) as opened:
        for caller in (ANYONE, Caller("agent", "", "alice", "user/alice")):
            assert (await opened.store.tasks.page(caller, Listing(state=INPUT_REQUIRED)))[1] == 1


@dataclass(frozen=True)
class Meanwhile:
    """Writes between two pages: the times of new tasks, and the numbers of changed ones."""

    new: list[int]
    changed: list[int]


meanwhile = st.builds(Meanwhile, st.lists(st.integers(1, 9), max_size=2), st.lists(st.integers(0, 14), max_size=2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.integers(1, 6), min_size=1, max_size=15),  # many at the same microsecond
    size=st.integers(1, 4),
    others=st.lists(meanwhile, max_size=15),
    caller=st.sampled_from((ANYONE, Caller("agent", "", "alice", "user/alice"))),
    state=st.sampled_from((0, INPUT_REQUIRED)),
)
async def test_pages_are_stable_under_writes(
    open_store: Open,
    tmp_path: Path,
    times: list[int],
    size: int,
    others: list[Meanwhile],
    caller: Caller,
    state: int,
) -> None:
    """A task that does not change meanwhile is on exactly one page, however many others are created and change: on pages of
    one state and of all, of one owner and of all.
    """
    async with open_store(tmp_path / uuid.uuid4().hex) as opened:
        store = opened.store
        made = [await accept(store) for _ in times]
        for found, at in zip(made, times, strict=True):
            await end(store, found, INPUT_REQUIRED, at=at)
        changed: set[str] = set()
        seen: list[str] = []
        before: tuple[int, str] | None = None
        for other in [*others, *[Meanwhile([], [])] * 60]:
            page, _ = await store.tasks.page(caller, Listing(size=size, before=before, state=state))
            seen += [task.event.id for task in page]
            if len(page) < size:
                break
            before = (page[-1].event.status.timestamp.ToMicroseconds(), page[-1].event.id)
            for at in other.new:
                new = await accept(store)
                await end(store, new, at=at)
                changed.add(new.task.id)
            for index in other.changed:
                again = await accept(store, task_id=made[index % len(made)].task.id)
                await end(store, again, INPUT_REQUIRED, at=7 + index % 3)
                changed.add(again.task.id)
        else:
            pytest.fail("the pages do not end")
        unchanged = [task_id for task_id in seen if task_id not in changed]
        assert sorted(unchanged) == sorted(one.task.id for one in made if one.task.id not in changed)


# -- outboxes --------------------------------------------------------------------------------------------------------------


def memory_write(
    memory: str = "default", text: str = "hello", *, session: str = "s", user: str | None = None, tenant: str = ""
) -> MemoryWrite:
    return MemoryWrite(memory, InvocationContext(session, user, tenant), [Said("user", text)])


async def test_memory_writes_are_pending_until_they_are_done(store: Store) -> None:
    """Each memory gets its own, oldest first; failed ones are retried when due; the task shows their state."""
    first, second = await accept(store), await accept(store)
    await end(store, first, writes=[memory_write(text="1"), memory_write("other", "2")])
    await end(store, second, writes=[memory_write(text="3", session="another")])
    due = await store.memory_outbox.due_writes("default", 10)
    assert [(one.task_id, one.tries, one.write.messages[0].content) for one in due] == [
        (first.task.id, 0, "1"),
        (second.task.id, 0, "3"),
    ]
    assert len(await store.memory_outbox.due_writes("default", 1)) == 1
    await store.memory_outbox.write_failed(due[0], "no", LATER)
    assert [one.id for one in await store.memory_outbox.due_writes("default", 10)] == [due[1].id]
    await store.memory_outbox.write_done(due[1])
    assert await store.memory_outbox.next_write("default") == LATER
    assert await update(store, second) == "stored"
    assert await update(store, first) == "pending"
    await store.memory_outbox.write_failed(due[0], "no", 1)
    (again,) = await store.memory_outbox.due_writes("default", 10)
    assert (again.id, again.tries) == (due[0].id, 2)
    await store.memory_outbox.write_failed(again, "never", None)
    assert await store.memory_outbox.due_writes("default", 10) == []
    assert await store.memory_outbox.next_write("default") is None
    assert await update(store, first) == "failed"
    (other,) = await store.memory_outbox.due_writes("other", 10)
    await store.memory_outbox.write_done(other)
    assert await update(store, first) == "failed"  # one of two was lost
    assert await store.memory_outbox.unconfirmed_writes() == []


async def test_a_scopes_memory_writes_wait_for_each_other(store: Store) -> None:
    """A write waits for the retry of an earlier one of the same memory and scope (a tenant's user, or a session); it does not
    wait for one that was given up.
    """
    scopes: list[dict[str, Any]] = [
        {"user": "alice", "session": "one"},
        {"user": "alice", "session": "two"},
        {"user": "alice", "tenant": "t"},
        {"user": "bob"},
        {"session": "alice"},
        {"user": "alice", "memory": "other"},
    ]
    for number, scope in enumerate(scopes):
        await end(store, await accept(store), writes=[memory_write(text=str(number), **scope)])

    async def due(memory: str = "default") -> list[str]:
        return [one.write.messages[0].content for one in await store.memory_outbox.due_writes(memory, 10)]

    assert await due() == ["0", "1", "2", "3", "4"]
    first = (await store.memory_outbox.due_writes("default", 1))[0]
    await store.memory_outbox.write_failed(first, "no", LATER)
    assert await due() == ["2", "3", "4"]
    assert await due("other") == ["5"]
    for one in await store.memory_outbox.due_writes("default", 10):
        await store.memory_outbox.write_done(one)
    assert await store.memory_outbox.next_write("default") == LATER
    await store.memory_outbox.write_failed(first, "never", None)
    assert await due() == ["1"]


async def update(store: Store, accepted: Accepted) -> str:
    task = await store.tasks.get(ANYONE, accepted.task.id)
    assert task is not None
    return str(MessageToDict(task.event.metadata)["memory"]["update"])


async def test_pushes_leave_in_order_for_each_config(store: Store) -> None:
    """Only the first undelivered push is due; other configs do not wait for it; one that is given up blocks nothing."""
    found = await accept(store)
    task_id = found.task.id
    for config_id in ("a", "b"):
        await store.push.set_push_config(ANYONE, push_config(task_id, config_id))
    events = [status(task_id, state) for state in (SUBMITTED, WORKING, COMPLETED)]
    await store.turns.record(progress(found, pushes=events[:2]))
    await end(store, found, pushes=events[2:])
    due = {one.config.id: one for one in await store.push.due_pushes(10)}
    assert {name: one.payload for name, one in due.items()} == {"a": events[0], "b": events[0]}
    assert due["a"].config == push_config(task_id, "a")
    await store.push.push_failed(due["a"], "HTTP 500", LATER)
    await store.push.push_done(due["b"])
    (second,) = await store.push.due_pushes(10)  # a's next waits for a's first
    assert (second.config.id, second.payload) == ("b", events[1])
    await store.push.push_later(second, LATER + 1)
    assert await store.push.due_pushes(10) == []
    assert await store.push.next_push() == LATER
    await store.push.push_failed(due["a"], "HTTP 500", None)
    (third,) = await store.push.due_pushes(10)
    assert (third.config.id, third.payload, third.tries) == ("a", events[1], 0)
    assert await store.push.delete_push_config(ANYONE, task_id, "a")
    assert await store.push.due_pushes(10) == []
    await store.push.push_later(second, 1)
    (fourth,) = await store.push.due_pushes(10)
    assert (fourth.payload, fourth.tries) == (events[1], 0)


async def test_the_next_push_is_one_that_can_be_sent(store: Store) -> None:
    """Pushes behind an undelivered one do not count: the worker must not wake up for them."""
    found = await accept(store)
    await store.push.set_push_config(ANYONE, push_config(found.task.id))
    await end(store, found, pushes=[status(found.task.id, WORKING), status(found.task.id, COMPLETED)])
    (due,) = await store.push.due_pushes(10)
    await store.push.push_failed(due, "HTTP 500", LATER)
    assert await store.push.next_push() == LATER


async def test_push_configs(store: Store) -> None:
    """They are set, replaced, listed and deleted, also twice; an unknown task is not found."""
    found = await accept(store)
    task_id = found.task.id
    assert await store.push.push_configs(ANYONE, task_id) == []
    for config in (push_config(task_id, "b"), push_config(task_id, "a"), push_config(task_id, "b", token="t")):
        assert await store.push.set_push_config(ANYONE, config)
    assert await store.push.push_configs(ANYONE, task_id) == [
        push_config(task_id, "a"),
        push_config(task_id, "b", token="t"),
    ]
    for _ in range(2):
        assert await store.push.delete_push_config(ANYONE, task_id, "b")
    assert await store.push.push_configs(ANYONE, task_id) == [push_config(task_id, "a")]
    assert await store.push.push_configs(ANYONE, "nowhere") is None
    assert not await store.push.set_push_config(ANYONE, push_config("nowhere"))
    assert not await store.push.delete_push_config(ANYONE, "nowhere", "a")


async def test_a_message_brings_its_push_config(store: Store) -> None:
    """It is stored with the message; the turn, a follow-up and a recovery know of it."""
    sent = request()
    sent.configuration.task_push_notification_config.CopyFrom(push_config("", "mine"))
    found = await store.turns.accept(ANYONE, sent, user="alice")
    assert found.pushes
    assert await store.push.push_configs(ANYONE, found.task.id) == [push_config(found.task.id, "mine")]
    assert (await accept(store, "more", task_id=found.task.id)).pushes
    assert all(one.pushes for one in await store.turns.recover())
    assert not (await accept(store)).pushes


# -- purge ---------------------------------------------------------------------------------------------------------------


async def test_purge_leaves_nothing_behind(opened: Opened) -> None:
    """It deletes ended tasks up to a limit, but none that ended later, is open, or has pending writes or pushes."""
    store = opened.store
    everything = await opened.rows()
    old: list[Accepted] = []
    for _ in range(5):
        found = await accept(store)
        await store.push.set_push_config(ANYONE, push_config(found.task.id))
        pushed = [status(found.task.id, COMPLETED)]
        await end(store, found, at=100, steps=[("a", "1")], pushes=pushed, writes=[memory_write()])
        old.append(found)
    for due in await store.memory_outbox.due_writes("default", 4):
        await store.memory_outbox.write_done(due)
    for owed in await store.push.due_pushes(10):
        await store.push.push_failed(owed, "never", None)
    young, parked, running = await accept(store), await accept(store), await accept(store)
    await end(store, young, at=300)
    await end(store, parked, INPUT_REQUIRED, at=100)
    assert [await store.tasks.purge(200, 3), await store.tasks.purge(200, 3), await store.tasks.purge(200, 3)] == [
        3,
        1,
        0,
    ]
    assert await store.tasks.get(ANYONE, old[4].task.id) is not None  # its memory write is pending
    (due,) = await store.memory_outbox.due_writes("default", 10)
    await store.memory_outbox.write_failed(due, "never", None)
    assert await store.tasks.purge(200, 3) == 1
    left = {task.event.id for task in (await store.tasks.page(ANYONE, Listing()))[0]}
    assert left == {young.task.id, parked.task.id, running.task.id}
    await end(store, parked_again := await accept(store, task_id=parked.task.id), at=100)
    await end(store, running, at=100)
    assert parked_again.task.id == parked.task.id
    assert await store.tasks.purge(400, 100) == 3
    assert await opened.rows() == everything


async def test_a_task_with_a_pending_push_is_not_purged(store: Store) -> None:
    """Its task stays until the push is delivered or given up."""
    found = await accept(store)
    await store.push.set_push_config(ANYONE, push_config(found.task.id))
    await end(store, found, at=100, pushes=[status(found.task.id, COMPLETED)])
    assert await store.tasks.purge(200, 10) == 0
    (due,) = await store.push.due_pushes(10)
    await store.push.push_failed(due, "gone", None)
    assert await store.tasks.purge(200, 10) == 1


async def test_a_purged_direct_answer_is_gone_too(opened: Opened) -> None:
    """A hidden task is purged like any other, and its message id may be used again."""
    store = opened.store
    empty = await opened.rows()
    found = await accept(store, message_id="m1")
    answer = Message(message_id="a", role=Role.ROLE_AGENT, parts=[Part(text="hi")])
    await end(store, found, SUBMITTED, answer=answer, at=100)
    assert await store.tasks.purge(200, 10) == 1
    assert await opened.rows() == empty
    assert not (await accept(store, "new", message_id="m1")).replay


async def test_a_stored_task_survives_a_restart(open_store: Open, tmp_path: Path) -> None:
    """Every byte."""
    async with open_store(tmp_path) as opened:
        found = await accept(opened.store, "é 👩‍👩‍👧 \u0000 \u202e", context_id="c")
        await end(opened.store, found, INPUT_REQUIRED)
        before = await opened.store.tasks.get(ANYONE, found.task.id)
    async with open_store(tmp_path) as opened:
        assert await opened.store.tasks.get(ANYONE, found.task.id) == before


def test_a_lane_is_agent_tenant_owner_and_context() -> None:
    """What runs one after the other."""
    turn = Turn(1, 1, Caller("agent", "red", "p", None), "user/a", "t", "c", SendMessageRequest())
    assert turn.queue_key == ("agent", "red", "user/a", "c")
