"""The built-in embedder: all-MiniLM-L6-v2 in int8 with onnxruntime, its tokenizer from BERT's vocabulary.

Sole importer of onnxruntime and tokenizers, which come with the extra `local`; both load at the first text.

One pass over a text computes its vector as a memory, its vector as a query, and its token vectors. Two things differ from the
model's recipe; both improve recall in conversations: stop words, punctuation and special tokens are left out of the mean (as a
query, they count a little), and int8 weights are multiplied as int8.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retinue_memory.chat import Embedder
from retinue_memory.errors import ModelError
from retinue_memory.weights import MINILM, VOCAB, locate

from .quantized import in_int8
from .words import is_stop_word

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKEN_WIDTH = 48
"""Dimensions of a token vector: the 384 of the model after a fixed random rotation, cut off. 64 improve nothing."""
MAX_TOKENS = 48
"""Token vectors of a text at most."""
_BATCH = 16  # texts of about the same length: padding costs more than fewer calls save
_MAX_INPUT_TOKENS = 256  # as the model was trained; the rest of a longer text is ignored
_CLS, _SEP = 101, 102
_SPECIAL_WEIGHT, _STOP_WORD_WEIGHT = 0.5, 0.25  # in a query, beside 1 for a word with a meaning


@dataclass(frozen=True, slots=True)
class Reading:
    """The vectors of a text."""

    vector: NDArray[np.float32]
    """As a memory: shape (dimensions,), L2-normalised."""
    asks: NDArray[np.float32]
    """As a query: shape (dimensions,), L2-normalised."""
    tokens: NDArray[np.int8] | None = None
    """Of its single words: shape (at most `MAX_TOKENS`, width), norm 127. None if the embedder computes none."""


class Reader(Embedder):
    """An embedder in this process that computes more than one vector of a text."""

    token_width: int = 0
    """Numbers of a token vector; 0: it computes none."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> list[Reading]:
        """The vectors of each text. Called like `embed`, and raises the same."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = [reading.vector for reading in self.read(texts)]
        return np.array(vectors, np.float32).reshape(len(texts), self.dimensions)


def find_embedder() -> Embedder | None:
    """The built-in embedder, or None if its weights or its runtime are not installed. Downloads nothing."""
    model, vocabulary = locate(MINILM), locate(VOCAB)
    runtime = all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "tokenizers"))
    return MiniLM(model, vocabulary) if model is not None and vocabulary is not None and runtime else None


class Recent(Reader):
    """Any embedder as a `Reader` that caches its latest readings: a turn's query is the message stored at its end."""

    def __init__(self, embedder: Embedder, *, max_readings: int = 512) -> None:
        self.name, self.dimensions = embedder.name, embedder.dimensions
        self.token_width = embedder.token_width if isinstance(embedder, Reader) else 0
        self._embedder = embedder
        self._max_readings = max_readings
        self._lock = threading.Lock()
        self._readings: OrderedDict[str, Reading] = OrderedDict()
        self._forgotten = 0

    def known(self, texts: Iterable[str]) -> dict[str, Reading]:
        """The cached readings among these."""
        with self._lock:
            return {text: self._readings[text] for text in texts if text in self._readings}

    def read(self, texts: Sequence[str]) -> list[Reading]:
        forgotten, known = self._forgotten, self.known(texts)
        unknown = list(dict.fromkeys(text for text in texts if text not in known))
        if unknown:
            known |= zip(unknown, self._read(unknown), strict=True)
        with self._lock:
            if forgotten == self._forgotten:  # else the text of an erased user may be among them
                for text in texts:
                    self._readings[text] = known[text]
                    self._readings.move_to_end(text)
            while len(self._readings) > self._max_readings:
                self._readings.popitem(last=False)
        return [known[text] for text in texts]

    def forget(self, texts: Iterable[str] | None = None) -> None:
        """Drop the cached readings of these texts, or all (None)."""
        with self._lock:
            self._forgotten += 1
            for text in list(self._readings) if texts is None else texts:
                self._readings.pop(text, None)

    def _read(self, texts: Sequence[str]) -> list[Reading]:
        if isinstance(self._embedder, Reader):
            return self._embedder.read(texts)
        vectors = np.asarray(self._embedder.embed(texts), np.float32).reshape(len(texts), self.dimensions)
        return [Reading(vector.copy(), vector.copy()) for vector in vectors]


class MiniLM(Reader):
    """Sentence vectors of 384 dimensions. Loads at the first text (0.3 s, 90 MB).

    A sentence takes about 1 ms on one thread. `threads` bounds the threads of one call.
    """

    name = "all-minilm-l6-v2-int8-fixed-content"
    dimensions = 384
    token_width = TOKEN_WIDTH

    def __init__(self, model: Path, vocabulary: Path, *, threads: int = 1) -> None:
        self._paths = model, vocabulary
        self._threads = threads
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def read(self, texts: Sequence[str]) -> list[Reading]:
        model = self._load()
        encoded = [encoding.ids for encoding in model.tokenizer.encode_batch_fast(list(texts))]
        readings: dict[int, Reading] = {}
        by_length = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(texts), _BATCH):
            chosen = by_length[start : start + _BATCH]
            hidden = _hidden(model.session, [encoded[i] for i in chosen])
            for row, i in enumerate(chosen):
                readings[i] = _reading(model, np.array(encoded[i]), hidden[row, : len(encoded[i])])
        return [readings[i] for i in range(len(texts))]

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                try:
                    words = self._paths[1].read_text(encoding="utf-8").rstrip("\n").split("\n")
                    self._loaded = _Loaded(
                        _session(self._paths[0], self._threads), _tokenizer(words), _content(words), _rotation()
                    )
                except Exception as error:
                    raise ModelError(f"the embedder cannot be loaded: {type(error).__name__}: {error}") from error
            return self._loaded


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The model. `content`: a mask of the vocabulary's words with a meaning; `rotation`: shape (384, TOKEN_WIDTH)."""

    session: Any
    tokenizer: Any
    content: NDArray[np.bool_]
    rotation: NDArray[np.float32]


def _hidden(session: Any, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """The model's last layer: shape (texts, tokens of the longest, 384)."""
    shape = len(ids), max(map(len, ids))
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(ids):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = 1
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros(shape, dtype=np.int64)}
    hidden: NDArray[np.float32] = session.run(["last_hidden_state"], inputs)[0]
    return hidden


def _reading(model: _Loaded, ids: NDArray[np.int64], hidden: NDArray[np.float32]) -> Reading:
    content = model.content[ids]
    words = hidden[content][:MAX_TOKENS]
    asks = np.where(content, np.float32(1.0), np.float32(_STOP_WORD_WEIGHT))
    asks[[0, -1]] = _SPECIAL_WEIGHT
    shares = np.stack((content if len(words) else np.ones_like(content), asks)) / np.sqrt(np.vecdot(hidden, hidden))
    vector, asking = _normalised(shares @ hidden)  # of the tokens at unit length
    tokens = np.round(_normalised(words @ model.rotation) * 127).astype(np.int8)
    return Reading(vector, asking if len(words) else vector, tokens)  # "who are you?" is nothing but stop words


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.sqrt(np.vecdot(vectors, vectors))[..., None]
    normalised: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-9))
    return normalised


def _content(words: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([any(map(str.isalnum, word)) and not is_stop_word(word) and word[0] != "[" for word in words])


def _rotation() -> NDArray[np.float32]:
    """The first columns of a random rotation, the same on every machine."""
    random = np.random.default_rng(7).standard_normal((MiniLM.dimensions, MiniLM.dimensions))
    return np.ascontiguousarray(np.linalg.qr(random)[0][:, :TOKEN_WIDTH].astype(np.float32))


def _session(model: Path, threads: int) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        in_int8(model.read_bytes()),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],  # takes three times as long as the two steps that it replaces
    )


def _tokenizer(words: Sequence[str]) -> Any:
    library: Any = importlib.import_module("tokenizers")
    special = {"unk_token": "[UNK]"}
    tokenizer = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(words)}, **special))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = library.processors.BertProcessing(("[SEP]", _SEP), ("[CLS]", _CLS))
    tokenizer.enable_truncation(_MAX_INPUT_TOKENS)
    return tokenizer
