"""None returns another's memory: thousands of adversarial reads, through every method that reads, and what writes by id."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Literal

import pytest

from retinue_memory import MemoryFilter, MemoryKind, Scope
from retinue_memory.database.migrations import named_queries
from retinue_memory.memory import InvocationContext
from retinue_memory.native.memory import NativeMemory
from retinue_memory.testing import HashEmbedder

READS = 10_000
IDS = [
    "alice",
    "Alice",
    "ALICE",
    "alice ",
    " alice",
    "alic",
    "alice1",
    "bob",
    "%",
    "_",
    "*",
    "?",
    "ali%",
    "al_ce",
    "a*",
    "[a-z]*",
    "alice%00",
    "alice/",
    "/alice",
    "user/alice",
    "alice%2F",
    "..",
    "alic\u0435",  # a Cyrillic e
    "\uff41lice",  # a full-width a
    "al\u0131ce",  # a dotless i
    "alice\u200b",
    "alice\u202e",
    "jos\u00e9",
    "jose\u0301",
    "stra\u00dfe",
    "strasse",
    "\ufb01n",
    "fin",
    "\U0001f469\u200d\U0001f680",
    "' OR '1'='1",
    "alice' --",
    'alice" OR ""="',
    "alice'; DROP TABLE memories; --",
    "alice) OR (1=1",
    ":owner_id",
    "?1",
    "$1",
    "{alice}",
    "${USER}",
    "null",
    "None",
    "0",
    "1e0",
    "true",
    "\\",
    "a" * 3000,
]
TENANTS = ["", "acme", "Acme", "%", "alice", "' OR 1=1 --"]
SPACES = ["default", "Default", "notes", "%", "alice"]
SESSIONS = ["alice", "s1", "%", "bob"]
QUERIES = [
    "secret",
    "what is the secret of alice",
    "secret*",
    "secret OR 1=1",
    '"secret"',
    "secret NEAR/5 alice",
    "content:secret",
    "NOT nothing",
    "' UNION SELECT content FROM memories --",
    "%",
    "_%",
    "*",
    "\\x00",
    "\u0455ecret",
    "\uff53ecret",
    "%' OR owner_id LIKE '%",
    "{}",
    "-secret",
]


class House:
    """One memory that many scopes use, each with a secret of its own, some of it edited, drafted and superseded."""

    def __init__(self, memory: NativeMemory, rng: random.Random) -> None:
        self.memory, self.rng = memory, rng
        self.secrets: dict[Scope, str] = {}
        self.ids: dict[Scope, list[str]] = {}
        self.cursors: list[str] = []
        self.reads: Counter[str] = Counter()
        self.found = 0

    async def fill(self) -> None:
        scopes = [Scope(tenant, space, "user", id_) for tenant, space, id_ in self._places()]
        scopes += [Scope(tenant, "default", "session", id_) for tenant in TENANTS for id_ in SESSIONS]
        for number, scope in enumerate(scopes):
            self.secrets[scope] = f"token{number:05d}x"
            for text in ("secret of mine is", "the second secret:", "% secret _"):
                await self.memory.add(scope, f"{text} {self.secrets[scope]}", kind=self.rng.choice(list(MemoryKind)))
            page = await self.memory.browse(scope, limit=2)
            assert page.next is not None
            self.cursors.append(page.next)
            edited = await self.memory.edit(scope, page.records[0].id, f"an edited secret {self.secrets[scope]}")
            assert edited is not None
            self.ids[scope] = [record.id for record in page.records]

    def _places(self) -> list[tuple[str, str, str]]:
        every = [(tenant, space, id_) for tenant in TENANTS for space in SPACES for id_ in IDS]
        close = [place for place in every if place[2] in ("alice", "%", "' OR '1'='1") or place[:2] == ("", "default")]
        return close + self.rng.sample([place for place in every if place not in close], 100)

    def someone(self) -> Scope:
        """A scope that exists, one that nearly does, or one that has nothing."""
        rng, scope = self.rng, self.rng.choice(list(self.secrets))
        kind: Literal["user", "session"] = rng.choice(("user", "session"))
        near = [
            scope,
            Scope(scope.tenant, scope.space, kind, scope.id),
            Scope(scope.id, scope.space, scope.owner, scope.tenant or "alice"),
            Scope(scope.tenant, rng.choice(SPACES), scope.owner, scope.id),
            Scope(rng.choice(TENANTS), scope.space, scope.owner, scope.id),
            Scope(
                scope.tenant,
                scope.space,
                scope.owner,
                rng.choice((scope.id.swapcase(), scope.id + "%", scope.id[:-1] + "_")),
            ),
            Scope(f"{scope.tenant}/{scope.space}", scope.space, scope.owner, scope.id),
        ]
        return rng.choice(near)

    def guess(self) -> str:
        """An id of somebody else's, or something like it."""
        rng, id_ = self.rng, self.rng.choice(self.rng.choice(list(self.ids.values())))
        return rng.choice(
            (
                id_,
                id_,
                id_.upper(),
                id_[:8] + "%",
                id_[:-1] + "_",
                f"{id_}' OR '1'='1",
                f" {id_}",
                id_ + "\0",
                "%",
                "*",
                "\ud800",
            )
        )

    def check(self, scope: Scope, what: str, seen: object) -> None:
        """Whatever came back names the secret of this scope and no other."""
        tokens = set(re.findall(r"token\d{5}x", repr(seen)))
        assert tokens <= {self.secrets.get(scope)}, (what, scope)
        self.reads[what] += 1
        self.found += bool(tokens)


async def read(house: House) -> None:
    """One read, through any of the methods, with any trick."""
    rng, memory, scope = house.rng, house.memory, house.someone()
    own = house.ids.get(scope, ())
    where = MemoryFilter(
        kinds=frozenset(rng.sample(list(MemoryKind), rng.choice((0, 0, 1, 2)))),
        as_of=rng.choice((None, None, datetime.now(UTC))),
        superseded=rng.random() < 0.5,
        quarantined=rng.random() < 0.5,
    )
    query = rng.choice((*QUERIES, rng.choice(list(house.secrets.values())), rng.choice(IDS)))
    what = rng.choice(("retrieve", "search", "browse", "get", "history", "export", "profile", "remains"))
    if what == "retrieve":
        user, session = (scope.id, "s") if scope.owner == "user" else (None, scope.id)
        if scope.space != memory.space or not scope.id:
            return
        ctx = InvocationContext(session, user, tenant=scope.tenant)
        seen: object = [hit.content for hit in await memory.retrieve(query, top_k=rng.choice((1, 5, 1000)), ctx=ctx)]
    elif what == "search":
        seen = await memory.search(scope, query, where, top_k=rng.choice((1, 5, 1000)))
    elif what == "browse":
        cursor = rng.choice((None, *rng.sample(house.cursors, 3)))
        seen = await memory.browse(scope, where, limit=rng.choice((1, 1000)), cursor=cursor)
    elif what == "get":
        id_ = house.guess()
        seen = await memory.get(scope, id_)
        assert (seen is not None) == (id_ in own)
    elif what == "history":
        id_ = house.guess()
        seen = await memory.history(scope, id_)
        assert bool(seen) == (id_ in own)
    elif what == "export":
        seen = [value async for value in memory.export(scope)]
    elif what == "profile":
        seen = await memory.profile(scope)
    else:
        seen = await memory.remains(scope)
        assert bool(seen) == (scope in house.secrets)
    house.check(scope, what, seen)


@pytest.mark.parametrize("cache_mb", [64, 0.05])
async def test_law_nobody_reads_what_is_anothers(tmp_path: Path, cache_mb: float) -> None:
    """Across users, tenants, spaces and sessions: ids guessed, look-alikes, wildcards, SQL and query syntax; with room for
    every index, and with almost none."""
    rng = random.Random(20261120)
    memory = NativeMemory(f"sqlite:///{tmp_path}/x.db", embedder=HashEmbedder(16), cache_mb=cache_mb)
    house = House(memory, rng)
    await house.fill()
    while house.reads.total() < READS:
        await asyncio.gather(*(read(house) for _ in range(100)))
    assert min(house.reads[what] for what in ("retrieve", "search", "browse", "get", "history", "export")) > 100
    assert house.found > 500, "reads must find something, or they prove nothing"
    await memory.aclose()


async def test_law_nobody_changes_what_is_anothers(tmp_path: Path) -> None:
    """Editing, pinning, forgetting and erasing in one scope, by ids of all others: nothing of theirs changes."""
    rng = random.Random(7)
    memory = NativeMemory(f"sqlite:///{tmp_path}/x.db")
    house = House(memory, rng)
    await house.fill()
    attacker = Scope("", "default", "user", "mallory")
    await memory.add(attacker, "secret of mallory")
    every = list(itertools.chain.from_iterable(house.ids.values()))
    before = {scope: [value async for value in memory.export(scope)] for scope in house.secrets}
    for id_ in rng.sample(every, 100):
        assert await memory.edit(attacker, id_, "mine now") is None
        assert await memory.pin(attacker, id_) is None
    receipt = await memory.forget(attacker, ids=[*every, "%", "*", "' OR '1'='1"])
    assert not any(receipt.deleted.values())
    for query in ("%", "*", "token", "second", "_"):
        await memory.forget(attacker, query=query)
    await memory.forget(attacker, since=datetime(1, 1, 1, tzinfo=UTC))
    await memory.erase(attacker)
    for wild in ("%", "*", "_", "' OR 1=1 --"):
        scope = Scope(wild, wild, "user", wild)
        house.secrets.pop(scope, None)
        await memory.erase(scope)
    for scope in house.secrets:
        assert [value async for value in memory.export(scope)] == before[scope]
    await memory.aclose()


@pytest.mark.parametrize("file", ["rows.sql", "management.sql"])
def test_every_statement_names_the_whole_scope(file: str) -> None:
    """No row is read or changed by an id alone: each part of each statement says whose it must be."""
    statements = named_queries(files("retinue_memory.native").joinpath(file).read_text("utf-8"))
    assert len(statements) > 10
    for name, statement in statements.items():
        for part in re.split(r"\bUNION(?: ALL)?\b|\) OR EXISTS \(", statement):
            for column in ("tenant", "space", "owner", "owner_id"):
                assert f":{column}" in part, (name, column)
