"""How well each memory of a scope answers a query: pure functions over an `Index`, numpy only.

score = 0.5 BM25 + 0.5 cosine, each divided by its highest over the scope, times what a text of its sort is worth, plus
a prior for what the user stated. BM25 as in Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from .index import Index
from .words import terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

_K1, _B = 0.9, 0.4
_STATED_BY_USER = 0.3
"""What a user says of themselves is what there is to remember; an answer only repeats or guesses it."""
_QUESTION = 0.7
"""What a question is worth beside a statement."""
_ANSWER = 0.5
"""What an assistant's text is worth beside a user's, unless the query asks what the assistant said."""
_LATEST = 0.02
"""For what was said just now, halved every 30 days: it orders what is otherwise equal."""
_HALF_LIFE = 30 * 86_400.0
_HIGHEST = 1.0 + _STATED_BY_USER + _LATEST

_ASKS_ASSISTANT = re.compile(
    r"\b(?:you|your)\b.{0,40}\b(?:advi[cs]e|answer|explain|gave|give|list|mention|propos|recipe|recommend|said|say|"
    r"suggest|summar|tell|told|wrote|write)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as ranking reads it."""

    terms: tuple[str, ...]
    asks_assistant: bool = False

    @classmethod
    def of(cls, text: str) -> Query:
        return cls(tuple(dict.fromkeys(terms(text))), _ASKS_ASSISTANT.search(text) is not None)


def neutral(query: str, speakers: Iterable[str]) -> str:
    """The query with the speakers' names replaced by "they", for the embedder.

    A vector that holds a name is nearer to what was said *to* that person than to what the person said.
    """
    names = {
        name for speaker in speakers for name in (speaker, speaker.split(maxsplit=1)[0] if speaker.strip() else "")
    }
    found = sorted(filter(None, names), key=len, reverse=True)
    if not found:
        return query
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, found))})(?!\w)"
    return re.sub(pattern, "they", query, flags=re.IGNORECASE)


def rank(index: Index, query: Query, vector: NDArray[np.float32] | None, now: datetime) -> NDArray[np.float32]:
    """A score 0..1 for every memory of the index, higher is better. `vector` None: by words alone."""
    lexical, covered = bm25(index, query)
    value = worth(index, query, covered)
    fused = _scaled(lexical, value)
    if vector is not None and bool(index.embedded.any()):
        fused = 0.5 * fused + 0.5 * _scaled(np.maximum(index.vectors @ vector, 0.0), value)
    if not query.asks_assistant:
        fused = fused + _STATED_BY_USER * (index.by_user & ~index.question)
    age = np.maximum(now.timestamp() - index.said_at, 0.0)
    return ((fused + _LATEST * np.exp2(-age / _HALF_LIFE)) / _HIGHEST).astype(np.float32)


def best(scores: NDArray[np.float32], most: int) -> list[int]:
    """The places of the `most` highest scores, highest first; of equal ones, what was written later."""
    if most < len(scores):
        bound = np.partition(scores, len(scores) - most)[len(scores) - most]
        places = np.flatnonzero(scores >= bound)
    else:
        places = np.arange(len(scores))
    return [int(place) for place in places[np.lexsort((-places, -scores[places]))][:most]]


def bm25(index: Index, query: Query) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each memory's BM25 score over "speaker text", and which share of its different terms the query holds (0..1)."""
    scores, matched = np.zeros(index.size, np.float32), np.zeros(index.size, np.float32)
    if not index.size:
        return scores, matched
    norm = _K1 * (1 - _B + _B * index.lengths / max(float(index.lengths.mean()), 1.0))
    for term in query.terms:
        posting = index.postings(term)
        if posting is None:
            continue
        places, counts = posting
        rarity = np.log1p((index.size - len(places) + 0.5) / (len(places) + 0.5))
        scores[places] += rarity * counts * (_K1 + 1) / (counts + norm[places])
        matched[places] += 1
    matched /= np.maximum(index.distinct, 1)
    return scores, matched


def worth(index: Index, query: Query, covered: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a match in each memory is worth, 0..1.

    A question tells as much as it says beyond the query: the same question asked before tells nothing. An assistant's
    answer counts less than a user's words, unless it is asked for.
    """
    value = np.where(index.question, _QUESTION * (1.0 - covered), 1.0)
    return value if query.asks_assistant else value * np.where(index.by_user, 1.0, _ANSWER)


def _scaled(leg: NDArray[np.float32], value: NDArray[np.float32]) -> NDArray[np.float32]:
    """The leg over its highest among what is worth something, times the worth: 0..1."""
    highest = float(leg.max(initial=0.0, where=value > 0))
    return np.minimum(leg / highest, 1.0) * value if highest > 0 else leg * value
