"""Finding, checking and fetching the pinned weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest

from retinue_agents.models.weights import ALL, ensure
from retinue_memory.errors import ConfigError
from retinue_memory.weights import VOCAB, Weight, cache_folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; weights that are installed as packages are hidden too."""
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path))

    def none_installed(package: str) -> list[str]:
        return []

    monkeypatch.setattr("retinue_memory.weights._installed", none_installed)
    return cache_folder()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip finds nothing: its index is a closed port."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def test_what_is_there_is_not_fetched(weights: Mapping[Weight, Path]) -> None:
    """All three files, without progress messages."""
    said: list[str] = []
    assert ensure(progress=said.append) == weights
    assert set(weights) == set(ALL)
    assert all(path.stat().st_size == weight.size for weight, path in weights.items())
    assert said == []


def test_what_is_missing_is_fetched_once(empty_cache: Path) -> None:
    """Two concurrent calls fetch once, report progress, and leave nothing but the package."""
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ensure, [VOCAB], progress=said.append) for _ in range(2)]
    assert both[0].result() == both[1].result() == {VOCAB: empty_cache / VOCAB.package / VOCAB.path}
    assert len(said) == 2
    assert "vocab.txt" in said[0]
    assert {path.name for path in empty_cache.iterdir()} == {".lock", VOCAB.package}


def test_a_damaged_file_is_fetched_again(empty_cache: Path, weights: Mapping[Weight, Path]) -> None:
    """A file of the right size with the wrong bytes is replaced; the leftovers of a crash are removed."""
    damaged = empty_cache / VOCAB.package / VOCAB.path
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"x" * VOCAB.size)
    (empty_cache / ".part-of-a-crash").mkdir()
    assert ensure([VOCAB], progress=print) == {VOCAB: damaged}
    assert damaged.read_bytes() == weights[VOCAB].read_bytes()
    assert {path.name for path in empty_cache.iterdir()} == {".lock", VOCAB.package}


@pytest.mark.usefixtures("offline")
def test_offline_the_way_out_is_named(empty_cache: Path) -> None:
    """The error names the missing file, its path and the setting, and no partial file is left."""
    with pytest.raises(ConfigError, match="RETINUE_CACHE") as raised:
        ensure([VOCAB], progress=print)
    assert str(empty_cache / VOCAB.package / VOCAB.path) in str(raised.value)
    assert {path.name for path in empty_cache.iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_written_is_named(empty_cache: Path) -> None:
    """The error for a cache folder that is a file names the variable that moves it."""
    empty_cache.parent.mkdir(parents=True)
    empty_cache.write_text("a file where the folder belongs", encoding="utf-8")
    with pytest.raises(ConfigError, match="RETINUE_CACHE"):
        ensure([VOCAB], progress=print)


@pytest.mark.usefixtures("offline")
def test_the_command_ends_in_one_line(empty_cache: Path) -> None:
    """`python -m retinue_agents.models.weights`: exits with 1 and a message, without a traceback, if the fetch fails."""
    command = [sys.executable, "-m", "retinue_agents.models.weights"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "RETINUE_CACHE" in done.stderr.splitlines()[-1]


def test_the_command_prints_where_the_weights_are(weights: Mapping[Weight, Path]) -> None:
    """`python -m retinue_agents.models.weights` prints the path of each file."""
    command = [sys.executable, "-m", "retinue_agents.models.weights"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [str(weights[weight]) for weight in ALL]


def test_the_lock_pins_every_package_by_hash_and_names_no_index() -> None:
    """One line per package, with its sha256, and nothing else."""
    text = files("retinue_agents.models").joinpath("weights.lock").read_text(encoding="utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [pin.partition("==")[0].replace("-", "_") for pin in pins] == [weight.package for weight in ALL]
    assert all(" --hash=sha256:" in pin for pin in pins)
    assert "://" not in text
