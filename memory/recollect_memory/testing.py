"""What every memory is held to, as a suite that a backend of yours runs too, and an honest stand-in for an embedder.

    class TestMine(MemoryConformance):
        @pytest.fixture
        async def memory(self, tmp_path):
            memory = MyMemory(tmp_path)
            yield memory
            await memory.aclose()

The tests are `async def`: run them with pytest-asyncio in its auto mode, or mark the class with `pytest.mark.asyncio`.
"""

# ruff: noqa: S101 - a suite asserts

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .contract import Embedder, InvocationContext, Memory, Message
from .errors import IdentityError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class HashEmbedder(Embedder):
    """Vectors from the words alone, each word hashed to a direction: texts that share words are near. Deterministic."""

    def __init__(self, dimensions: int = 64) -> None:
        self.name = f"hash-{dimensions}"
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.casefold()) or [text]:
                digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
                place, sign = int.from_bytes(digest[:4], "little") % self.dimensions, digest[4] % 2
                vectors[row, place] += 1.0 if sign else -1.0
        vectors[~vectors.any(axis=1), 0] = 1.0  # words that cancelled each other out
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def turn_of(
    user: str | None = "alice", *, session: str = "s1", tenant: str = "", turn: str | None = None
) -> InvocationContext:
    """A context for tests; `turn` None makes a turn of its own."""
    return InvocationContext(session, user, tenant=tenant, turn_id=turn or uuid.uuid4().hex)


class MemoryConformance:
    """The promises of `Memory`, one test each. Subclass it and give a fixture `memory`: a fresh, empty one."""

    async def test_what_was_said_is_found_by_the_next_retrieve(self, memory: Memory) -> None:
        """Read your writes: what `update` accepted is findable at once."""
        for number in range(5):
            await memory.update([Message("user", f"My locker has the number {number}77")], ctx=turn_of())
            assert f"My locker has the number {number}77" in await _found(
                memory, f"locker number {number}77", turn_of()
            )

    async def test_a_hit_says_what_it_is(self, memory: Memory) -> None:
        """A memory comes as a system message whose metadata tell its id, kind, score, sources, time and backend."""
        await memory.update([Message("user", "I play the cello", id="m1")], ctx=turn_of())
        (hit,) = await memory.retrieve("cello", top_k=1, ctx=turn_of())
        assert hit.role == "system"
        provenance = hit.metadata["memory"]
        assert set(provenance) >= {"id", "kind", "score", "sources", "created_at", "backend"}
        assert 0.0 <= provenance["score"] <= 1.0
        assert all(isinstance(source, str) for source in provenance["sources"])

    async def test_no_more_than_asked_for(self, memory: Memory) -> None:
        """`top_k` is the most that comes back; nothing is remembered of an empty memory."""
        assert await _found(memory, "tea", turn_of()) == []
        for number in range(6):
            await memory.update([Message("user", f"I bought tea number {number}")], ctx=turn_of())
        assert len(await memory.retrieve("tea", top_k=3, ctx=turn_of())) == 3

    async def test_users_tenants_and_sessions_do_not_meet(self, memory: Memory) -> None:
        """What one scope knows no other finds: another user, tenant or session, look-alike ids, wildcards, SQL."""
        mine = turn_of("alice")
        await memory.update([Message("user", "The code word is heron")], ctx=mine)
        others = [
            turn_of("bob"),
            turn_of("Alice"),
            turn_of("alice "),
            turn_of("ali"),
            turn_of("alic\u0435"),  # a Cyrillic letter
            turn_of("%"),
            turn_of("*"),
            turn_of("' OR '1'='1"),
            turn_of("alice", tenant="other"),
            turn_of(None, session="alice"),
            turn_of(None, session=mine.session_id),
        ]
        for other in others:
            assert await _found(memory, "code word heron", other) == []
        assert await _found(memory, "code word heron", mine) == ["The code word is heron"]

    async def test_without_a_user_the_session_remembers(self, memory: Memory) -> None:
        """No user: the scope is the session. With one, sessions share what they know."""
        await memory.update([Message("user", "I sit in row seven")], ctx=turn_of(None, session="one"))
        assert await _found(memory, "row", turn_of(None, session="one")) == ["I sit in row seven"]
        assert await _found(memory, "row", turn_of(None, session="two")) == []
        await memory.update([Message("user", "I sit in row nine")], ctx=turn_of("alice", session="one"))
        assert await _found(memory, "row", turn_of("alice", session="two")) == ["I sit in row nine"]

    async def test_no_scope_no_access(self, memory: Memory) -> None:
        """No context, or an empty id: IdentityError, for reading and for writing."""
        for ctx in (None, InvocationContext(""), InvocationContext("s", "")):
            await _raises_identity_error(memory, ctx)

    async def test_a_turn_written_again_changes_nothing(self, memory: Memory) -> None:
        """Idempotent by turn id: the second time may come from another process and carry other message ids."""
        ctx = turn_of(turn="t1")
        await memory.update([Message("user", "I keep bees"), Message("assistant", "How many hives?")], ctx=ctx)
        before = await memory.retrieve("bees hives", top_k=10, ctx=ctx)
        await memory.update([Message("user", "I keep bees"), Message("assistant", "How many hives?")], ctx=ctx)
        after = await memory.retrieve("bees hives", top_k=10, ctx=ctx)
        assert [(hit.content, hit.metadata["memory"]["sources"]) for hit in after] == [
            (hit.content, hit.metadata["memory"]["sources"]) for hit in before
        ]

    async def test_the_same_words_are_kept_once(self, memory: Memory) -> None:
        """An exact duplicate is one memory, however often and wherever it was said."""
        for number in range(4):
            await memory.update([Message("user", "I am from Italy")], ctx=turn_of(session=f"s{number}"))
        assert await _found(memory, "Italy", turn_of()) == ["I am from Italy"]

    async def test_every_script_survives(self, memory: Memory) -> None:
        """What comes back is what was said: letters of any script, emoji, right-to-left, quotes, line breaks."""
        texts = [
            "\u6211\u4f4f\u5728\u67cf\u6797",
            "\u0645\u062f\u064a\u0646\u062a\u064a \u062f\u0645\u0634\u0642",
            "caf\u00e9 cr\u00e8me \U0001f469\u200d\U0001f680",
            "a 'quoted' \"word\"; -- and % _ \\ more",
            "first line\nsecond line\ttabbed",
        ]
        for number, text in enumerate(texts):
            ctx = turn_of(f"user {number} \u00e9\u6797")
            await memory.update([Message("user", text)], ctx=ctx)
            assert await _found(memory, text, ctx) == [text]

    async def test_odd_input_harms_nothing(self, memory: Memory) -> None:
        """Nothing to say, half a surrogate pair, NUL, a very long text: no error but those of the contract."""
        ctx = turn_of("odd")
        await memory.update([], ctx=ctx)
        await memory.update([Message("user", ""), Message("assistant", " \n ")], ctx=turn_of("odd"))
        assert await _found(memory, "anything", ctx) == []
        for text in ("half \ud83d a pair", "nul \0 inside", "long " * 50_000):
            await memory.update([Message("user", text)], ctx=turn_of("odd"))
            assert len(await _found(memory, text, turn_of("odd"))) >= 1

    async def test_many_writers_at_once_lose_nothing(self, memory: Memory) -> None:
        """Twenty writers of one scope, and readers between them: everything is there, and once."""
        texts = [f"Shelf {number} holds box {number}" for number in range(20)]

        async def write(text: str) -> None:
            await memory.update([Message("user", text)], ctx=turn_of("crowd"))
            assert text in await _found(memory, text, turn_of("crowd"), top_k=50)

        await asyncio.gather(*(write(text) for text in texts))
        assert sorted(await _found(memory, "shelf box", turn_of("crowd"), top_k=50)) == sorted(texts)

    async def test_the_same_said_at_once_is_kept_once(self, memory: Memory) -> None:
        """Duplicates are found under concurrency too."""
        await asyncio.gather(
            *(memory.update([Message("user", "I like figs")], ctx=turn_of("twin", session=f"s{i}")) for i in range(20))
        )
        assert await _found(memory, "figs", turn_of("twin")) == ["I like figs"]


async def _found(memory: Memory, query: str, ctx: InvocationContext, top_k: int = 10) -> list[str]:
    return [message.content for message in await memory.retrieve(query, top_k=top_k, ctx=ctx)]


async def _raises_identity_error(memory: Memory, ctx: InvocationContext | None) -> None:
    for call in (memory.retrieve("x", ctx=ctx), memory.update([Message("user", "x")], ctx=ctx)):
        try:
            await call
        except IdentityError:
            continue
        raise AssertionError(f"{ctx!r} was accepted")
