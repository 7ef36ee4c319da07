"""Memories whose backend the test plays: it outlives the server, and does to a call whatever the test has in mind.

`PARTS` is the module that a configuration names. Its three memories, a `Memory`, a synchronous `MemoryBackend` and an
asynchronous one, ask the vault what to do at every call: to answer, or to fail in one of the ways in which backends fail.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .brain import REFUSE, Call, Line

PARTS = '''
import asyncio
import itertools
import math
from datetime import UTC, datetime
from pathlib import Path

import httpx
from retinue_memory import Memory, MemoryBackend, MemoryEntry, MemoryKind, Message

URL = Path("brain.url").read_text(encoding="utf-8")
HTTP = {"timeout": 60, "verify": False}  # certificates take longer to load than anything here


def ask(path, **body):
    answer = httpx.post(f"{URL}/{path}", json=body, **HTTP)
    answer.raise_for_status()
    return obey(answer.json())


async def aask(path, **body):
    async with httpx.AsyncClient(**HTTP) as http:
        answer = await http.post(f"{URL}/{path}", json=body)
    answer.raise_for_status()
    return obey(answer.json())


def obey(order):
    match order.get("do"):
        case "raise":
            raise RuntimeError("a secret of the server: /etc/hidden")
        case "cancel":
            raise asyncio.CancelledError
        case "exit":
            raise SystemExit(3)
        case "block":  # the thread at hand, an event loop's too
            ask("block")
    return order


def garbage(which):
    odd = {"memory": {"id": object(), "score": math.inf, "kind": [1], "sources": 5}}
    found = [
        5,
        "text",
        [None],
        itertools.count(),
        [Message("system", None)],
        [Message("system", "half of a pair: \\ud800")],
        [Message("system", "odd", metadata=odd)],
        [Message("system", "bare", metadata=None)],
        [Message("system", "first of all days", created_at=datetime.min.replace(tzinfo=UTC))],
        [MemoryEntry("k", "far in the future", MemoryKind.ENTITY, 0.5, 10**30)],
        [MemoryEntry(None, None, None, None, None)],
    ]
    return found[which % len(found)]


class Own(Memory):
    async def retrieve(self, query, *, top_k=5, **kwargs):
        order = await aask("recall/own", user=kwargs["ctx"].user_id, most=top_k)
        if "garbage" in order:
            return garbage(order["garbage"])
        return [Message("system", entry["text"]) for entry in order["entries"]]

    async def update(self, messages, **kwargs):
        ctx = kwargs["ctx"]
        await aask("record/own", user=ctx.user_id, text=messages[0].content, turn=ctx.turn_id)


def entries(order):
    if "garbage" in order:
        return garbage(order["garbage"])
    return [
        MemoryEntry(str(entry["at"]), entry["text"], MemoryKind.RECENT_MESSAGE, 0.5, entry["at"])
        for entry in order["entries"]
    ]


def user_of(session_id):
    return session_id.rsplit("/", 1)[1]


class Plain(MemoryBackend):
    """Knows nothing of turn ids."""

    def record(self, session_id, user_msg, assistant_msg):
        ask("record/plain", user=user_of(session_id), text=user_msg)

    def recall(self, session_id, query, max_entries):
        return entries(ask("recall/plain", user=user_of(session_id), most=max_entries))

    def flush(self, session_id):
        pass


class Asynchronous(MemoryBackend):
    async def record(self, session_id, user_msg, assistant_msg, turn_id):
        await aask("record/asynchronous", user=user_of(session_id), text=user_msg, turn=turn_id)

    async def recall(self, session_id, query, max_entries):
        return entries(await aask("recall/asynchronous", user=user_of(session_id), most=max_entries))

    async def flush(self, session_id):
        pass


class Demanding(Own):
    """Its constructor needs its backend."""

    def __init__(self, which):
        try:
            ask(f"make/{which}")
        except httpx.HTTPStatusError:
            raise ConnectionError("there is nobody at home") from None
'''

SHAPES = ("own", "plain", "asynchronous")

CONFIG = """\
server: {grace: 0.3}
memory:
  own: {backend: "vault:Own", write_timeout: 1}
  plain: {backend: "vault:Plain", write_timeout: 1}
  asynchronous: {backend: "vault:Asynchronous", write_timeout: 1}
agents:
  own: {model: "retinue_agents.testing:EchoModel", memory: own, default: true}
  plain: {model: "retinue_agents.testing:EchoModel", memory: plain}
  asynchronous: {model: "retinue_agents.testing:EchoModel", memory: asynchronous}
"""

FINE: Line = {"entries": []}
_RECALL = ("fine", "slow", "refuse", "hang", "raise", "cancel", "exit", "block", "garbage", "garbage")
_RECORD = ("fine", "slow", "refuse", "hang", "raise", "cancel", "exit", "block", "lose", "hold", "fine", "fine")


class Vault:
    """What the backends keep, by memory and user, in the order in which it came.

    The one of `plain` keeps what it is told as often as it is told; the others pass over a turn that they know.
    """

    def __init__(self, seed: int = 0) -> None:
        self.kept: dict[tuple[str, str], list[Line]] = defaultdict(list)
        self.healed = threading.Event()
        self._seed = seed
        self._turns: set[str] = set()
        self._lock = threading.Lock()

    def texts(self, shape: str, user: str) -> list[str]:
        return [entry["text"] for entry in self.kept[shape, user]]

    def fine(self, call: Call) -> Iterable[Line]:
        """Do as one is told."""
        what, _, shape = call.what.partition("/")
        if what == "record":
            self._keep(shape, call.body)
        if what == "recall":
            return [{"entries": self.kept[shape, call.body["user"]][::-1][: call.body["most"]]}]
        return [FINE]

    def storm(self, call: Call) -> Iterator[Line]:
        """A mishap for each call, by the seed and its number, so that each comes about as often; none once it is healed."""
        what, _, _ = call.what.partition("/")
        moods: Sequence[str] = _RECALL if what == "recall" else _RECORD if what == "record" else ("fine",)
        round_, place = divmod(call.number, len(moods))
        dice = random.Random(f"{self._seed}/{call.what}/{round_}")
        match "fine" if self.healed.is_set() else dice.sample(moods, len(moods))[place]:
            case "refuse":
                yield REFUSE
            case "hang":
                self.healed.wait(60)
                yield REFUSE
            case "raise" | "cancel" | "exit" as mood:
                yield {"do": mood}
            case "garbage":
                yield {"garbage": call.number}
            case "lose":  # it is done, and nobody learns of it
                self._keep(call.what.partition("/")[2], call.body)
                yield REFUSE
            case "hold":
                done = self.fine(call)
                self.healed.wait(60)
                yield from done
            case mood:
                if mood == "slow" or what == "block":
                    self.healed.wait(0.2)
                for answer in self.fine(call):
                    yield {**answer, "do": mood}

    def _keep(self, shape: str, told: dict[str, Any]) -> None:
        with self._lock:
            turn = told.get("turn")
            if turn not in self._turns:
                self.kept[shape, told["user"]].append({"text": told["text"], "at": time.time_ns()})
            if turn is not None:
                self._turns.add(turn)
