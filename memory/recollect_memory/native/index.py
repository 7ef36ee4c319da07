"""A scope's memories in the form that ranking reads: term postings, vectors and a few columns, all in memory.

An index is made from rows and catches up with newer ones; it is a cache and never the truth. `Indexes` keeps the recently
used ones within a bound of bytes.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recollect_memory.contract import Scope

from .store import IndexRow
from .words import asks, terms

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMNS = {
    "seqs": np.int64,
    "said_at": np.float64,
    "lengths": np.float32,
    "distinct": np.float32,
    "by_user": np.bool_,
    "question": np.bool_,
    "embedded": np.bool_,
    "speakers": np.int32,
    "sessions": np.int32,
}
_INDEX_BYTES, _TERM_BYTES, _POSTING_BYTES = 4_000, 250, 8


class Index:
    """The memories of one scope in the order in which they were first written; array element i is memory i.

    `version` and `epoch` are those of the rows it was made from. Vectors of another model than `embedder` are not taken
    in. Not safe for use by several threads at once: hold `lock`.
    """

    def __init__(self, embedder: str | None, dimensions: int) -> None:
        self.lock = threading.Lock()
        self._embedder = embedder
        self._dimensions = dimensions
        self.start_over(epoch=0)

    def start_over(self, epoch: int) -> None:
        """Become the empty index of `epoch`."""
        self.version = 0
        self.epoch = epoch
        self.size = 0
        self.speaker_codes: dict[str, int] = {}
        """Speakers as they were written, by first appearance: the number of each is what `speakers` holds."""
        self.session_codes: dict[str, int] = {}
        """The same for sessions."""
        self._columns: dict[str, NDArray[Any]] = {name: np.zeros(0, dtype) for name, dtype in _COLUMNS.items()}
        self._vectors = np.zeros((0, self._dimensions), np.float32)
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        self._places: dict[int, int] = {}
        self._posted = 0

    # -- what ranking reads -------------------------------------------------------------------------------------------

    @property
    def seqs(self) -> NDArray[np.int64]:
        """Row numbers in the store."""
        return self._columns["seqs"][: self.size]

    @property
    def said_at(self) -> NDArray[np.float64]:
        """When it was last said, in seconds since the epoch."""
        return self._columns["said_at"][: self.size]

    @property
    def lengths(self) -> NDArray[np.float32]:
        """How many terms, the speaker's name included."""
        return self._columns["lengths"][: self.size]

    @property
    def distinct(self) -> NDArray[np.float32]:
        """How many different terms."""
        return self._columns["distinct"][: self.size]

    @property
    def by_user(self) -> NDArray[np.bool_]:
        """Said by the user, not by the assistant."""
        return self._columns["by_user"][: self.size]

    @property
    def question(self) -> NDArray[np.bool_]:
        """Asks for something rather than telling it."""
        return self._columns["question"][: self.size]

    @property
    def embedded(self) -> NDArray[np.bool_]:
        """Has a vector of the current model."""
        return self._columns["embedded"][: self.size]

    @property
    def speakers(self) -> NDArray[np.int32]:
        """Numbers of `speaker_codes`."""
        return self._columns["speakers"][: self.size]

    @property
    def sessions(self) -> NDArray[np.int32]:
        """Numbers of `session_codes`."""
        return self._columns["sessions"][: self.size]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Shape (size, dimensions), L2-normalised; zeros where there is none."""
        return self._vectors[: self.size]

    def postings(self, term: str) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        """The memories that hold a term and how often, or None where none does."""
        found = self._postings.get(term)
        if found is None:
            return None
        return np.array(found[0], dtype=np.int32), np.array(found[1], dtype=np.float32)

    @property
    def nbytes(self) -> int:
        """About what the index occupies."""
        columns = sum(column.nbytes for column in self._columns.values())
        words = self._posted * _POSTING_BYTES + len(self._postings) * _TERM_BYTES
        return _INDEX_BYTES + columns + self._vectors.nbytes + words

    # -- keeping up ---------------------------------------------------------------------------------------------------

    def apply(self, rows: Sequence[IndexRow], version: int) -> None:
        """Take in rows written or refreshed since `self.version`; afterwards the index is at `version`, or newer."""
        self._reserve(self.size + len(rows))
        for row in rows:
            place = self._places.get(row.seq)
            if place is None:
                place = self._append(row)
            self._columns["said_at"][place] = row.said_at / 1e6
        self.version = max([self.version, version, *(row.version for row in rows)])

    def _append(self, row: IndexRow) -> int:
        place = self.size
        counts = Counter(terms(f"{row.speaker} {row.content}"))
        for term, count in counts.items():
            posting = self._postings.get(term)
            if posting is None:
                posting = self._postings[term] = array("i"), array("i")
            posting[0].append(place)
            posting[1].append(count)
        self._posted += len(counts)
        columns = self._columns
        columns["seqs"][place] = row.seq
        columns["lengths"][place] = counts.total()
        columns["distinct"][place] = len(counts)
        columns["by_user"][place] = row.role == "user"
        columns["question"][place] = asks(row.content)
        columns["speakers"][place] = self.speaker_codes.setdefault(row.speaker, len(self.speaker_codes))
        columns["sessions"][place] = self.session_codes.setdefault(row.session_id, len(self.session_codes))
        if row.vector is not None and row.embedder == self._embedder and len(row.vector) == 4 * self._dimensions:
            self._vectors[place] = np.frombuffer(row.vector, dtype="<f4")
            columns["embedded"][place] = True
        self._places[row.seq] = place
        self.size += 1
        return place

    def _reserve(self, size: int) -> None:
        have = len(self._vectors)
        if size <= have:
            return
        room = max(size, 2 * have, 16)
        self._columns = {name: _longer(column, room) for name, column in self._columns.items()}
        self._vectors = _longer(self._vectors, room)


def _longer(column: NDArray[Any], room: int) -> NDArray[Any]:
    longer = np.zeros((room, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer


class Indexes:
    """The recently used indexes, at most `most_bytes` of them together (one that is larger alone is kept alone)."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._indexes: OrderedDict[Scope, Index] = OrderedDict()
        self._sizes: dict[Scope, int] = {}
        self._bytes = 0

    def get(self, scope: Scope) -> Index | None:
        """The scope's index, now the most recently used."""
        with self._lock:
            index = self._indexes.get(scope)
            if index is not None:
                self._indexes.move_to_end(scope)
            return index

    def put(self, scope: Scope, fresh: Index) -> Index:
        """Keep `fresh`, unless another thread was quicker: the one that is kept."""
        with self._lock:
            return self._indexes.setdefault(scope, fresh)

    def settle(self, scope: Scope, index: Index) -> None:
        """Count the bytes of an index that has grown, and let go of the least recently used beyond the bound."""
        size = index.nbytes
        with self._lock:
            if self._indexes.get(scope) is not index:
                return
            self._bytes += size - self._sizes.get(scope, 0)
            self._sizes[scope] = size
            while self._bytes > self._most_bytes and len(self._indexes) > 1:
                oldest, _ = self._indexes.popitem(last=False)
                self._bytes -= self._sizes.pop(oldest, 0)

    def clear(self) -> None:
        with self._lock:
            self._indexes.clear()
            self._sizes.clear()
            self._bytes = 0

    def kept(self) -> Iterable[Scope]:
        """The scopes whose index is in memory, least recently used first."""
        with self._lock:
            return list(self._indexes)
