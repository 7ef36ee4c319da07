"""The test suite for memories, which third-party memories can run too, and an embedder without a model.

    class TestMine(MemoryConformance):
        @pytest.fixture
        async def memory(self, tmp_path):
            memory = MyMemory(tmp_path)
            yield memory
            await memory.aclose()

`ManagedConformance` extends it for a `ManagedMemory`. The tests are `async def`: run them with pytest-asyncio in auto mode,
or mark the class with `pytest.mark.asyncio`.
"""

# ruff: noqa: S101 - tests use assert

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from .chat import Embedder
from .errors import IdentityError, RetinueError
from .memory import (
    InvocationContext,
    ManagedMemory,
    Memory,
    MemoryFilter,
    MemoryKind,
    MemoryRecord,
    Scope,
)
from .messages import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class HashEmbedder(Embedder):
    """Embeds a text by hashing each of its words to a direction, so that texts that share words are near. Deterministic."""

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
        vectors[~vectors.any(axis=1), 0] = 1.0  # if the words cancelled each other out
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def turn_of(
    user: str | None = "alice", *, session: str = "s1", tenant: str = "", turn: str | None = None
) -> InvocationContext:
    """A context for tests. If `turn` is None, it gets a new turn id."""
    return InvocationContext(session, user, tenant=tenant, turn_id=turn or uuid.uuid4().hex)


class MemoryConformance:
    """The promises of `Memory`, one test each. Subclasses define a fixture `memory`, which is empty at the start of a test."""

    async def test_what_was_said_is_found_by_the_next_retrieve(self, memory: Memory) -> None:
        """Read your writes: what `update` accepted is findable at once."""
        for number in range(5):
            await memory.update([Message("user", f"My locker has the number {number}77")], ctx=turn_of())
            assert f"My locker has the number {number}77" in await _found(
                memory, f"locker number {number}77", turn_of()
            )

    async def test_a_hit_says_what_it_is(self, memory: Memory) -> None:
        """A memory is a system message whose metadata has its id, kind, score, sources, time and backend."""
        await memory.update([Message("user", "I play the cello", id="m1")], ctx=turn_of())
        (hit,) = await memory.retrieve("cello", top_k=1, ctx=turn_of())
        assert hit.role == "system"
        provenance = hit.metadata["memory"]
        assert set(provenance) >= {"id", "kind", "score", "sources", "created_at", "backend"}
        assert 0.0 <= provenance["score"] <= 1.0
        assert all(isinstance(source, str) for source in provenance["sources"])

    async def test_no_more_than_asked_for(self, memory: Memory) -> None:
        """At most `top_k` memories are returned; none from an empty memory."""
        assert await _found(memory, "tea", turn_of()) == []
        for number in range(6):
            await memory.update([Message("user", f"I bought tea number {number}")], ctx=turn_of())
        assert len(await memory.retrieve("tea", top_k=3, ctx=turn_of())) == 3

    async def test_users_tenants_and_sessions_do_not_meet(self, memory: Memory) -> None:
        """No other scope finds a memory: another user, tenant or session, look-alike ids, wildcards, SQL."""
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
        """Without a user the scope is the session. With one, sessions share their memories."""
        await memory.update([Message("user", "I sit in row seven")], ctx=turn_of(None, session="one"))
        assert await _found(memory, "row", turn_of(None, session="one")) == ["I sit in row seven"]
        assert await _found(memory, "row", turn_of(None, session="two")) == []
        await memory.update([Message("user", "I sit in row nine")], ctx=turn_of("alice", session="one"))
        assert await _found(memory, "row", turn_of("alice", session="two")) == ["I sit in row nine"]

    async def test_no_scope_no_access(self, memory: Memory) -> None:
        """Without a context, or with an empty id, reading and writing raise IdentityError."""
        for ctx in (None, InvocationContext(""), InvocationContext("s", "")):
            await _raises_identity_error(memory, ctx)

    async def test_a_turn_written_again_changes_nothing(self, memory: Memory) -> None:
        """Updates are idempotent by turn id, even from another process and with other message ids."""
        ctx = turn_of(turn="t1")
        await memory.update([Message("user", "I keep bees"), Message("assistant", "How many hives?")], ctx=ctx)
        before = await memory.retrieve("bees hives", top_k=10, ctx=ctx)
        await memory.update([Message("user", "I keep bees"), Message("assistant", "How many hives?")], ctx=ctx)
        after = await memory.retrieve("bees hives", top_k=10, ctx=ctx)
        assert [(hit.content, hit.metadata["memory"]["sources"]) for hit in after] == [
            (hit.content, hit.metadata["memory"]["sources"]) for hit in before
        ]

    async def test_the_same_words_are_kept_once(self, memory: Memory) -> None:
        """Exact duplicates are one memory, in whichever sessions they were said."""
        for number in range(4):
            await memory.update([Message("user", "I am from Italy")], ctx=turn_of(session=f"s{number}"))
        assert await _found(memory, "Italy", turn_of()) == ["I am from Italy"]

    async def test_every_script_survives(self, memory: Memory) -> None:
        """Texts are returned unchanged: letters of any script, emoji, right-to-left, quotes, line breaks."""
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
        """Empty input, half a surrogate pair, NUL and a very long text raise nothing but the errors of the contract."""
        ctx = turn_of("odd")
        await memory.update([], ctx=ctx)
        await memory.update([Message("user", ""), Message("assistant", " \n ")], ctx=turn_of("odd"))
        assert await _found(memory, "anything", ctx) == []
        for text in ("half \ud83d a pair", "nul \0 inside", "long " * 50_000):
            await memory.update([Message("user", text)], ctx=turn_of("odd"))
            assert len(await _found(memory, text, turn_of("odd"))) >= 1

    async def test_no_size_breaks_it(self, memory: Memory) -> None:
        """A megabyte of text, an id of thousands of characters, hundreds of messages at once and any `top_k` are accepted as
        a whole, or refused as a whole with an error of the contract."""
        long_id = "long " * 800 + "id"
        for ctx, texts in (
            (turn_of("much text"), ["The word is lagoon. " + "Filling the page. " * 55_000]),
            (turn_of(long_id), ["The word is lagoon"]),
            (turn_of("many messages"), [f"Word {number} is lagoon{number}" for number in range(300)]),
        ):
            try:
                await memory.update([Message("user", text) for text in texts], ctx=ctx)
            except RetinueError:
                assert await _found(memory, texts[-1][:30], ctx, top_k=1000) == []
                continue
            found = await _found(memory, texts[-1][:30], ctx, top_k=1000)
            assert texts[-1] in found
            assert set(found) <= set(texts)
        assert await _found(memory, "lagoon", turn_of(long_id[:-1])) == []
        assert await _found(memory, "lagoon " * 2_000, turn_of(long_id)) == ["The word is lagoon"]
        assert await memory.retrieve("lagoon", top_k=0, ctx=turn_of(long_id)) == []

    async def test_letters_that_only_look_alike_are_kept_apart(self, memory: Memory) -> None:
        """Users whose ids differ in composition, case or script are different users; their texts are returned unchanged."""
        names = [
            "jos\u00e9",
            "jose\u0301",
            "JOS\u00c9",
            "j\u043es\u00e9",
            "\uff4aos\u00e9",
            "jos\u00e9\u200b",
            "\u2028",
            "\U0001f600",
        ]
        for name in (name for name in names if name.isprintable() or name.endswith("\u200b")):
            await memory.update([Message("user", f"They call me {name!r}: {name}")], ctx=turn_of(name))
        for name in (name for name in names if name.isprintable() or name.endswith("\u200b")):
            assert await _found(memory, "what do they call me", turn_of(name)) == [f"They call me {name!r}: {name}"]

    async def test_many_writers_at_once_lose_nothing(self, memory: Memory) -> None:
        """Fifty writers of one scope, and readers between them: each reads its own write, and everything is there once."""
        texts = [f"Shelf {number} holds box {number}" for number in range(50)]

        async def write(text: str) -> None:
            await memory.update([Message("user", text)], ctx=turn_of("crowd"))
            assert text in await _found(memory, text, turn_of("crowd"), top_k=99)

        await asyncio.gather(*(write(text) for text in texts))
        assert sorted(await _found(memory, "shelf box", turn_of("crowd"), top_k=99)) == sorted(texts)

    async def test_many_users_at_once_do_not_meet(self, memory: Memory) -> None:
        """Fifty concurrent users find their own memories and nothing else."""

        async def use(number: int) -> None:
            ctx = turn_of(f"user {number}")
            await memory.update([Message("user", f"My parcel has the number {number}")], ctx=ctx)
            assert await _found(memory, "parcel number", ctx) == [f"My parcel has the number {number}"]

        await asyncio.gather(*(use(number) for number in range(50)))

    async def test_the_same_said_at_once_is_kept_once(self, memory: Memory) -> None:
        """Duplicates are found under concurrency too."""
        await asyncio.gather(
            *(memory.update([Message("user", "I like figs")], ctx=turn_of("twin", session=f"s{i}")) for i in range(20))
        )
        assert await _found(memory, "figs", turn_of("twin")) == ["I like figs"]


class ManagedConformance(MemoryConformance):
    """The promises of `ManagedMemory`, and those of `Memory`. The fixture `memory` is a ManagedMemory; `space` is the space
    that its `retrieve` and `update` use."""

    space = "default"
    imports_exactly = True
    """Whether ids and earlier versions survive an export and an import. False for a service that assigns its own."""

    def scope(self, user: str = "alice") -> Scope:
        return Scope.of(turn_of(user), self.space)

    async def test_what_was_said_is_listed(self, memory: ManagedMemory) -> None:
        """Newest first, in pages, each with its sources; one by its id; nothing of other users."""
        for number in range(5):
            told = Message(
                "user", f"My shelf {number} is for jars", id=f"m{number}", created_at=_DAY_ONE + number * _DAY
            )
            await memory.update([told], ctx=turn_of())
        first = await memory.browse(self.scope(), limit=3)
        rest = await memory.browse(self.scope(), limit=3, cursor=first.next)
        records = [*first.records, *rest.records]
        assert [record.content for record in records] == [
            f"My shelf {number} is for jars" for number in (4, 3, 2, 1, 0)
        ]
        assert rest.next is None
        assert [record.sources for record in records] == [(f"m{number}",) for number in (4, 3, 2, 1, 0)]
        assert await memory.get(self.scope(), records[0].id) == records[0]
        assert await memory.get(self.scope("bob"), records[0].id) is None
        assert (await memory.browse(self.scope("bob"))).records == ()

    async def test_a_search_explains_itself(self, memory: ManagedMemory) -> None:
        """Best first, at most `top_k`, and the signals add up to the score."""
        for text in ("I keep a tortoise", "The tortoise eats dandelions", "My desk is oak"):
            await memory.update([Message("user", text)], ctx=turn_of())
        hits = await memory.search(self.scope(), "tortoise", top_k=2)
        assert {hit.record.content for hit in hits} == {"I keep a tortoise", "The tortoise eats dandelions"}
        assert hits[0].score >= hits[1].score
        for hit in hits:
            assert 0.0 <= hit.score <= 1.0
            assert abs(sum(hit.signals.values()) - hit.score) < 1e-6
        assert len(await memory.search(self.scope(), "tortoise", top_k=9, budget=20)) < 3
        assert await memory.search(self.scope(), "tortoise", MemoryFilter(until=_DAY_ONE)) == []

    async def test_an_edit_is_found_and_the_old_text_is_history(self, memory: ManagedMemory) -> None:
        """It is found by its new words, its version is incremented, and the earlier version is kept."""
        record = await memory.add(self.scope(), "The meeting room is Birch")
        edited = await memory.edit(self.scope(), record.id, "The meeting room is Walnut")
        assert edited is not None
        assert (edited.id, edited.content, edited.version) == (record.id, "The meeting room is Walnut", 2)
        assert await _found(memory, "meeting room", turn_of()) == ["The meeting room is Walnut"]
        history = await memory.history(self.scope(), record.id)
        assert [(one.version, one.content) for one in history] == [
            (1, "The meeting room is Birch"),
            (2, "The meeting room is Walnut"),
        ]
        assert await memory.edit(self.scope("bob"), record.id, "mine") is None
        assert await memory.get(self.scope(), record.id) == edited

    async def test_a_pin_is_kept(self, memory: ManagedMemory) -> None:
        record = await memory.add(self.scope(), "Always answer in metric", kind=MemoryKind.PREFERENCE)
        assert not record.pinned
        for pinned in (True, False):
            changed = await memory.pin(self.scope(), record.id, pinned)
            assert changed is not None
            assert changed.pinned is pinned
        assert await memory.pin(self.scope("bob"), record.id) is None

    async def test_what_is_forgotten_is_gone(self, memory: ManagedMemory) -> None:
        """By id, by words, by time: not found, not listed, not in the history; the rest stays. No condition: ValueError."""
        told = ["I lent Ines my drill", "My umbrella is red", "My locker is by the door"]
        for number, text in enumerate(told):
            await memory.update([Message("user", text, created_at=_DAY_ONE + number * _DAY)], ctx=turn_of())
        ids = {record.content: record.id for record in (await memory.browse(self.scope())).records}
        receipt = await memory.forget(self.scope(), ids=[ids["I lent Ines my drill"]])
        assert sum(receipt.deleted.values()) >= 1
        assert await memory.get(self.scope(), ids["I lent Ines my drill"]) is None
        assert await memory.history(self.scope(), ids["I lent Ines my drill"]) == []
        await memory.forget(self.scope(), query="umbrella")
        assert await _found(memory, "drill umbrella locker", turn_of()) == ["My locker is by the door"]
        await memory.forget(self.scope("bob"), ids=list(ids.values()), since=_DAY_ONE)
        await memory.forget(self.scope(), until=_DAY_ONE)
        assert await _found(memory, "drill umbrella locker", turn_of()) == ["My locker is by the door"]
        await memory.forget(self.scope(), since=_DAY_ONE)
        assert (await memory.browse(self.scope())).records == ()
        try:
            await memory.forget(self.scope())
        except ValueError:
            return
        raise AssertionError("forget without a condition was accepted")

    async def test_what_is_erased_is_gone_whoever_looks(self, memory: ManagedMemory) -> None:
        """Nothing remains, others lose nothing, a second erasure succeeds, and the user can start again."""
        for user in ("alice", "bob"):
            await memory.update([Message("user", "I dive for pearls")], ctx=turn_of(user))
            await memory.add(self.scope(user), "Owns a boat")
        assert await memory.remains(self.scope()) != {}
        receipt = await memory.erase(self.scope())
        assert receipt.scope == self.scope().key
        assert sum(receipt.deleted.values()) >= 2
        assert await memory.remains(self.scope()) == {}
        assert await _found(memory, "pearls boat", turn_of()) == []
        assert (await memory.browse(self.scope(), MemoryFilter(superseded=True, quarantined=True))).records == ()
        assert len(await _found(memory, "pearls boat", turn_of("bob"))) == 2
        again = await memory.erase(self.scope())
        assert sum(again.deleted.values()) == 0
        await memory.update([Message("user", "I climb hills")], ctx=turn_of())
        assert await _found(memory, "pearls boat hills", turn_of()) == ["I climb hills"]

    async def test_an_erasure_wins_over_writers(self, memory: ManagedMemory) -> None:
        """Writes that started before the erasure leave nothing behind, even with fifty at once."""
        writers = [
            asyncio.create_task(memory.update([Message("user", f"Note {number} of the gull")], ctx=turn_of("late")))
            for number in range(50)
        ]
        await asyncio.sleep(0)  # each has started
        await memory.erase(self.scope("late"))
        await asyncio.gather(*writers)
        assert await _found(memory, "gull", turn_of("late"), top_k=99) == []
        assert (await memory.browse(self.scope("late"))).records == ()

    async def test_export_and_import_lose_nothing(self, memory: ManagedMemory) -> None:
        """An import into another user's scope gives the same records, with ids and history if `imports_exactly`. A second import
        adds nothing."""
        await memory.update([Message("user", "I was born in \u0141\u00f3d\u017a \U0001f33b", id="m1")], ctx=turn_of())
        record = await memory.add(self.scope(), "Speaks Polish", kind=MemoryKind.PREFERENCE)
        await memory.edit(self.scope(), record.id, "Speaks Polish and German")
        exported = [json.dumps(value) async for value in memory.export(self.scope())]
        assert await memory.import_(self.scope("carol"), _values(exported)) == 2
        assert await memory.import_(self.scope("carol"), _values(exported)) == 0
        theirs, mine = await _listed(memory, self.scope("carol")), await _listed(memory, self.scope())
        assert [_carried(record) for record in theirs] == [_carried(record) for record in mine]
        if self.imports_exactly:
            assert theirs == mine
            assert await memory.history(self.scope("carol"), record.id) == await memory.history(self.scope(), record.id)
            assert [json.dumps(value) async for value in memory.export(self.scope("carol"))] == exported
        assert "Speaks Polish and German" in await _found(memory, "which language", turn_of("carol"))


_DAY_ONE, _DAY = datetime(2024, 2, 1, tzinfo=UTC), timedelta(days=1)


def _carried(record: MemoryRecord) -> tuple[object, ...]:
    """The fields that every export contains."""
    return record.content, record.kind, record.created_at, record.sources, record.pinned


async def _listed(memory: ManagedMemory, scope: Scope) -> list[MemoryRecord]:
    return list((await memory.browse(scope, MemoryFilter(superseded=True, quarantined=True), limit=1000)).records)


async def _values(lines: Sequence[str]) -> AsyncIterator[Mapping[str, Any]]:
    for line in lines:
        yield json.loads(line)


async def _found(memory: Memory, query: str, ctx: InvocationContext, top_k: int = 10) -> list[str]:
    return [message.content for message in await memory.retrieve(query, top_k=top_k, ctx=ctx)]


async def _raises_identity_error(memory: Memory, ctx: InvocationContext | None) -> None:
    for call in (memory.retrieve("x", ctx=ctx), memory.update([Message("user", "x")], ctx=ctx)):
        try:
            await call
        except IdentityError:
            continue
        raise AssertionError(f"{ctx!r} was accepted")
