"""A scope's memories in the form that ranking reads: term postings, vectors and columns, all in memory, growing in place.

Nothing is rebuilt when a memory is added: what ranking needs to know of its surroundings (what it follows, its stretch of
talk, how new it is) is worked out once, when it is appended. An index is made from rows and catches up with newer ones; it
is a cache and never the truth. `Indexes` keeps the recently used ones within a bound of bytes.
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

WINDOW = 30
"""Memories of a session that are taken as one stretch of talk."""
PAUSE = 2 * 3600.0
"""Seconds of silence that end a stretch."""
LOOK_BACK = 8
"""Memories against which the novelty of the next is measured."""
READ_WITH = (0.6, 0.3)
"""The shares of the one and the two memories before it with which a vector is read: an answer means what it means after
its question."""
_SHARES = np.array(READ_WITH, np.float32)[:, None]
_FROM_ITSELF = np.arange(LOOK_BACK + 1)
_AT_ONCE = 512
"""Memories that are related to those before them in one go: some 6 MB of vectors."""
FULL = 20
"""Words from which a memory counts as full."""

_COLUMNS: dict[str, tuple[type[np.generic], float]] = {
    # name: (type, what stands where nothing was written)
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
    "stretches": (np.int32, 0),
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
"""The time of what has no end."""
_PASSING = 0.6
"""What the score of small talk and questions counts for, which are kept for a while only."""
_INDEX_BYTES, _TERM_BYTES, _POSTING_BYTES = 4_000, 250, 8
_WORD = re.compile(r"\w+")
_NOWHERE: tuple[array[int], array[float]] = array("i"), array("f")
_ASSISTANTS = frozenset({"assistant", "ai", "bot"})
"""Speakers of imported logs, in which every message may stand as a user's."""


@dataclass(frozen=True, slots=True)
class Postings:
    """Where some terms stand, one term's after the other's. `holding`: how many memories hold each; `places`: which, and
    `counts`: how often. Shape (terms,), (all,) and (all,)."""

    holding: NDArray[np.intp]
    places: NDArray[np.intp]
    counts: NDArray[np.float32]

    def in_parts(self, most: int) -> Iterator[Postings]:
        """At most `most` terms at a time, one at least."""
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
class _Talk:
    """Where a session's talk has got to: its last memory and when that was first said, and the stretch it is in."""

    last: int
    at: int
    stretch: int
    filled: int


class Index:
    """The memories of one scope in the order in which they were first written; array element i is memory i.

    `version` and `epoch` are those of the rows it was made from. Vectors of another model than `embedder` are not taken
    in. Not safe for use by several threads at once: hold `lock`.
    """

    def __init__(self, embedder: str | None, dimensions: int, token_width: int = 0) -> None:
        self.lock = threading.Lock()
        self._embedder = embedder
        self._dimensions = dimensions
        self._token_width = token_width
        self.start_over(epoch=0)

    def start_over(self, epoch: int) -> None:
        """Become the empty index of `epoch`."""
        self.version = 0
        self.epoch = epoch
        self.life = self.slots_version = 0
        """Of the scope's `store.State`, when it was last looked at."""
        self.size = 0
        self.stretch_count = 0
        self.has_vectors = False
        self.speaker_codes: dict[str, int] = {}
        """Speakers as they were written, by first appearance: the number of each is what `speakers` holds."""
        self.names: list[tuple[int, re.Pattern[str]]] = []
        """How a query may name the speakers who have a name, by their numbers."""
        self.kind_codes: dict[str, int] = {}
        """The same for kinds."""
        self._talks: dict[str, _Talk] = {}
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, (dtype, _) in _COLUMNS.items()}
        self._around = np.zeros((4, 0), np.int32)
        self._stretch_sizes = np.zeros(0, np.int32)
        self._vectors = np.zeros((0, self._dimensions), np.float32)
        self._tokens = np.zeros((0, self._token_width), np.int8)
        self._token_size = 0
        self._postings: dict[str, tuple[array[int], array[float]]] = {}
        self._places: dict[int, int] = {}
        self._posted = 0
        self._total_length = 0

    # -- what ranking reads -------------------------------------------------------------------------------------------

    def column(self, name: str) -> NDArray[Any]:
        """One of the columns, an element a memory:

        seqs: row numbers in the store. said_at: when it was last said, seconds since the epoch. lengths, distinct: terms,
        and different ones. fullness: 0..1, from nothing to `FULL` words. asking: share of the words that stand in
        questions. novelty: 1 - the highest cosine to the `LOOK_BACK` before it. context_norms: 1 / the length of the
        vector summed with `READ_WITH` of those before it. cues: bits of `cues`. by_user: said by the user, or made from
        what was said. embedded: has a vector of the current model. speakers: numbers of `speaker_codes`. stretches: which
        stretch of talk, below `stretch_count`. token_starts, token_counts: its rows of `tokens`.

        And what may change of it: kinds: numbers of `kind_codes`. standing: a preference that is an instruction for every
        answer. created_at, valid_from, valid_to, expires_at: in microseconds, NEVER for what has no end. pinned,
        quarantined. found_until: until when it is found by who asks for nothing special. substance: 0..1, what its score
        counts for.
        """
        return self._columns[name][: self.size]

    @property
    def around(self) -> NDArray[np.int32]:
        """The memories one and two before it, and one and two after it, in its session: shape (size, 4), -1 for none."""
        return self._around[:, : self.size].T

    def neighbours(self, places: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """The same of these memories, in columns: shape (4, places)."""
        return self._around.take(places, axis=1)

    @property
    def stretch_sizes(self) -> NDArray[np.int32]:
        """How many memories each stretch of talk has: shape (stretch_count,), at least 1."""
        return self._stretch_sizes[: self.stretch_count]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Shape (size, dimensions), L2-normalised; zeros where there is none."""
        return self._vectors[: self.size]

    @property
    def tokens(self) -> NDArray[np.int8]:
        """Token vectors of all memories, shape (all, token_width), unit length at 127."""
        return self._tokens[: self._token_size]

    @property
    def average_length(self) -> float:
        """Terms of a memory, on average, at least 1."""
        return max(self._total_length / max(self.size, 1), 1.0)

    def postings(self, terms: Iterable[str]) -> Postings:
        """Where these terms stand."""
        found = [self._postings.get(term, _NOWHERE) for term in terms]
        places, counts = array("i"), array("f")
        for held, often in found:
            places += held
            counts += often
        holding = np.array([len(held) for held, _ in found], np.intp)
        return Postings(holding, np.frombuffer(places, np.int32).astype(np.intp), np.frombuffer(counts, np.float32))

    @property
    def nbytes(self) -> int:
        """About what the index occupies."""
        columns = sum(column.nbytes for column in self._columns.values())
        words = self._posted * _POSTING_BYTES + len(self._postings) * _TERM_BYTES
        return _INDEX_BYTES + columns + self._around.nbytes + self._vectors.nbytes + self._tokens.nbytes + words

    # -- keeping up ---------------------------------------------------------------------------------------------------

    def apply(self, rows: Sequence[IndexRow], version: int) -> None:
        """Take in rows written or changed since `self.version`; afterwards the index is at `version`, or newer.

        What may change of a row it knows is all but its text: who takes a text away starts a new epoch.
        """
        self._reserve(self.size + len(rows))
        new: list[int] = []  # those that are given a vector
        late: list[int] = []
        for row in rows:
            known = self._places.get(row.seq)
            place = self._append(row) if known is None else known
            if not self._columns["embedded"][place] and self._embed(place, row):
                (new if known is None else late).append(place)
            self._refresh(place, row)
        for start in range(0, len(new), _AT_ONCE):
            self._relate(np.array(new[start : start + _AT_ONCE]))
        for start in range(0, len(late), _AT_ONCE):
            self._relate(self._affected(np.array(late[start : start + _AT_ONCE])))
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
        columns["substance"][place] = _PASSING if passes else 1.0

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
        columns["fullness"][place] = min(1.0, math.log1p(said) / math.log1p(FULL))
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
        """Tie the memory to the one it follows in its session, and put it into a stretch."""
        around = self._around
        talk = self._talks.get(row.session_id)
        if talk is None or row.created_at - talk.at > PAUSE * 1e6:
            talk = self._talks[row.session_id] = _Talk(place, row.created_at, -1, WINDOW)
        else:
            last, before_last = talk.last, int(around[0, talk.last])
            around[:2, place], around[2, last] = (last, before_last), place
            if before_last >= 0:
                around[3, before_last] = place
            talk.last, talk.at = place, row.created_at
        if talk.filled >= WINDOW:
            talk.stretch, talk.filled = self.stretch_count, 0
            self.stretch_count += 1
        talk.filled += 1
        self._stretch_sizes[talk.stretch] = talk.filled
        self._columns["stretches"][place] = talk.stretch

    def _embed(self, place: int, row: IndexRow) -> bool:
        """Take in the vectors, if they are of this model; whether there is one now."""
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
        """These and those after them, as far as they have a vector: what is read in the light of these."""
        after = (places[:, None] + _FROM_ITSELF).ravel()
        at = np.unique(np.concatenate((after, self._around[2:, places].ravel())))
        at = at[(at >= 0) & (at < self.size)]
        embedded: NDArray[np.bool_] = self._columns["embedded"][at]
        return at[embedded]

    def _relate(self, at: NDArray[np.integer[Any]]) -> None:
        """How new these are, and how long their vectors are with those before; they have one."""
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
        self._stretch_sizes = _longer(self._stretch_sizes, room)
        self._vectors = _longer(self._vectors, room)


def _longer(column: NDArray[Any], room: int, fill: float = 0) -> NDArray[Any]:
    longer = np.zeros((room, *column.shape[1:]), column.dtype)  # whose memory is only had when it is written to
    longer[: len(column)] = column
    if fill:
        longer[len(column) :] = fill
    return longer
