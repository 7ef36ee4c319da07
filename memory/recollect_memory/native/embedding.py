"""The built-in embedder: all-MiniLM-L6-v2 in int8 through onnxruntime, its tokenizer from BERT's vocabulary.

Sole importer of onnxruntime and tokenizers, which come with the extra `local`; both load at the first text.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recollect_memory.contract import Embedder
from recollect_memory.errors import ModelError
from recollect_memory.weights import MINILM, VOCAB, locate

from .quantized import in_int8

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 16
"""Texts of about one length at a time: padding costs more than the calls save."""
_LONGEST = 256
"""Tokens, as the model was trained; the rest of a longer text is not seen."""


def find_embedder() -> Embedder | None:
    """The built-in embedder where its weights and its runtime are installed, else None. Nothing is fetched."""
    model, vocabulary = locate(MINILM), locate(VOCAB)
    runtime = all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "tokenizers"))
    return MiniLM(model, vocabulary) if model is not None and vocabulary is not None and runtime else None


class Recent(Embedder):
    """An embedder that keeps its last vectors: a turn's query is the message that is stored at the turn's end."""

    def __init__(self, embedder: Embedder, *, most: int = 512) -> None:
        self.name, self.dimensions = embedder.name, embedder.dimensions
        self._embedder = embedder
        self._most = most
        self._lock = threading.Lock()
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            known = {text: self._vectors[text] for text in texts if text in self._vectors}
        unknown = list(dict.fromkeys(text for text in texts if text not in known))
        if unknown:
            known |= zip(unknown, self._embedder.embed(unknown), strict=True)
        with self._lock:
            for text in texts:
                self._vectors[text] = known[text]
                self._vectors.move_to_end(text)
            while len(self._vectors) > self._most:
                self._vectors.popitem(last=False)
        return np.array([known[text] for text in texts], np.float32).reshape(len(texts), self.dimensions)


class MiniLM(Embedder):
    """Mean-pooled, L2-normalised sentence vectors of 384 dimensions; loads (0.3 s, 160 MB) at the first text.

    A sentence takes about 1 ms on one thread, by its length and the machine; `threads` is what one call may use.
    """

    name = "all-minilm-l6-v2-int8"
    dimensions = 384

    def __init__(self, model: Path, vocabulary: Path, *, threads: int = 1) -> None:
        self._paths = model, vocabulary
        self._threads = threads
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        session, tokenizer = self._load()
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        encodings = tokenizer.encode_batch(list(texts))
        by_length = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(texts), _BATCH):
            chosen = by_length[start : start + _BATCH]
            vectors[chosen] = _embed(session, [encodings[i].ids for i in chosen])
        return vectors

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                try:
                    self._loaded = _session(self._paths[0], self._threads), _tokenizer(self._paths[1])
                except Exception as error:
                    raise ModelError(f"the embedder cannot be loaded: {type(error).__name__}: {error}") from error
            return self._loaded


def _embed(session: Any, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    shape = len(ids), max(map(len, ids))
    tokens, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(ids):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = 1
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros(shape, dtype=np.int64)}
    hidden: NDArray[np.float32] = session.run(["last_hidden_state"], inputs)[0]
    pooled: NDArray[np.float32] = np.einsum(
        "btd,bt->bd", hidden, mask.astype(np.float32)
    )  # a sum: the norm takes care of the count
    pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return pooled


def _session(model: Path, threads: int) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(in_int8(model.read_bytes()), options, providers=["CPUExecutionProvider"])


def _tokenizer(vocabulary: Path) -> Any:
    library: Any = importlib.import_module("tokenizers")
    words = vocabulary.read_text(encoding="utf-8").rstrip("\n").split("\n")
    special = {"unk_token": "[UNK]"}
    tokenizer = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(words)}, **special))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = library.processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    tokenizer.enable_truncation(_LONGEST)
    return tokenizer
