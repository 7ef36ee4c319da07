"""How well each memory of a scope answers a query: pure functions over an `Index`, numpy only.

A memory is judged by what it says, read in the light of what was said just before it (and a little of what came after):
by words, by meaning, and token by token. Then by who said it, when, in what stretch of talk, and whether it looks like
an answer at all. Every signal is 0..1; the score is their sum by `Weights`, scaled to 0..1. A signal that has nothing to
go by, without an embedder or without a name in the query, gives nothing.

Term weights are BM25's (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009); the token signal is the
MaxSim of Khattab and Zaharia, "ColBERT" (2020), over the tokens of the sentence embedder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from .cues import wanted
from .dates import Span, spans
from .index import READ_WITH, Index
from .words import terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .embedding import Reading

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
_FROM = (0.8, 0.6, 0.4, 0.2)
"""What a match counts that is one and two memories before, and one and two after: in the order of `Index.around`."""
_TO = (0.4, 0.2, 0.8, 0.6)
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
        parts = {name: float(values[place]) for name, values in self.signals.items() if values[place]}
        below = sum(parts.values())
        return parts | {"floor": -below} if below < 0 else parts


@dataclass(frozen=True, slots=True)
class _Matches:
    """Where the query's terms stand: the postings of `terms`, one after the other. `holding`: how many each term has."""

    terms: NDArray[np.intp]
    holding: NDArray[np.intp]
    places: NDArray[np.int32]
    counts: Floats

    def in_parts(self, width: int) -> Iterator[_Matches]:
        """A few terms at a time, so that a table of `width` a term stays within `_TABLE` numbers."""
        most, ends = max(1, _TABLE // width), np.cumsum(self.holding)
        for first in range(0, len(self.terms), most):
            last = min(first + most, len(self.terms))
            part = slice(ends[first] - self.holding[first], ends[last - 1])
            yield _Matches(self.terms[first:last], self.holding[first:last], self.places[part], self.counts[part])


def _matches(index: Index, terms: Sequence[str]) -> _Matches:
    postings = [index.postings(term) for term in terms]
    places = [places for places, _ in postings] or [np.zeros(0, np.int32)]
    counts = [counts for _, counts in postings] or [np.zeros(0, np.float32)]
    holding = np.array([len(places) for places, _ in postings], np.intp)
    return _Matches(np.arange(len(terms)), holding, np.concatenate(places), np.concatenate(counts))


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
    size = index.size
    if not size:
        return Ranking(np.zeros(0, np.float32), {})
    if allowed is not None and allowed.all():
        allowed = None
    scale = 1.0 / _highest(weights)
    matches = _matches(index, query.terms)
    share, same = _echo(index, matches)
    worth = _only(allowed, _worth(index, query, same), 0.0)
    signals = _priors(index, query, now, share, weights, scale)
    around, alone = lexical(index, matches, worth)
    evidence = [alone]
    if query.vector is not None and index.has_vectors:
        signals["words"] = _weighted(weights.words * scale, around)
        cosines = np.vecdot(index.vectors, query.vector) * worth  # as fast as @ on one thread, and never on several
        signals["meaning"] = _weighted(weights.meaning * scale, _min_max(_with_context(index, cosines)))
        evidence.append(_min_max(cosines))
    else:
        signals["words"] = _weighted((weights.words + weights.meaning) * scale, around)
    if query.tokens is not None and len(query.tokens) and len(index.tokens):
        so_far = _only(allowed, _sum(signals.values(), size), -1.0)
        around, alone = max_sim(index, query.tokens, _top(so_far, _CANDIDATES), worth)
        signals["tokens"] = _weighted(weights.tokens * scale, around)
        evidence.append(alone)
    mean = _only(allowed, _sum(evidence, size) / np.float32(len(evidence)), 0.0)
    signals["stretch"] = _weighted(weights.stretch * scale, _stretch(index, mean))
    return Ranking(_only(allowed, np.clip(_sum(signals.values(), size), 0.0, 1.0), -1.0), signals)


def best(scores: Floats, most: int) -> list[int]:
    """The places of the `most` highest scores, highest first; of equal ones, what was written later. Those below 0 are left
    out."""
    places = _top(scores, most)
    places = places[scores[places] >= 0]
    return [int(place) for place in places[np.lexsort((-places, -scores[places]))][:most]]


# -- signals: each 0..1, one value a memory -------------------------------------------------------------------------------


def lexical(index: Index, matches: _Matches, worth: Floats) -> tuple[Floats, Floats]:
    """The share of the query's terms, by rarity, that each memory holds with those around it, and alone.

    A term weighs as in BM25, but at most 1, and the share is of all that the query asks: where little of it is known, the
    one memory that has a word in common with it gets little. `worth`: what a match in each memory counts, 0..1.
    """
    size, lengths = index.size, index.column("lengths")
    around, alone = np.zeros(size + 1, np.float32), np.zeros(size + 1, np.float32)  # the last is for place -1
    rarity = np.log1p((size - matches.holding + 0.5) / (matches.holding + 0.5))
    norms = _K1 * (1 - _B + _B * lengths / index.average_length)
    for few in matches.in_parts(size + 1):
        norm = norms[few.places]
        here = np.minimum(few.counts * (_K1 + 1) / (few.counts + norm), 1.0)
        here = np.repeat(rarity.astype(np.float32)[few.terms], few.holding) * here * worth[few.places]
        table = np.zeros((len(few.terms), size + 1), np.float32)
        flat, rows = table.ravel(), np.repeat(np.arange(len(few.terms)) * (size + 1), few.holding)
        flat[rows + few.places] = here
        alone += table.sum(axis=0)
        for readers, share in zip(index.around[few.places].T, _TO, strict=True):
            at = rows + readers  # of place -1: where the row before it ends
            flat[at] = np.maximum(flat[at], np.float32(share) * here)
        around += table.sum(axis=0)
    shares = np.float32(max(float(rarity.sum()), 1e-9))
    return around[:size] / shares, alone[:size] / shares


def max_sim(index: Index, query_tokens: NDArray[np.int8], candidates: Places, worth: Floats) -> tuple[Floats, Floats]:
    """The mean over the query's tokens of the nearest token, in each candidate and those around it, and in it alone;
    scaled to 0..1 over the candidates, 0 for the others."""
    around, alone = np.zeros(index.size, np.float32), np.zeros(index.size, np.float32)
    candidates = candidates[index.column("token_counts")[candidates] > 0]
    if not len(candidates):
        return around, alone
    counts = index.column("token_counts")[candidates]
    starts = np.cumsum(counts) - counts
    rows = np.repeat(index.column("token_starts")[candidates] - starts, counts) + np.arange(int(counts.sum()))
    near = index.tokens[rows].astype(np.float32) @ (query_tokens.T / np.float32(127 * 127))
    own = np.maximum.reduceat(near, starts, axis=0) * worth[candidates][:, None]
    row_of = np.full(index.size + 1, len(candidates), np.int32)  # the last element is where place -1 points
    row_of[candidates] = np.arange(len(candidates))
    known = np.vstack((own, np.full((1, own.shape[1]), -1.0, np.float32)))
    reach = own.copy()
    for neighbours, share in zip(index.around[candidates].T, _FROM, strict=True):
        np.maximum(reach, np.float32(share) * known[row_of[neighbours]], out=reach)
    around[candidates] = _min_max(reach.mean(axis=1))
    alone[candidates] = _min_max(own.mean(axis=1))
    return around, alone


def _priors(
    index: Index, query: Query, now: datetime, echo: Floats, weights: Weights, scale: float
) -> dict[str, Floats]:
    signals: dict[str, Floats] = {}

    def give(name: str, values: NDArray[Any]) -> None:
        signals[name] = _weighted(getattr(weights, name) * scale, values)

    if len(query.named) == 1:
        give("speaker", index.column("speakers") == query.named[0])
    elif not query.named:
        give("role", index.column("by_user") != query.asks_assistant)
    days = _spans(index, query.text, now)
    if days:
        give("date", _dated(index, days))
    if query.wanted:
        give("answer", (index.column("cues") & query.wanted) != 0)
    give("question", index.column("asking"))
    give("echo", echo)
    give("novelty", index.column("novelty"))
    give("fullness", index.column("fullness"))
    give("recency", np.exp2(np.maximum(now.timestamp() - index.column("said_at"), 0.0) / -_HALF_LIFE))
    return signals


def _with_context(index: Index, cosines: Floats) -> Floats:
    """Cosines of the query and each memory's vector summed with shares of those before it."""
    summed, known = cosines.copy(), np.append(cosines, np.float32(0))  # the last element is where place -1 points
    for share, before in zip(READ_WITH, index.around.T, strict=False):
        summed += np.float32(share) * known[before]
    summed *= index.column("context_norms")
    return summed


def _stretch(index: Index, evidence: Floats) -> Floats:
    """The mean of the three best of each memory's stretch of talk."""
    stretches, count = index.column("stretches"), index.stretch_count
    sizes = np.bincount(stretches, minlength=count)
    order = np.argsort(stretches, kind="stable")  # they are nearly in order
    starts, left, numbers = np.cumsum(sizes) - sizes, evidence[order], np.arange(index.size)
    total = np.zeros(count, np.float32)
    for taken in range(_STRETCH_BEST):
        highest = np.maximum.reduceat(left, starts)
        total += np.where(sizes > taken, highest, np.float32(0))
        reached = np.where(left == np.repeat(highest, sizes), numbers, index.size)
        left[np.minimum.reduceat(reached, starts)] = -1.0  # of equal ones, one
    total /= np.clip(sizes, 1, _STRETCH_BEST)
    best_of: Floats = total[stretches]
    return best_of


def _echo(index: Index, matches: _Matches) -> tuple[Floats, Floats]:
    """For what asks rather than tells: which share of its different terms the query holds, and how far it is the same
    question, which is more: the query has hardly another term either."""
    matched: Floats = np.bincount(matches.places, minlength=index.size).astype(np.float32)
    matched *= index.column("asking") > _MOSTLY
    share: Floats = np.divide(matched, np.maximum(index.column("distinct"), 1), dtype=np.float32)
    return share, np.maximum(2 * share * matched / np.float32(max(len(matches.holding), 1)) - 1, 0)


def _worth(index: Index, query: Query, same: Floats) -> Floats:
    """What a match in each memory is worth, 0..1, to itself and to those around it.

    The same question asked before is worth nothing, nor what was answered to it then: that only repeats, or guesses, what
    there was to know. Other answers are worth less than a user's words. Asked what it said, the assistant is heard.
    """
    worth = 1 - same
    if query.asks_assistant:
        return worth
    by_user, asked = index.column("by_user"), np.flatnonzero(same)
    answers = index.around[asked, 2]
    known = (answers >= 0) & ~by_user[answers]
    worth[answers[known]] = 1 - same[asked[known]]
    return np.where(by_user, worth, np.float32(_ASSISTANT) * worth)


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


def _highest(weights: Weights) -> float:
    return sum(max(0.0, float(getattr(weights, field.name))) for field in fields(weights))


def _top(scores: Floats, most: int) -> Places:
    if most >= len(scores):
        return np.arange(len(scores))
    bound = np.partition(scores, len(scores) - most)[len(scores) - most]
    return np.flatnonzero(scores >= bound)


def _day(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def _only(allowed: NDArray[np.bool_] | None, values: Floats, otherwise: float) -> Floats:
    return values if allowed is None else np.where(allowed, values, np.float32(otherwise))


def _weighted(weight: float, values: NDArray[Any]) -> Floats:
    weighted: Floats = np.multiply(values, np.float32(weight), dtype=np.float32, casting="same_kind")
    return weighted


def _sum(parts: Iterable[Floats], size: int) -> Floats:
    total = np.zeros(size, np.float32)
    for part in parts:
        total += part
    return total


def _min_max(values: Floats) -> Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
