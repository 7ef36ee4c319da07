"""python -m benchmarks.retrieval [--data FILE] [--backend NAME]: how well, and how fast, a memory finds what was said.

Each conversation of the file (its format: data/README.md) is one user. Its turns are remembered one by one through the
public `Memory` contract, then its questions are asked; what comes back is compared with the turns that answer them.

R@k: the share of a question's answering turns among the first k memories, on average. hit@10: how many questions have at
least one among the first ten. MRR: one divided by the place of the first, on average, 0 below the twentieth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retinue_memory import (
    Embedder,
    InvocationContext,
    Memory,
    Message,
    Scope,
    open_memory,
)

DIALOGUES = Path(__file__).parent / "data" / "dialogues.json"
TOP_K = 20
RECALL_AT = (1, 5, 10, 20)
_COLUMNS = (*(f"R@{k}" for k in RECALL_AT), "hit@10", "MRR")
_QUICK = 3
"""With --quick, one conversation of so many is asked."""


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    category: str
    gold: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    turns: Sequence[tuple[str, Message]]
    """Session and message; the message's id is the turn's."""
    questions: Sequence[Question]


@dataclass(slots=True)
class Figures:
    """What one memory did. `scores`: a list of values for each category and column; times in seconds."""

    name: str
    scores: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list[float]))
    )
    turns: int = 0
    ingesting: float = 0.0
    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])

    def mean(self, column: str, category: str | None = None) -> float:
        chosen = self.scores.values() if category is None else [self.scores[category]]
        return statistics.fmean(value for columns in chosen for value in columns[column])

    def count(self, category: str) -> int:
        return len(self.scores[category]["MRR"])


def load(file: Path) -> list[Conversation]:
    """The conversations of a file, with the questions that count and can be answered."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return [_conversation(raw) for raw in content["conversations"]]


def _conversation(raw: Mapping[str, Any]) -> Conversation:
    turns = [(str(turn["session"]), _message(turn)) for turn in raw["turns"]]
    known = {message.id for _, message in turns}
    questions = [
        Question(asked["q"], str(asked.get("category", "")), frozenset(map(str, asked["gold"])) & known)
        for asked in raw["questions"]
        if asked.get("headline", True)
    ]
    return Conversation(str(raw["id"]), turns, [question for question in questions if question.gold])


def _message(turn: Mapping[str, Any]) -> Message:
    said = datetime.fromisoformat(turn["ts"])
    return Message(
        "assistant" if turn["speaker"].casefold() == "assistant" else "user",
        turn["text"],
        id=str(turn["id"]),
        name=turn["speaker"],
        created_at=said if said.tzinfo is not None else said.replace(tzinfo=UTC),
    )


async def measure(name: str, memory: Memory, conversations: Iterable[Conversation]) -> Figures:
    """Tell the memory every conversation, each as a user of its own, and ask."""
    figures = Figures(name)
    for conversation in conversations:
        await _tell(memory, conversation, figures)
        ctx = InvocationContext("asking", conversation.id)
        for number, question in enumerate(conversation.questions):
            if number == 0:  # what loads at the first query is not what a query costs
                await memory.retrieve("What is there to know?", top_k=TOP_K, ctx=ctx)
            wall, cpu = time.perf_counter(), time.process_time()
            found = await memory.retrieve(question.text, top_k=TOP_K, ctx=ctx)
            figures.wall.append(time.perf_counter() - wall)
            figures.cpu.append(time.process_time() - cpu)
            _score(figures.scores[question.category], question.gold, found)
    return figures


async def _tell(memory: Memory, conversation: Conversation, figures: Figures) -> None:
    began = time.perf_counter()
    for session, message in conversation.turns:
        ctx = InvocationContext(session, conversation.id, turn_id=message.id)
        await memory.update([message], ctx=ctx)
    figures.ingesting += time.perf_counter() - began
    figures.turns += len(conversation.turns)


def _score(scores: dict[str, list[float]], gold: frozenset[str], found: Sequence[Message]) -> None:
    answers = [gold & set(memory.metadata["memory"]["sources"]) for memory in found]
    for k in RECALL_AT:
        scores[f"R@{k}"].append(len(frozenset[str]().union(*answers[:k])) / len(gold))
    scores["hit@10"].append(float(any(answers[:10])))
    scores["MRR"].append(next((1 / place for place, answer in enumerate(answers, 1) if answer), 0.0))


# -- what it is compared with ---------------------------------------------------------------------------------------------


class Plain(Memory):
    """The usual retrieval: BM25 over "speaker text", alone or averaged with cosines, each scaled to 0..1."""

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder
        self._said: dict[Scope, list[Message]] = defaultdict(list)
        self._prepared: dict[Scope, tuple[list[Counter[str]], Any]] = {}

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        self._said[Scope.of(kwargs.get("ctx"))] += messages

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        scope = Scope.of(kwargs.get("ctx"))
        said = self._said[scope]
        texts, vectors = self._prepare(scope)
        scores = _bm25(texts, query)
        if self._embedder is not None:
            cosines = [float(cosine) for cosine in vectors @ self._embedder.embed([query])[0]]
            scores = [(a + b) / 2 for a, b in zip(_scaled(scores), _scaled(cosines), strict=True)]
        places = sorted(range(len(said)), key=lambda place: -scores[place])[:top_k]
        return [Message("system", said[at].content, metadata={"memory": {"sources": [said[at].id]}}) for at in places]

    def _prepare(self, scope: Scope) -> tuple[list[Counter[str]], Any]:
        from retinue_memory.native.words import terms

        if len(self._prepared.get(scope, ((),))[0]) != len(self._said[scope]):
            texts = [Counter(terms(f"{message.name or ''} {message.content}")) for message in self._said[scope]]
            contents = [message.content for message in self._said[scope]]
            self._prepared[scope] = texts, self._embedder.embed(contents) if self._embedder is not None else None
        return self._prepared[scope]


def _bm25(texts: Sequence[Counter[str]], query: str, k1: float = 0.9, b: float = 0.4) -> list[float]:
    from retinue_memory.native.words import terms

    average = sum(text.total() for text in texts) / len(texts)
    scores = [0.0] * len(texts)
    for term in dict.fromkeys(terms(query)):
        holders = [place for place, text in enumerate(texts) if term in text]
        rarity = math.log1p((len(texts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for place in holders:
            count = texts[place][term]
            norm = k1 * (1 - b + b * texts[place].total() / average)
            scores[place] += rarity * count * (k1 + 1) / (count + norm)
    return scores


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


# -- a large memory -------------------------------------------------------------------------------------------------------


def enlarged(conversations: Sequence[Conversation], size: int) -> Conversation:
    """One user with `size` memories: the turns of all conversations, over and over, each time with another number."""
    turns: list[tuple[str, Message]] = []
    everything = [(conversation.id, turn) for conversation in conversations for turn in conversation.turns]
    for number in range(size):
        (whose, (session, message)), again = everything[number % len(everything)], number // len(everything)
        content = f"{message.content} {again}" if again else message.content
        copy = Message(message.role, content, id=str(number), name=message.name, created_at=message.created_at)
        turns.append((f"{whose} {session} {again}", copy))
    asked = [
        Question(question.text, "", frozenset({"-"}))
        for conversation in conversations
        for question in conversation.questions
    ]
    return Conversation(f"{size} memories", turns, asked[:200])


# -- printing -------------------------------------------------------------------------------------------------------------


def print_recall(rows: Sequence[Figures]) -> None:
    """The first row's categories, then all rows."""
    first = rows[0]
    width = max(24, *(len(figures.name) + 2 for figures in rows))
    print(f"  {'':<{width}}{'asked':>6}" + "".join(f"{column:>8}" for column in _COLUMNS))
    for category in sorted(first.scores):
        cells = "".join(f"{first.mean(column, category):8.3f}" for column in _COLUMNS)
        print(f"  {category:<{width}}{first.count(category):6}{cells}")
    for figures in rows:
        asked = sum(map(figures.count, figures.scores))
        print(f"  {figures.name:<{width}}{asked:6}" + "".join(f"{figures.mean(column):8.3f}" for column in _COLUMNS))


def print_speed(rows: Sequence[Figures]) -> None:
    width = max(24, *(len(figures.name) + 2 for figures in rows))
    heads = ("p50 ms", "p99 ms", "p50 CPU", "p99 CPU", "turns/s")
    print(f"  {'':<{width}}{'':6}" + "".join(f"{head:>8}" for head in heads))
    for figures in rows:
        times = [percentile(values, share) * 1e3 for values in (figures.wall, figures.cpu) for share in (0.5, 0.99)]
        cells = "".join(f"{value:8.2f}" for value in times) + f"{figures.turns / figures.ingesting:8.0f}"
        print(f"  {figures.name:<{width}}{'':6}{cells}")


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# -- the command ----------------------------------------------------------------------------------------------------------


async def run(options: argparse.Namespace) -> None:
    conversations = load(options.data)
    if options.quick:
        conversations = conversations[::_QUICK]
    if options.limit is not None:
        conversations = _limited(conversations, options.limit)
    turns = sum(len(conversation.turns) for conversation in conversations)
    load_average = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"retrieval, {options.data.name}: {len(conversations)} users, {turns} turns{load_average}")
    rows = [await _measured(name, make, conversations) for name, make in memories(options.backend)]
    print_recall(rows)
    print_speed(rows[:1] + [row for row in rows[1:] if row.name.startswith("native")])
    for size in options.scale:
        large = [enlarged(conversations, size)]
        print_speed([await _measured(f"{options.backend}, {size} memories", memories(options.backend)[0][1], large)])


def memories(backend: str) -> list[tuple[str, Callable[[str], Memory]]]:
    """What is measured, by name, made from the folder it may write to: the backend, then what it is compared with."""
    from retinue_memory.native.embedder import find_embedder

    def native(folder: str, **settings: Any) -> Memory:
        return open_memory({"backend": "native", "database": f"sqlite:///{folder}/memory.db", **settings})

    found = find_embedder()
    chosen: list[tuple[str, Callable[[str], Memory]]] = (
        [("native" if found else "native (no weights: words only)", native)]
        if backend == "native"
        else [(backend, lambda _: open_memory(backend))]
    )
    if found is not None:
        chosen.append(("native, words only", lambda folder: native(folder, embedder=False)))
        chosen.append(("plain hybrid", lambda _: Plain(found)))
    return [*chosen, ("BM25 alone", lambda _: Plain())]


async def _measured(name: str, make: Callable[[str], Memory], conversations: Sequence[Conversation]) -> Figures:
    with TemporaryDirectory() as folder:
        memory = make(folder)
        try:
            return await measure(name, memory, conversations)
        finally:
            await memory.aclose()


def _limited(conversations: Iterable[Conversation], most: int) -> list[Conversation]:
    limited: list[Conversation] = []
    for conversation in conversations:
        if most > 0:
            limited.append(Conversation(conversation.id, conversation.turns, conversation.questions[:most]))
            most -= len(conversation.questions)
    return limited


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="retrieval", description=(__doc__ or "").split("\n\n", 1)[1])
    parser.add_argument("--data", type=Path, default=DIALOGUES, help="conversations (default: data/dialogues.json)")
    parser.add_argument("--backend", default="native", help='native, or "module:attr" of a Memory or MemoryBackend')
    parser.add_argument("--limit", type=int, help="ask at most so many questions")
    parser.add_argument("--quick", action="store_true", help=f"one conversation of {_QUICK}")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="time one user with so many memories, too")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
