"""How well each memory of a scope answers a query: pure functions over an `Index`, numpy only.

A memory is judged by what it says, read in the light of what was said just before it (and a little of what came after):
by words, by meaning, and token by token. Then by who said it, when, in what stretch of talk, and whether it looks like
an answer at all. Every signal is 0..1; the score is their sum by `Weights`, scaled to 0..1. A signal that has nothing to
go by, without an embedder or without a name in the query, gives nothing.

Term weights are BM25's (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009); the token signal is the
MaxSim of Khattab and Zaharia, "ColBERT" (2020), over the tokens of the sentence embedder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from .cues import wanted
from .dates import Span, names_days, spans
from .index import READ_WITH, Index, Postings
from .words import terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .embedder import Reading

    Floats = NDArray[np.float32]
    Places = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each signal counts. Few, round, and the same for every kind of conversation: recall is flat around them."""

    words: float = 0.4
    """The query's terms, by rarity, in the memory and, for less, in those around it. Without vectors, `meaning` too."""
    meaning: float = 0.4
    """Cosine of the query's vector and the memory's, read with the two memories before it."""
    tokens: float = 0.3
    """For each token of the query, the nearest token in the memory or around it."""
    stretch: float = 0.3
    """The three best memories of the same stretch of talk: one hit makes its surroundings likelier."""
    speaker: float = 0.3
    """Said by the one speaker whom the query names."""
    role: float = 0.4
    """Said by the user; by the assistant where the query asks what the assistant said. Not where a speaker is named."""
    date: float = 0.4
    """Said on, or soon after, a day that the query names."""
    answer: float = 0.15
    """Holds the sort of thing that is asked for: a time, a place, a number, a title, a reason."""
    question: float = -0.2
    """Asks rather than tells: the share of its words that do."""
    echo: float = -0.4
    """Asks what the query asks: the share of a question's words that are in the query. It answers nothing."""
    novelty: float = 0.2
    """Unlike the eight memories before it: it brings something up."""
    fullness: float = 0.3
    """More than a greeting or a thank-you: its length, up to twenty words."""
    recency: float = 0.02
    """Lately said, halved every 30 days: it orders what is otherwise equal."""


WEIGHTS = Weights()

_K1, _B = 0.9, 0.4
_FROM = np.array(((0.8,), (0.6,), (0.4,), (0.2,)), np.float32)
"""What a match counts that is one and two memories before, and one and two after: in the order of `Index.around`."""
_TO = np.array(((0.4,), (0.2,), (0.8,), (0.6,)), np.float32)
"""What a match counts to those around it: to the one before it, it is one after."""
_CANDIDATES = 80
"""Memories, the best by all other signals, whose tokens are compared."""
_TABLE = 1_000_000
"""Numbers of a table of terms and memories: 4 MB."""
_LONGEST_END = 600
"""Characters of the beginning, and of the end, of a query."""
_STRETCH_BEST = 3
_MOSTLY = 0.5
"""The share of questions from which a memory counts as one."""
_ASSISTANT = 0.7
"""What a match in an assistant's text is worth beside one in a user's."""
_HALF_LIFE = 30 * 86_400.0
_DAYS_AFTER, _DAYS_BEFORE, _ANNOUNCED = 10, 7, 0.3
"""How long after a day people tell of it; how long before they announce it, and what that counts."""
_MOST_YEARS = 30

_TOLD = (
    r"(?:advi[sc]e|answer|ask|call|came up|choose|chose|creat|describ|explain|gave|give|help|list|mention|name|pick|plan"
    r"|propos|provid|put|recommend|reply|respon[ds]|said|say|share|show|suggest|summar|teach|tell|told|use|write|wrote)\w*"
)
_ASKS_ASSISTANT = re.compile(
    rf"\bdid you\b|\byou(?:['\u2019]d|['\u2019]ve| had| have)?(?: \w+ly)? {_TOLD}|\baccording to you\b|\byour (?:\w+ )?"
    r"(?:advice|answer|explanation|list|plan|recipe|recommendation|reply|response|suggestion|summary)s?\b"
    r"|\bour (?:previous|last|earlier|past) (?:chat|conversation|discussion|session)s?\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(r"\b(?:can|could|will|would|do|please) you\b", re.IGNORECASE)
_POLITE = re.compile(
    r"\b(?:(?:can|could|would|will) you (?:please )?)?(?:please )?(?:remind|tell) me\b|\bi was wondering\b"
    r"|\bdo you (?:remember|recall|know)\b|\bplease\b|\bmention only\b|\bin order\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as ranking reads it. `vector` is that of `for_embedder`, L2-normalised; `tokens` are its words', shape (count,
    width), int8, unit length at 127. Without them, ranking goes by what there is."""

    text: str
    terms: tuple[str, ...]
    named: tuple[int, ...]
    """Numbers of the speakers whom the query names."""
    asks_assistant: bool
    wanted: int
    """Bits of `cues`: the sorts of answer that would do."""
    vector: Floats | None = None
    tokens: NDArray[np.int8] | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """`scores`: 0..1 for every memory, higher is better; -1 for what was not allowed. `signals`: what each signal gave, in
    the same parts: they add up to the score, but where it is cut off at 0."""

    scores: Floats
    signals: dict[str, Floats]

    def explain(self, place: int) -> dict[str, float]:
        """What each signal gave this memory, adding up to its score; those that gave nothing are left out. "floor" is what
        lifts a sum below 0 to it."""
        parts = {name: part for name, values in self.signals.items() if (part := float(values[place]))}
        below = sum(parts.values())
        return parts | {"floor": -below} if below < 0 else parts


class _Signals:
    """The signals of a ranking as they are given, each a row of one table, weighted so that all of them sum up to 1 at most."""

    def __init__(self, size: int, weights: Weights) -> None:
        self.named: dict[str, Floats] = {}
        self._weights = _scaled(weights)
        self._table = np.empty((len(self._weights), size), np.float32)

    def give(self, name: str, values: NDArray[Any], instead_of: str | None = None) -> None:
        """Values of 0..1. `instead_of`: a signal that cannot be had, for which this one counts too."""
        weight = self._weights[name] + (self._weights[instead_of] if instead_of else 0)
        self.named[name] = np.multiply(values, np.float32(weight), out=self._table[len(self.named)])

    def sum(self) -> Floats:
        total: Floats = np.add.reduce(self._table[: len(self.named)])
        return total


def for_embedder(text: str, index: Index) -> str:
    """The query as it is embedded: names of speakers replaced by "they", politeness left out.

    A vector that holds a name is nearer to what was said *to* that person than to what the person said.
    """
    neutral = _POLITE.sub(" ", _ends(text))
    for _, pattern in list(index.names):  # it may grow while it is read
        neutral = pattern.sub(lambda match: "their" if match[1] else "they", neutral)
    return neutral if neutral.strip() else text


def _ends(text: str) -> str:
    """A long text's beginning and end: what is asked about it stands before or after it."""
    return text if len(text) <= 2 * _LONGEST_END else f"{text[:_LONGEST_END]}\n{text[-_LONGEST_END:]}"


def read(text: str, index: Index, reading: Reading | None = None) -> Query:
    """The query as ranking reads it; `reading` is the embedder's, of `for_embedder`."""
    named: list[int] = []
    text = _ends(text)
    bare = _POLITE.sub(" ", text)
    for code, pattern in index.names:
        without, found = pattern.subn(" ", bare)
        if found:
            named.append(code)
            bare = without
    vector, tokens = (reading.asks, reading.tokens) if reading is not None else (None, None)
    told = _ASKS_ASSISTANT.search(bare)
    asks_assistant = told is not None and not _REQUEST.search(bare[: told.end()])
    return Query(text, tuple(dict.fromkeys(terms(bare))), tuple(named), asks_assistant, wanted(bare), vector, tokens)


def rank(
    index: Index, query: Query, now: datetime, allowed: NDArray[np.bool_] | None = None, weights: Weights = WEIGHTS
) -> Ranking:
    """How well each memory of the index answers the query. The same for the same arguments.

    `allowed`: which memories may be found at all (all of them, where it is None); the others score -1 and lift no other.
    """
    if not index.size:
        return Ranking(np.zeros(0, np.float32), {})
    if allowed is not None and allowed.all():
        allowed = None
    signals = _Signals(index.size, weights)
    matches = index.postings(query.terms)
    echo, worth = _repeats(index, query, matches)
    worth = _only(allowed, worth, 0.0)
    _give_priors(signals, index, query, now)
    signals.give("echo", echo)
    around, alone = lexical(index, matches, worth)
    evidence = [alone]
    if query.vector is not None and index.has_vectors:
        signals.give("words", around)
        in_context, cosines = semantic(index, query.vector, worth)
        signals.give("meaning", in_context)
        evidence.append(cosines)
    else:
        signals.give("words", around, instead_of="meaning")
    if query.tokens is not None and len(query.tokens) and len(index.tokens):
        so_far = _only(allowed, signals.sum(), -1.0)
        around, alone = max_sim(index, query.tokens, _top(so_far, _CANDIDATES), worth)
        signals.give("tokens", around)
        evidence.append(alone)
    mean = reduce(np.add, evidence) / np.float32(len(evidence))
    signals.give("stretch", _stretch(index, _only(allowed, mean, 0.0)))
    scores = signals.sum()
    np.minimum(np.maximum(scores, 0.0, out=scores), 1.0, out=scores)
    return Ranking(_only(allowed, scores, -1.0), signals.named)


def best(scores: Floats, most: int) -> list[int]:
    """The places of the `most` highest scores, highest first; of equal ones, what was written later. Those below 0 are left
    out."""
    places = _top(scores, most)
    places = places[scores[places] >= 0]
    return [int(place) for place in places[np.lexsort((-places, -scores[places]))][:most]]


# -- signals: each 0..1, one value a memory -------------------------------------------------------------------------------


def lexical(index: Index, matches: Postings, worth: Floats) -> tuple[Floats, Floats]:
    """The share of the query's terms, by rarity, that each memory holds with those around it, and alone.

    A term weighs as in BM25, but at most 1, and the share is of all that the query asks: where little of it is known, the
    one memory that has a word in common with it gets little. `worth`: what a match in each memory counts, 0..1.
    """
    size, width = index.size, index.size + 1  # the last of a row is for place -1
    around, alone, total = np.zeros(width, np.float32), np.zeros(width, np.float32), 1e-9
    longer, shortest = np.float32(_K1 * _B / index.average_length), np.float32(_K1 * (1 - _B))
    for few in matches.in_parts(_TABLE // width):
        rarity = [math.log1p((size - held + 0.5) / (held + 0.5)) for held in few.holding.tolist()]
        total += sum(rarity)
        norms = index.column("lengths").take(few.places) * longer + shortest
        here = few.counts * np.float32(_K1 + 1) / (few.counts + norms)
        np.minimum(here, 1.0, out=here)
        here *= np.array(rarity, np.float32).repeat(few.holding)
        here *= worth.take(few.places)
        table = np.zeros((len(rarity), width), np.float32)
        flat, rows = table.ravel(), np.arange(0, len(rarity) * width, width).repeat(few.holding)
        flat[rows + few.places] = here
        alone += np.add.reduce(table)
        readers = rows + index.neighbours(few.places)  # of place -1: where the row before it ends
        np.maximum.at(flat, readers.ravel(), (_TO * here).ravel())
        around += np.add.reduce(table)
    return around[:size] / np.float32(total), alone[:size] / np.float32(total)


def semantic(index: Index, vector: Floats, worth: Floats) -> tuple[Floats, Floats]:
    """Cosines of the query's vector and each memory's: read with shares of those before it, and alone; both scaled to 0..1."""
    known = np.zeros(index.size + 1, np.float32)  # the last element is where place -1 points
    alone = known[:-1]
    np.vecdot(index.vectors, vector, out=alone)  # as fast as @ on one thread, and never on several
    alone *= worth
    in_context = alone.copy()
    for before, share in enumerate(READ_WITH):
        in_context += np.float32(share) * known.take(index.around[:, before])
    in_context *= index.column("context_norms")
    return _min_max(in_context), _min_max(alone)


def max_sim(index: Index, query_tokens: NDArray[np.int8], candidates: Places, worth: Floats) -> tuple[Floats, Floats]:
    """The mean over the query's tokens of the nearest token, in each candidate and those around it, and in it alone;
    scaled to 0..1 over the candidates, 0 for the others."""
    around, alone = np.zeros(index.size, np.float32), np.zeros(index.size, np.float32)
    candidates = candidates[index.column("token_counts").take(candidates) > 0]
    if not len(candidates):
        return around, alone
    counts = index.column("token_counts").take(candidates)
    ends = counts.cumsum()
    starts = ends - counts
    firsts: Places = index.column("token_starts").take(candidates) - starts
    rows = firsts.repeat(counts) + np.arange(int(ends[-1]))
    near = index.tokens.take(rows, axis=0).astype(np.float32) @ (query_tokens.T / np.float32(127 * 127))
    known = np.empty((len(candidates) + 1, len(query_tokens)), np.float32)
    own, known[-1] = known[:-1], -1.0  # the last row is for what is no candidate
    np.maximum.reduceat(near, starts, axis=0, out=own)
    own *= worth.take(candidates)[:, None]
    row_of = np.full(index.size + 1, -1, np.int32)  # the last element is where place -1 points
    row_of[candidates] = np.arange(len(candidates))
    reach = known.take(row_of.take(index.neighbours(candidates)), axis=0)
    reach *= _FROM[:, None]
    reach = np.maximum(own, np.maximum.reduce(reach))
    around[candidates] = _min_max(np.add.reduce(reach, axis=1))
    alone[candidates] = _min_max(np.add.reduce(own, axis=1))
    return around, alone


def _give_priors(signals: _Signals, index: Index, query: Query, now: datetime) -> None:
    """What of a memory speaks for it before a word of it is compared."""
    if len(query.named) == 1:
        signals.give("speaker", index.column("speakers") == query.named[0])
    elif not query.named:
        signals.give("role", index.column("by_user") != query.asks_assistant)
    if names_days(query.text) and (days := _spans(index, query.text, now)):
        signals.give("date", _dated(index, days))
    if query.wanted:
        signals.give("answer", (index.column("cues") & query.wanted) != 0)
    signals.give("question", index.column("asking"))
    signals.give("novelty", index.column("novelty"))
    signals.give("fullness", index.column("fullness"))
    age = (index.column("said_at") - now.timestamp()).astype(np.float32)
    signals.give("recency", np.exp2(np.minimum(age, 0.0) / np.float32(_HALF_LIFE)))


def _stretch(index: Index, evidence: Floats) -> Floats:
    """The mean of the three best of each memory's stretch of talk."""
    stretches, sizes = index.column("stretches"), index.stretch_sizes
    order = stretches.argsort(kind="stable")  # they are nearly in order
    # floats from 0 up are ordered as their bits are: how much, and then where, in one number
    left = (evidence.take(order).view(np.int32).astype(np.int64) << 32) | np.arange(index.size)
    starts, highest = sizes.cumsum() - sizes, np.empty((_STRETCH_BEST, len(sizes)), np.int64)
    for taken in highest:
        np.maximum.reduceat(left, starts, out=taken)
        at = taken & 0xFFFFFFFF
        left[at] = at
    total = np.add.reduce((highest >> 32).astype(np.int32).view(np.float32))
    best_of: Floats = (total / np.minimum(sizes, _STRETCH_BEST).astype(np.float32)).take(stretches)
    return best_of


def _repeats(index: Index, query: Query, matches: Postings) -> tuple[Floats, Floats]:
    """What repeats the query. First the echo: of what asks rather than tells, the share of its different terms that the query
    holds. Then what a match in each memory is worth, 0..1, to itself and to those around it.

    The same question asked before, where the query has hardly another term either, is worth nothing, nor what was answered
    to it then: that only repeats, or guesses, what there was to know. Other answers are worth less than a user's words.
    Asked what it said, the assistant is heard.
    """
    echo, by_user = np.zeros(index.size, np.float32), index.column("by_user")
    worth: Floats = np.maximum(by_user, np.float32(1 if query.asks_assistant else _ASSISTANT))
    if not len(matches.places):
        return echo, worth
    matched = np.bincount(matches.places, minlength=index.size) * (index.column("asking") > _MOSTLY)
    (asking,) = matched.nonzero()
    count = matched.take(asking).astype(np.float32)
    echo[asking] = share = count / index.column("distinct").take(asking)
    same = 2 * share * count / np.float32(len(matches.holding)) - 1
    (again,) = (same > 0).nonzero()
    if not len(again):
        return echo, worth
    asked, left = asking.take(again), 1 - same.take(again)
    worth[asked] *= left
    if not query.asks_assistant:
        answers = index.around[asked, 2]
        known = (answers >= 0) & ~by_user[answers]
        worth[answers[known]] = np.float32(_ASSISTANT) * left[known]
    return echo, worth


def _spans(index: Index, text: str, now: datetime) -> list[Span]:
    said = index.column("said_at")
    first, last = (datetime.fromtimestamp(float(at), UTC).year for at in (said.min(), said.max()))
    return spans(text, now.date(), range(max(first, last - _MOST_YEARS), last + 1))


def _dated(index: Index, days: Iterable[Span]) -> Floats:
    """1 on the days, less and less for ten days after, and a little in the week before."""
    said = np.floor_divide(index.column("said_at"), 86_400.0)
    dated = np.zeros(index.size)
    for first, last in days:
        late, early = said - _day(last), _day(first) - said
        near = np.where((late <= 0) & (early <= 0), 1.0, 0.0)
        near = np.where((late > 0) & (late <= _DAYS_AFTER), 1.0 - late / (1.4 * _DAYS_AFTER), near)
        near = np.where((early > 0) & (early <= _DAYS_BEFORE), _ANNOUNCED, near)
        np.maximum(dated, near, out=dated)
    return dated.astype(np.float32)


# -- smaller parts --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _scaled(weights: Weights) -> dict[str, float]:
    """The weights by their names; those above 0 add up to 1."""
    highest = sum(max(0.0, float(getattr(weights, field.name))) for field in fields(weights))
    return {field.name: getattr(weights, field.name) / highest for field in fields(weights)}


def _top(scores: Floats, most: int) -> Places:
    if most >= len(scores):
        return np.arange(len(scores))
    ordered = scores.copy()
    ordered.partition(len(scores) - most)
    places: Places = (scores >= ordered[len(scores) - most]).nonzero()[0]
    return places


def _day(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def _only(allowed: NDArray[np.bool_] | None, values: Floats, otherwise: float) -> Floats:
    return values if allowed is None else np.where(allowed, values, np.float32(otherwise))


def _min_max(values: Floats) -> Floats:
    low, high = np.minimum.reduce(values), np.maximum.reduce(values)
    return (values - low) / (high - low) if high > low else np.zeros(len(values), np.float32)
