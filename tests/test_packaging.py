"""What a fresh machine installs is what was tested, from whatever index it uses."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")


def pins(lock: str) -> dict[tuple[str, str], str]:
    """{(distribution, environment marker): version}"""
    text = (ROOT / lock).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)(?: ; (.*))? \\$", text, flags=re.MULTILINE)
    return {(name, marker): version for name, version, marker in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_versions_and_hashes_only(lock: str) -> None:
    """No address, path or option: the same lock works with any index that carries the files."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    requirement = r"[\w.-]+==[^\s/:]+(?: ; [^/:\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{requirement})+", text)


def test_the_locks_agree() -> None:
    """The environment of the tests is the base one and more: nothing is tested that is not installed."""
    assert pins(LOCKS[0]).items() <= pins(LOCKS[1]).items()


def test_a_base_install_is_free_of_what_only_extras_need() -> None:
    """The SDK imports grpc and sqlalchemy wherever they are installed, at a third more memory: a base install has neither."""
    names = {name for name, _ in pins(LOCKS[0])}
    assert not names & {"grpcio", "sqlalchemy", "mem0ai", "psycopg", "procrastinate", "torch", "llama-cpp-python"}


def test_make_explains_its_targets() -> None:
    """`make` alone lists the targets with a line each."""
    help_ = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("install", "run", "test", "check", "bench", "fmt", "clean", "lock"):
        assert re.search(rf"^make {target} +\w", help_, flags=re.MULTILINE)


def script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def make_install(venv: Path, python: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "-C", str(ROOT), "install", f"VENV={venv}", f"PYTHON={python}"],
        capture_output=True, text=True, check=False, env={**os.environ, "MAKEFLAGS": ""},
    )  # fmt: skip


def test_a_python_that_is_too_old_is_named_in_one_line(tmp_path: Path) -> None:
    """An interpreter below 3.11 is refused before anything is made."""
    old = script(tmp_path / "old", '#!/bin/sh\ncase "$*" in *exit*) exit 1;; *) echo 3.9;; esac\n')
    run = make_install(tmp_path / "venv", old)
    assert run.returncode
    assert run.stderr.splitlines()[0] == (
        f"Retinue needs Python 3.11 or newer, and '{old}' is 3.9: name another with make PYTHON=..."
    )
    assert not (tmp_path / "venv").exists()


def test_a_python_without_ensurepip_leaves_nothing_broken_behind(tmp_path: Path) -> None:
    """Where venv makes half an environment and fails, it is removed, and the line says what to install."""
    half = script(
        tmp_path / "half",
        '#!/bin/sh\ncase "$*" in\n*version_info\\[:2\\]*) echo 3.12;;\n*exit*) ;;\n'
        '*venv*) mkdir -p "$3/bin"; exit 1;;\n*) exit 1;;\nesac\n',
    )
    run = make_install(tmp_path / "venv", half)
    assert run.returncode
    assert "apt install python3.12-venv" in run.stderr
    assert not (tmp_path / "venv").exists()
