"""Any memory as callbacks, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue_memory import (
    InvocationContext,
    Memory,
    MemoryBackend,
    MemoryEntry,
    MemoryKind,
    Message,
    as_memory,
    as_module,
)
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder, MemoryConformance, turn_of


@pytest.fixture
async def native(tmp_path: Path) -> AsyncIterator[NativeMemory]:
    memory = NativeMemory(f"sqlite:///{tmp_path}/memory.db", embedder=HashEmbedder())
    yield memory
    await memory.aclose()


class TestThereAndBack(MemoryConformance):
    """A memory of ours, as a module of coroutines or of plain functions, as a memory: every promise still holds."""

    @pytest.fixture(params=["coroutines", "plain"])
    async def memory(self, request: pytest.FixtureRequest, native: NativeMemory) -> Memory:
        return as_memory(as_module(native, blocking=request.param == "plain"))


class TestAsynchronousBackend(MemoryConformance):
    """A backend whose three methods are coroutines."""

    @pytest.fixture
    async def memory(self, native: NativeMemory) -> Memory:
        kept = as_module(native)

        class Asynchronous(MemoryBackend):
            async def record(self, session_id: str, user_msg: str, assistant_msg: str, turn_id: str = "") -> None:
                await called(kept.record(session_id, user_msg, assistant_msg, turn_id=turn_id))

            async def recall(self, session_id: str, query: str, max_entries: int) -> list[MemoryEntry]:
                found: list[MemoryEntry] = await called(kept.recall(session_id, query, max_entries))
                return found

            async def flush(self, session_id: str) -> None:
                """It is durable as soon as it is recorded."""

        return as_memory(Asynchronous())


async def test_a_session_is_whose_memory_it_is(native: NativeMemory) -> None:
    """The id that the callbacks get is a session's, or with owner="user" a user's; what the agent says of it is there."""
    sessions, users = as_module(native), as_module(native, owner="user", tenant="t")
    assert (sessions.name, sessions.flush, sessions.consolidate) == ("native", None, None)
    await called(sessions.record("s1", "I play chess on Mondays", "Good to know"))
    await called(users.record("alice", "I play go on Fridays", ""))
    (entry,) = await called(sessions.recall("s1", "When do I play?", 1))
    assert isinstance(entry, MemoryEntry)
    assert (entry.content, 0 < entry.relevance <= 1) == ("I play chess on Mondays", True)
    (found,) = await native.retrieve("When do I play?", top_k=1, ctx=InvocationContext("s1"))
    assert (entry.key, entry.kind) == (found.metadata["memory"]["id"], found.metadata["memory"]["kind"])
    assert entry.timestamp_ns // 1000 == round(found.created_at.timestamp() * 1_000_000)
    assert await called(sessions.recall("alice", "play", 5)) == []
    (go,) = await native.retrieve("play", ctx=turn_of("alice", tenant="t"))
    assert go.content == "I play go on Fridays"


async def test_a_turn_that_comes_again_changes_nothing(native: NativeMemory) -> None:
    """`record` takes a turn's id too."""
    record: Any = as_module(native).record
    for _ in range(2):
        await record("s1", "I keep bees", "How many hives?", turn_id="t1")
    await record("s1", "I keep bees", "How many hives?")
    found = await native.retrieve("bees hives", ctx=InvocationContext("s1"))
    assert {len(message.metadata["memory"]["sources"]) for message in found} == {2}


async def called(answer: Any) -> Any:
    return await answer


def test_code_without_an_event_loop_calls_plain_functions(tmp_path: Path) -> None:
    """`blocking`: they return when it is done; the same memory then serves a loop."""
    memory = NativeMemory(f"sqlite:///{tmp_path}/memory.db", embedder=None)
    module = as_module(memory, blocking=True)
    assert module.record("s1", "I keep newts", "") is None
    entries: Any = module.recall("s1", "newts", 3)
    assert [entry.content for entry in entries] == ["I keep newts"]

    async def later() -> list[Message]:
        return await memory.retrieve("newts", ctx=InvocationContext("s1"))

    assert [message.content for message in asyncio.run(later())] == ["I keep newts"]
    asyncio.run(memory.aclose())


class Bare(Memory):
    """A memory that returns messages and says nothing more of them."""

    name = "bare"

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        return [Message("system", text) for text in ("first", "second", "third")][:top_k]

    async def update(self, messages: list[Message], **kwargs: Any) -> None: ...


async def test_a_memory_that_tells_no_scores_keeps_its_order() -> None:
    """The best comes first, so it matters most."""
    entries: list[MemoryEntry] = await called(as_module(Bare()).recall("s", "x", 2))
    assert [entry.content for entry in sorted(entries, key=lambda entry: -entry.relevance)] == ["first", "second"]
    assert {entry.kind for entry in entries} == {MemoryKind.RECENT_MESSAGE}
    assert len({entry.key for entry in entries}) == 2
