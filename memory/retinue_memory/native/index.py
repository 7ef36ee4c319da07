"""A scope's memories in the form that ranking reads: term postings, vectors and columns, in memory, growing in place.

Nothing is rebuilt when a memory is added: what ranking needs to know of its surroundings (what it follows, its segment, how new
it is) is computed once, when it is appended. An index is built from rows and catches up with newer ones; it is a cache.
"""

from __future__ import annotations

import math
import re
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retinue_memory.memory import MemoryKind

from .cues import asking, cues, naming
from .injection import applies_always
from .rows import IndexRow
from .words import terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEGMENT_SIZE = 30  # memories at most
SEGMENT_PAUSE_S = 2 * 3600.0  # a longer silence starts a new segment
LOOK_BACK = 8  # memories that the novelty of the next is measured against
READ_WITH = (0.6, 0.3)
"""The weights of the previous memory's vector and the one before it when a vector is compared: an answer gets its meaning from
its question."""
_SHARES = np.array(READ_WITH, np.float32)[:, None]
_FROM_ITSELF = np.arange(LOOK_BACK + 1)
_RELATE_BATCH = 512  # memories whose vectors are compared in one step: 6 MB
_FULL_WORDS = 20  # `fullness` is 1 from so many words

_COLUMNS: dict[str, tuple[type[np.generic], float]] = {
    # name: (type, initial value)
    "seqs": (np.int64, 0),
    "said_at": (np.float64, 0),
    "lengths": (np.float32, 0),
    "distinct": (np.float32, 0),
    "fullness": (np.float32, 0),
    "asking": (np.float32, 0),
    "novelty": (np.float32, 1),
    "context_norms": (np.float32, 1),
    "cues": (np.uint8, 0),
    "by_user": (np.bool_, 0),
    "standing": (np.bool_, 0),
    "embedded": (np.bool_, 0),
    "speakers": (np.int32, 0),
    "segments": (np.int32, 0),
    "token_starts": (np.int64, 0),
    "token_counts": (np.int32, 0),
    "kinds": (np.int32, 0),
    "created_at": (np.int64, 0),
    "valid_from": (np.int64, 0),
    "valid_to": (np.int64, 0),
    "expires_at": (np.int64, 0),
    "pinned": (np.bool_, 0),
    "quarantined": (np.bool_, 0),
    "found_until": (np.int64, 0),
    "substance": (np.float32, 1),
}
NEVER = 2**63 - 1
"""A time in microseconds: no end."""
_PASSING_SUBSTANCE = 0.6  # of small talk and questions, which are kept for a while only
_INDEX_BYTES, _TERM_BYTES, _POSTING_BYTES = 4_000, 250, 8
_WORD = re.compile(r"\w+")
_NO_POSTINGS: tuple[array[int], array[float]] = array("i"), array("f")
_ASSISTANTS = frozenset({"assistant", "ai", "bot"})
"""Speakers who are no user, in imported logs that give every message the role of one."""


@dataclass(frozen=True, slots=True)
class Postings:
    """The memories that contain each of some terms: one term's after the other's."""

    holding: NDArray[np.intp]
    """How many memories contain each term: shape (terms,)."""
    places: NDArray[np.intp]
    """Which: shape (sum of `holding`,)."""
    counts: NDArray[np.float32]
    """How often: the shape of `places`."""

    def in_parts(self, most: int) -> Iterator[Postings]:
        """Split into parts of at most `most` terms, and at least one."""
        count, most = len(self.holding), max(1, most)
        if count <= most:
            yield self
            return
        ends = np.cumsum(self.holding)
        for first in range(0, count, most):
            last = min(first + most, count)
            part = slice(ends[first] - self.holding[first], ends[last - 1])
            yield Postings(self.holding[first:last], self.places[part], self.counts[part])


@dataclass(slots=True)
class _Session:
    """The end of a session so far."""

    last: int
    """The place of its last memory."""
    at: int
    """When that was first said, in microseconds."""
    segment: int
    filled: int
    """Memories in that segment."""


class Index:
    """The memories of one scope in the order of their insertion; element i of every array is the memory at place i.

    `embedder` names the model whose vectors it holds; vectors of other models are ignored. Hold `lock` while using it.
    """

    def __init__(self, embedder: str | None, dimensions: int, token_width: int = 0) -> None:
        self.lock = threading.Lock()
        self._embedder = embedder
        self._dimensions = dimensions
        self._token_width = token_width
        self.start_over(epoch=0)

    def start_over(self, epoch: int) -> None:
        """Empty the index, for the rows of another epoch."""
        self.version = 0
        self.epoch = epoch
        self.generation = self.slots_version = 0
        """Those of the scope's `rows.State` when it was last read."""
        self.size = 0
        self.segment_count = 0
        self.has_vectors = False
        self.speaker_codes: dict[str, int] = {}
        """The numbers in the column `speakers`, by the speaker as written."""
        self.names: list[tuple[int, re.Pattern[str]]] = []
        """A speaker's number, and the pattern by which a query may name them."""
        self.kind_codes: dict[str, int] = {}
        """The numbers in the column `kinds`, by kind."""
        self._sessions: dict[str, _Session] = {}
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, (dtype, _) in _COLUMNS.items()}
        self._around = np.zeros((4, 0), np.int32)
        self._segment_sizes = np.zeros(0, np.int32)
        self._vectors = np.zeros((0, self._dimensions), np.float32)
        self._tokens = np.zeros((0, self._token_width), np.int8)
        self._token_size = 0
        self._postings: dict[str, tuple[array[int], array[float]]] = {}
        self._places: dict[int, int] = {}
        self._posted = 0
        self._total_length = 0

    # -- what ranking reads -------------------------------------------------------------------------------------------

    def column(self, name: str) -> NDArray[Any]:
        """A column, of shape (size,). Set when a memory is appended or embedded:

        - seqs: row numbers. speakers: see `speaker_codes`. by_user: not said by an assistant. cues: bits of `cues`.
        - lengths, distinct: terms, and different terms. fullness: 0..1, by the number of words. asking: 0..1, the share of words
          in questions. segments: the segment, below `segment_count`.
        - embedded: has a vector. novelty: 1 - the highest cosine to the `LOOK_BACK` memories before it. context_norms: 1 / the
          norm of the vector plus `READ_WITH` of those before it. token_starts, token_counts: the rows of `tokens`.

        Updated when the row changes:

        - said_at: when it was last said, in seconds since the epoch. created_at, valid_from, valid_to, expires_at: microseconds,
          `NEVER` for no end. found_until: until when a search without conditions finds it.
        - kinds: see `kind_codes`. standing: a preference that instructs every answer. pinned, quarantined. substance: 0..1, a
          factor for the score.
        """
        return self._columns[name][: self.size]

    @property
    def around(self) -> NDArray[np.int32]:
        """Places of the memories one and two before, and one and two after, in the session: shape (size, 4), -1 for none."""
        return self._around[:, : self.size].T

    def neighbours(self, places: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """`around` of these places, transposed: shape (4, places)."""
        return self._around.take(places, axis=1)

    @property
    def segment_sizes(self) -> NDArray[np.int32]:
        """The memories in each segment: shape (segment_count,), at least 1."""
        return self._segment_sizes[: self.segment_count]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Shape (size, dimensions), L2-normalised; zeros for a memory without a vector."""
        return self._vectors[: self.size]

    @property
    def tokens(self) -> NDArray[np.int8]:
        """Token vectors of all memories, shape (all, token_width), unit length at 127."""
        return self._tokens[: self._token_size]

    @property
    def average_length(self) -> float:
        """The mean of `lengths`, at least 1."""
        return max(self._total_length / max(self.size, 1), 1.0)

    def postings(self, terms: Iterable[str]) -> Postings:
        """The memories that contain these terms."""
        found = [self._postings.get(term, _NO_POSTINGS) for term in terms]
        places, counts = array("i"), array("f")
        for held, often in found:
            places += held
            counts += often
        holding = np.array([len(held) for held, _ in found], np.intp)
        return Postings(holding, np.frombuffer(places, np.int32).astype(np.intp), np.frombuffer(counts, np.float32))

    @property
    def nbytes(self) -> int:
        """The bytes that the index occupies, estimated."""
        columns = sum(column.nbytes for column in self._columns.values())
        words = self._posted * _POSTING_BYTES + len(self._postings) * _TERM_BYTES
        return _INDEX_BYTES + columns + self._around.nbytes + self._vectors.nbytes + self._tokens.nbytes + words

    # -- keeping up ---------------------------------------------------------------------------------------------------

    def apply(self, rows: Sequence[IndexRow], version: int) -> None:
        """Add or update rows that were written since `self.version`; the index is then at `version` or newer.

        The text of a row never changes within an epoch.
        """
        self._reserve(self.size + len(rows))
        new: list[int] = []  # places that come with a vector
        late: list[int] = []  # places that get one later
        for row in rows:
            known = self._places.get(row.seq)
            place = self._append(row) if known is None else known
            if not self._columns["embedded"][place] and self._embed(place, row):
                (new if known is None else late).append(place)
            self._refresh(place, row)
        for start in range(0, len(new), _RELATE_BATCH):
            self._relate(np.array(new[start : start + _RELATE_BATCH]))
        for start in range(0, len(late), _RELATE_BATCH):
            self._relate(self._affected(np.array(late[start : start + _RELATE_BATCH])))
        self.version = max([self.version, version, *(row.version for row in rows)])

    def _refresh(self, place: int, row: IndexRow) -> None:
        columns = self._columns
        valid_to = NEVER if row.valid_to is None else row.valid_to
        expires_at = NEVER if row.expires_at is None else row.expires_at
        columns["said_at"][place] = row.said_at / 1e6
        columns["kinds"][place] = self.kind_codes.setdefault(row.kind, len(self.kind_codes))
        columns["standing"][place] = row.kind == MemoryKind.PREFERENCE and applies_always(row.content)
        columns["created_at"][place] = row.created_at
        columns["valid_from"][place] = row.created_at if row.valid_from is None else row.valid_from
        columns["valid_to"][place] = valid_to
        columns["expires_at"][place] = expires_at
        columns["pinned"][place] = row.pinned
        columns["quarantined"][place] = row.quarantined
        hidden = row.quarantined or valid_to != NEVER
        columns["found_until"][place] = 0 if hidden else NEVER if row.pinned else expires_at
        passes = row.kind == MemoryKind.RECENT_MESSAGE and expires_at != NEVER
        columns["substance"][place] = _PASSING_SUBSTANCE if passes else 1.0

    def _append(self, row: IndexRow) -> int:
        place, columns = self.size, self._columns
        counts = Counter(terms(row.content))
        for term, count in counts.items():
            posting = self._postings.get(term)
            if posting is None:
                posting = self._postings[term] = array("i"), array("f")
            posting[0].append(place)
            posting[1].append(count)
        self._posted += len(counts)
        self._total_length += counts.total()
        said = len(_WORD.findall(row.content))
        columns["seqs"][place] = row.seq
        columns["lengths"][place] = counts.total()
        columns["distinct"][place] = len(counts)
        columns["fullness"][place] = min(1.0, math.log1p(said) / math.log1p(_FULL_WORDS))
        columns["asking"][place] = asking(row.content)
        columns["cues"][place] = cues(row.content)
        columns["by_user"][place] = row.role != "assistant" and row.speaker.casefold() not in _ASSISTANTS
        columns["speakers"][place] = self._speaker(row.speaker)
        self._follow(place, row)
        self._places[row.seq] = place
        self.size += 1
        return place

    def _speaker(self, speaker: str) -> int:
        code = self.speaker_codes.get(speaker)
        if code is None:
            code = self.speaker_codes[speaker] = len(self.speaker_codes)
            pattern = naming(speaker)
            if pattern is not None:
                self.names.append((code, pattern))
        return code

    def _follow(self, place: int, row: IndexRow) -> None:
        """Link the memory to the one it follows in its session, and add it to a segment."""
        around = self._around
        session = self._sessions.get(row.session_id)
        if session is None or row.created_at - session.at > SEGMENT_PAUSE_S * 1e6:
            session = self._sessions[row.session_id] = _Session(place, row.created_at, -1, SEGMENT_SIZE)
        else:
            last, before_last = session.last, int(around[0, session.last])
            around[:2, place], around[2, last] = (last, before_last), place
            if before_last >= 0:
                around[3, before_last] = place
            session.last, session.at = place, row.created_at
        if session.filled >= SEGMENT_SIZE:
            session.segment, session.filled = self.segment_count, 0
            self.segment_count += 1
        session.filled += 1
        self._segment_sizes[session.segment] = session.filled
        self._columns["segments"][place] = session.segment

    def _embed(self, place: int, row: IndexRow) -> bool:
        """Copy the vectors, if they are of this model. Returns whether there is one now."""
        if row.embedder is None or row.embedder != self._embedder:
            return False
        if row.tokens and self._token_width and not len(row.tokens) % self._token_width:
            self._add_tokens(place, np.frombuffer(row.tokens, dtype=np.int8).reshape(-1, self._token_width))
        if row.vector is None or len(row.vector) != 4 * self._dimensions:
            return False
        self._vectors[place] = np.frombuffer(row.vector, dtype="<f4")
        self._columns["embedded"][place] = self.has_vectors = True
        return True

    def _affected(self, places: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        """These places and those after them that have a vector: their novelty and norm depend on these."""
        after = (places[:, None] + _FROM_ITSELF).ravel()
        at = np.unique(np.concatenate((after, self._around[2:, places].ravel())))
        at = at[(at >= 0) & (at < self.size)]
        embedded: NDArray[np.bool_] = self._columns["embedded"][at]
        return at[embedded]

    def _relate(self, at: NDArray[np.integer[Any]]) -> None:
        """Compute the novelty and the context norms of these places, which have a vector."""
        columns, vectors = self._columns, self._vectors
        own, before = vectors[at], at[:, None] - _FROM_ITSELF[1:]
        cosines = np.vecdot(own[:, None], vectors[np.maximum(before, 0)]) * (before >= 0)
        columns["novelty"][at] = 1.0 - np.maximum(np.maximum.reduce(cosines, axis=1), 0.0)
        follows = self._around[:2, at]
        shares = np.where(follows >= 0, _SHARES, np.float32(0))
        own += np.add.reduce(shares[:, :, None] * vectors[np.maximum(follows, 0)])
        columns["context_norms"][at] = 1.0 / np.maximum(np.sqrt(np.vecdot(own, own)), 1e-6)

    def _add_tokens(self, place: int, tokens: NDArray[np.int8]) -> None:
        start, end = self._token_size, self._token_size + len(tokens)
        if end > len(self._tokens):
            self._tokens = _longer(self._tokens, max(end, 2 * len(self._tokens), 256))
        self._tokens[start:end] = tokens
        self._token_size = end
        self._columns["token_starts"][place] = start
        self._columns["token_counts"][place] = len(tokens)

    def _reserve(self, size: int) -> None:
        have = len(self._vectors)
        if size <= have:
            return
        room = max(size, 2 * have, 16)
        for name, (_, fill) in _COLUMNS.items():
            self._columns[name] = _longer(self._columns[name], room, fill)
        self._around = _longer(self._around.T, room, -1).T.copy()
        self._segment_sizes = _longer(self._segment_sizes, room)
        self._vectors = _longer(self._vectors, room)


def _longer(column: NDArray[Any], room: int, fill: float = 0) -> NDArray[Any]:
    longer = np.zeros((room, *column.shape[1:]), column.dtype)  # the system provides its pages when they are written to
    longer[: len(column)] = column
    if fill:
        longer[len(column) :] = fill
    return longer
