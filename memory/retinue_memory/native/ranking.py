"""How well each memory of a scope answers a query: pure functions of an `Index`, numpy only.

A memory is compared together with what was said just before it (and a little of what came after): by words, by meaning, and
token by token. Then counts who said it, when, in which segment of a session, and whether it looks like an answer. Every signal
is 0..1; the score is their sum by `Weights`, scaled to 0..1. A signal without data, such as meaning without an embedder, is 0.

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
    """The weight of each signal. Few, round, and the same for all conversations: recall is flat around them."""

    words: float = 0.4
    """The query's terms, by rarity, in the memory and, for less, around it. Without vectors, with the weight of `meaning` too."""
    meaning: float = 0.4
    """Cosine of the query's vector and the memory's, summed with those of the two memories before it."""
    tokens: float = 0.3
    """For each token of the query, the nearest token in the memory or around it."""
    segment: float = 0.3
    """The three best memories of the same segment: one hit makes its surroundings likelier."""
    speaker: float = 0.3
    """Said by the only speaker that the query names."""
    role: float = 0.4
    """Said by the user, or by the assistant if the query asks what the assistant said. 0 if the query names a speaker."""
    date: float = 0.4
    """Said on a day that the query names, or soon after."""
    answer: float = 0.15
    """Has what is asked for: a time, a place, a number, a title, a reason."""
    question: float = -0.2
    """The share of its words that are in questions."""
    echo: float = -0.4
    """The share of a question's words that are in the query: it asks the same, and answers nothing."""
    novelty: float = 0.2
    """Unlike the eight memories before it."""
    fullness: float = 0.3
    """Its length, up to twenty words: more than a greeting."""
    recency: float = 0.02
    """How recently it was said, halved every 30 days: it orders what is otherwise equal."""


WEIGHTS = Weights()

_K1, _B = 0.9, 0.4
_FROM = np.array(((0.8,), (0.6,), (0.4,), (0.2,)), np.float32)
"""Factors for a match one and two memories before, and one and two after: in the order of `Index.around`."""
_TO = np.array(((0.4,), (0.2,), (0.8,), (0.6,)), np.float32)
"""The same factors seen from the match: for the memory before it, it is one after."""
_MAX_CANDIDATES = 80  # memories, the best by all other signals, whose tokens are compared
_MAX_TABLE_SIZE = 1_000_000  # of terms times memories: 4 MB
_QUERY_END_CHARS = 600  # read at the start and at the end of a query
_SEGMENT_BEST = 3
_QUESTION_SHARE = 0.5  # a memory with more of its words in questions is one
_ASSISTANT_WORTH = 0.7  # of a match in an assistant's text, beside 1 in a user's
_HALF_LIFE_S = 30 * 86_400.0
_DAYS_AFTER = 10  # people tell of a day so long after it
_DAYS_BEFORE, _ANNOUNCED = 7, 0.3  # and announce it so long before, which counts less
_MAX_YEARS = 30

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
    """A query as ranking reads it."""

    text: str
    terms: tuple[str, ...]
    named: tuple[int, ...]
    """Numbers of the speakers that the query names."""
    asks_assistant: bool
    wanted: int
    """Bits of `cues`: the kinds of answer that it asks for."""
    vector: Floats | None = None
    """The vector of `for_embedder`: shape (dimensions,), L2-normalised. None: meaning does not count."""
    tokens: NDArray[np.int8] | None = None
    """Its token vectors: shape (count, width), norm 127. None: tokens do not count."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The result for every memory of an index."""

    scores: Floats
    """0..1, higher is better; -1 for a memory that was not allowed. Shape (size,)."""
    signals: dict[str, Floats]
    """The weighted signals, each of shape (size,); they add up to the score, which is cut off at 0."""

    def explain(self, place: int) -> dict[str, float]:
        """The signals of one memory that are not 0. They add up to its score; "floor" raises a negative sum to 0."""
        parts = {name: part for name, values in self.signals.items() if (part := float(values[place]))}
        below = sum(parts.values())
        return parts | {"floor": -below} if below < 0 else parts


class _Signals:
    """The weighted signals of a ranking, each a row of one table. Their sum is at most 1."""

    def __init__(self, size: int, weights: Weights) -> None:
        self.named: dict[str, Floats] = {}
        self._weights = _scaled(weights)
        self._table = np.empty((len(self._weights), size), np.float32)

    def add(self, name: str, values: NDArray[Any], instead_of: str | None = None) -> None:
        """Add a signal of values 0..1. `instead_of`: a missing signal whose weight this one gets as well."""
        weight = self._weights[name] + (self._weights[instead_of] if instead_of else 0)
        self.named[name] = np.multiply(values, np.float32(weight), out=self._table[len(self.named)])

    def sum(self) -> Floats:
        total: Floats = np.add.reduce(self._table[: len(self.named)])
        return total


def for_embedder(text: str, index: Index) -> str:
    """The query to embed: names of speakers replaced by "they", politeness left out.

    The vector of a text with a name is nearer to what was said *to* that person than to what they said.
    """
    neutral = _POLITE.sub(" ", _ends(text))
    for _, pattern in list(index.names):  # it may grow while it is read
        neutral = pattern.sub(lambda match: "their" if match[1] else "they", neutral)
    return neutral if neutral.strip() else text


def _ends(text: str) -> str:
    """The start and end of a long text: what is asked about a pasted text is before or after it."""
    return text if len(text) <= 2 * _QUERY_END_CHARS else f"{text[:_QUERY_END_CHARS]}\n{text[-_QUERY_END_CHARS:]}"


def read(text: str, index: Index, reading: Reading | None = None) -> Query:
    """Read a query; `reading` is the embedder's of `for_embedder`, None without an embedder."""
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
    """Rank every memory of the index. Deterministic.

    `allowed`: a mask of the memories that may be found, None for all; the others score -1 and do not raise their neighbours.
    """
    if not index.size:
        return Ranking(np.zeros(0, np.float32), {})
    if allowed is not None and allowed.all():
        allowed = None
    signals = _Signals(index.size, weights)
    matches = index.postings(query.terms)
    echo, worth = _repeats(index, query, matches)
    worth = _only(allowed, worth, 0.0)
    _add_priors(signals, index, query, now)
    signals.add("echo", echo)
    around, alone = lexical(index, matches, worth)
    evidence = [alone]
    if query.vector is not None and index.has_vectors:
        signals.add("words", around)
        in_context, cosines = semantic(index, query.vector, worth)
        signals.add("meaning", in_context)
        evidence.append(cosines)
    else:
        signals.add("words", around, instead_of="meaning")
    if query.tokens is not None and len(query.tokens) and len(index.tokens):
        so_far = _only(allowed, signals.sum(), -1.0)
        around, alone = max_sim(index, query.tokens, _top(so_far, _MAX_CANDIDATES), worth)
        signals.add("tokens", around)
        evidence.append(alone)
    mean = reduce(np.add, evidence) / np.float32(len(evidence))
    signals.add("segment", _segment(index, _only(allowed, mean, 0.0)))
    scores = signals.sum()
    np.minimum(np.maximum(scores, 0.0, out=scores), 1.0, out=scores)
    return Ranking(_only(allowed, scores, -1.0), signals.named)


def best(scores: Floats, most: int) -> list[int]:
    """The places of the `most` highest scores that are not negative, highest first; of equal ones, the newer first."""
    places = _top(scores, most)
    places = places[scores[places] >= 0]
    return [int(place) for place in places[np.lexsort((-places, -scores[places]))][:most]]


# -- signals: each 0..1, one value a memory -------------------------------------------------------------------------------


def lexical(index: Index, matches: Postings, worth: Floats) -> tuple[Floats, Floats]:
    """The share of the query's terms, by rarity, that each memory contains: with those around it, and alone.

    A term weighs as in BM25, but at most 1, and the share is of all terms of the query: a memory that has one common word of
    many gets little. `worth`: a factor 0..1 for a match in each memory.
    """
    size, width = index.size, index.size + 1  # the last of a row is for place -1
    around, alone, total = np.zeros(width, np.float32), np.zeros(width, np.float32), 1e-9
    longer, shortest = np.float32(_K1 * _B / index.average_length), np.float32(_K1 * (1 - _B))
    for few in matches.in_parts(_MAX_TABLE_SIZE // width):
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
    """Cosines of the query's vector and each memory's: summed with those before it, and alone; both scaled to 0..1."""
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
    nearby = known.take(row_of.take(index.neighbours(candidates)), axis=0)
    nearby *= _FROM[:, None]
    nearby = np.maximum(own, np.maximum.reduce(nearby))
    around[candidates] = _min_max(np.add.reduce(nearby, axis=1))
    alone[candidates] = _min_max(np.add.reduce(own, axis=1))
    return around, alone


def _add_priors(signals: _Signals, index: Index, query: Query, now: datetime) -> None:
    """Add the signals that do not compare texts."""
    if len(query.named) == 1:
        signals.add("speaker", index.column("speakers") == query.named[0])
    elif not query.named:
        signals.add("role", index.column("by_user") != query.asks_assistant)
    if names_days(query.text) and (days := _spans(index, query.text, now)):
        signals.add("date", _dated(index, days))
    if query.wanted:
        signals.add("answer", (index.column("cues") & query.wanted) != 0)
    signals.add("question", index.column("asking"))
    signals.add("novelty", index.column("novelty"))
    signals.add("fullness", index.column("fullness"))
    age = (index.column("said_at") - now.timestamp()).astype(np.float32)
    signals.add("recency", np.exp2(np.minimum(age, 0.0) / np.float32(_HALF_LIFE_S)))


def _segment(index: Index, evidence: Floats) -> Floats:
    """The mean of the three best memories of each memory's segment."""
    segments, sizes = index.column("segments"), index.segment_sizes
    order = segments.argsort(kind="stable")  # they are nearly in order
    # floats from 0 up are ordered like their bits: value and place in one number
    left = (evidence.take(order).view(np.int32).astype(np.int64) << 32) | np.arange(index.size)
    starts, highest = sizes.cumsum() - sizes, np.empty((_SEGMENT_BEST, len(sizes)), np.int64)
    for taken in highest:
        np.maximum.reduceat(left, starts, out=taken)
        at = taken & 0xFFFFFFFF
        left[at] = at
    total = np.add.reduce((highest >> 32).astype(np.int32).view(np.float32))
    best_of: Floats = (total / np.minimum(sizes, _SEGMENT_BEST).astype(np.float32)).take(segments)
    return best_of


def _repeats(index: Index, query: Query, matches: Postings) -> tuple[Floats, Floats]:
    """The echo of each memory, and the worth of a match in it, both 0..1.

    Echo: the share of a question's different terms that the query contains. A question that was asked before in the same words
    is worth nothing, nor is the answer to it, which only repeats, or guesses, what was known. Other texts of the assistant are
    worth less than the user's, unless the query asks what the assistant said.
    """
    echo, by_user = np.zeros(index.size, np.float32), index.column("by_user")
    worth: Floats = np.maximum(by_user, np.float32(1 if query.asks_assistant else _ASSISTANT_WORTH))
    if not len(matches.places):
        return echo, worth
    matched = np.bincount(matches.places, minlength=index.size) * (index.column("asking") > _QUESTION_SHARE)
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
        worth[answers[known]] = np.float32(_ASSISTANT_WORTH) * left[known]
    return echo, worth


def _spans(index: Index, text: str, now: datetime) -> list[Span]:
    said = index.column("said_at")
    first, last = (datetime.fromtimestamp(float(at), UTC).year for at in (said.min(), said.max()))
    return spans(text, now.date(), range(max(first, last - _MAX_YEARS), last + 1))


def _dated(index: Index, days: Iterable[Span]) -> Floats:
    """1 on these days, falling for ten days after, and a little in the week before."""
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
    """The weights by name, scaled so that the positive ones add up to 1."""
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
