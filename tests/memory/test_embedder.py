"""The built-in embedder and where its weights are found."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
import pytest
from numpy.typing import NDArray

from retinue_memory.errors import ModelError
from retinue_memory.native import embedder
from retinue_memory.native.embedder import MAX_TOKENS, MiniLM, Recent
from retinue_memory.native.quantized import in_int8
from retinue_memory.testing import HashEmbedder
from retinue_memory.weights import (
    MINILM,
    VOCAB,
    Weight,
    cache_folder,
    locate,
)


def test_near_in_meaning_is_near_in_space(minilm: MiniLM) -> None:
    """Unit vectors; a paraphrase is nearer than another subject."""
    vectors = minilm.embed(["I own a dog", "There is a puppy in my house", "The stock market fell"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_a_batch_is_what_its_texts_are_alone(minilm: MiniLM) -> None:
    """Of any length, in the order given, empty and odd ones too: who else is being read does not show in a vector."""
    texts = [
        "",
        "tea",
        "\U0001f600",
        "word " * 1000,
        "a longer sentence about tea and cake",
        "我住在柏林",
        "x" * 5000,
    ] * 4
    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    assert (np.sum(together * alone, axis=1) > 0.9999).all()
    assert minilm.embed([]).shape == (0, 384)


def test_int8_products_keep_the_vectors(minilm: MiniLM) -> None:
    """Computing in int8 moves a vector by little, and the graph that does it is another, of fewer steps."""
    model = locate(MINILM)
    assert model is not None
    rewritten = in_int8(model.read_bytes())
    steps = {
        b"MatMulIntegerToFloat": 36,
        b"QuantizeLinear": 24,
        b"MultiHeadAttention": 6,
        b"Gelu": 6,
        b"Softmax": 0,
        b"Erf": 0,
    }
    assert {step: rewritten.count(step) for step in steps} == steps
    texts = ["I moved to Lisbon last spring.", "What's the capital of my country?", "She adopted two grey cats."]
    plain = MiniLM(model, _vocabulary())
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def as_it_is(*_: object) -> object:  # as the file computes by itself, in float32
        return session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "_session", as_it_is)
        expected = plain.embed(texts)
    assert (minilm.embed(texts) * expected).sum(axis=1).min() > 0.97


def _vocabulary() -> Path:
    vocabulary = locate(VOCAB)
    assert vocabulary is not None
    return vocabulary


def test_a_text_is_read_in_three_ways(minilm: MiniLM) -> None:
    """What it is remembered by, what it asks with, and its words; stop words and punctuation matter little, or not."""
    plain, polite = minilm.read(["dog Lisbon", "Well, is it a dog in Lisbon?"])
    for reading in (plain, polite):
        assert reading.tokens is not None
        assert reading.tokens.shape == (2, minilm.token_width)
        np.testing.assert_allclose(np.linalg.norm(reading.tokens.astype(np.float32), axis=1), 127, atol=2)
        assert float(reading.vector @ reading.asks) > 0.7
        np.testing.assert_allclose([np.linalg.norm(reading.vector), np.linalg.norm(reading.asks)], 1, atol=1e-5)
    assert plain.vector @ polite.vector > 0.7
    (empty, stop) = minilm.read(["", "who are you?"])
    for reading in (empty, stop):
        assert reading.tokens is not None
        assert len(reading.tokens) == 0
        np.testing.assert_allclose(np.linalg.norm(reading.vector), 1, atol=1e-5)
    (long,) = minilm.read(["heron " * 500])
    assert long.tokens is not None
    assert len(long.tokens) == MAX_TOKENS


def test_any_embedder_is_read(minilm: MiniLM) -> None:
    """One that gives vectors alone is remembered and asked by them; the built-in one passes on all it gives."""
    plain = Recent(HashEmbedder())
    (reading,) = plain.read(["tea"])
    np.testing.assert_array_equal(reading.vector, HashEmbedder().embed(["tea"])[0])
    np.testing.assert_array_equal(reading.asks, reading.vector)
    assert (reading.tokens, plain.token_width) == (None, 0)
    whole = Recent(minilm)
    assert whole.token_width == minilm.token_width
    assert whole.read(["tea"])[0].tokens is not None


def test_what_is_forgotten_is_not_kept() -> None:
    """Text by text, or all; and what was being embedded meanwhile is not kept either."""
    asked: list[str] = []

    class Slow(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            asked.extend(texts)
            if "meanwhile" in texts:
                recent.forget(["meanwhile"])
            return super().embed(texts)

    recent = Recent(Slow())
    recent.embed(["a", "b"])
    recent.forget(["a", "never seen"])
    recent.embed(["a", "b"])
    recent.forget()
    recent.embed(["b"])
    for _ in range(2):
        recent.embed(["meanwhile"])
    assert asked == ["a", "b", "a", "b", "meanwhile", "meanwhile"]


def test_many_threads_at_once(minilm: MiniLM) -> None:
    """As the contract says: several calls at a time, the same answer."""
    expected = minilm.embed(["the quick brown fox"])
    found: list[bool] = []

    def work() -> None:
        found.append(bool(np.allclose(minilm.embed(["the quick brown fox"]), expected, atol=1e-5)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 8


def test_a_text_is_embedded_once_while_it_is_recent() -> None:
    """The query of a turn comes back as its message; vectors are those of the embedder, in the order asked for."""
    asked: list[str] = []

    class Counting(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            asked.extend(texts)
            return super().embed(texts)

    recent = Recent(Counting(), max_readings=2)
    for texts in (["a"], ["b", "a", "b"], [], ["c"], ["b"], ["a"]):
        np.testing.assert_array_equal(recent.embed(texts), HashEmbedder().embed(texts))
    assert asked == ["a", "b", "c", "a"]


def test_a_damaged_model_is_a_model_error(minilm: MiniLM, tmp_path: Path) -> None:
    """Named as what it is, when the first text comes."""
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    (tmp_path / "vocab.txt").write_text("[UNK]\n", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        MiniLM(tmp_path / "model.onnx", tmp_path / "vocab.txt").embed(["x"])


def test_weights_are_found_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Absent, damaged, right: None, None with a line in the log, the file."""
    content = b"weights"
    weight = Weight("some_absent_package", "sub/file.bin", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path))
    assert locate(weight) is None
    file = cache_folder() / "some_absent_package" / "sub" / "file.bin"
    file.parent.mkdir(parents=True)
    for damaged in (b"weightz", b"weight"):
        caplog.clear()
        file.write_bytes(damaged)
        assert locate(weight) is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
    file.write_bytes(content)
    assert locate(weight) == file


def test_weights_are_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without importing it."""
    content = b"weights"
    package = tmp_path / "some_installed_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (package / "w.bin").write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    weight = Weight(package.name, "w.bin", len(content), hashlib.sha256(content).hexdigest())
    assert locate(weight) == package / "w.bin"


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$RETINUE_CACHE, else $XDG_CACHE_HOME, else ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "retinue" / "weights"
    monkeypatch.delenv("RETINUE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "retinue" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "retinue" / "weights"


def test_the_pinned_weights_are_on_this_machine(weights: object) -> None:
    """What the test session fetched is what was pinned."""
    assert locate(MINILM) is not None
    assert locate(VOCAB) is not None
