"""What the guide of backends shows: its memories are short, keep every promise, and are served by each of their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .test_readme import BIN, ENVIRONMENT, blocks, run, serving, write_files

PAGE = "docs/guides/backends.md"
LONGEST = 20
SERVED = """\
# A server with each memory by each of its names; what is recalled comes back as the answer.
memory:
  shelf: {backend: "shelf:Shelf", path: shelf.db}
  notes: {backend: notebook, longest: 2000}
  plain: {backend: native, embedder: off}
agents:
  shelver: {model: "recite:Recite", memory: shelf, default: true}
  noter: {model: "recite:Recite", memory: notes}
  rememberer: {model: "recite:Recite", memory: plain}
"""
RECITE = """\
from retinue_agents import ChatModel, ModelDelta

class Recite(ChatModel):
    async def stream(self, messages, *, tools=(), schema=None, **settings):
        yield ModelDelta("\\n".join(message.content for message in messages))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(PAGE, tmp_path)
    (tmp_path / "recite.py").write_text(RECITE, encoding="utf-8")
    (tmp_path / "served.yaml").write_text(SERVED, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["shelf.py", "notebook.py"])
def test_a_memory_is_short(name: str) -> None:
    """Its class is twenty lines, without the blank ones."""
    (block,) = (block for block in blocks("python") if block.page == PAGE and block.file == name)
    body = block.text[block.text.index("\nclass ") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= LONGEST


def test_they_keep_every_promise(folder: Path) -> None:
    """The suite runs over both as the page says."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "test_memories.py"],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("agent", ["shelver", "noter", "rememberer"])
def test_they_are_served_by_name(folder: Path, agent: str) -> None:
    """Beside the configuration, by an installed distribution's short name, and built in: recalled for their user alone."""
    retinue = ".venv/bin/retinue"
    with serving(folder, "--config", "served.yaml") as url:
        run([retinue, "send", "I breed llamas", "--user", "alice", "--agent", agent], folder, url)
        told = run([retinue, "send", "Which llamas?", "--user", "alice", "--agent", agent], folder, url)
        assert "I breed llamas" in told
        told = run([retinue, "send", "Which llamas?", "--user", "bob", "--agent", agent], folder, url)
        assert "breed" not in told


def test_the_names_are_listed(folder: Path) -> None:
    """`retinue memory backends` tells those of a distribution on the path too."""
    done = subprocess.run(
        [BIN / "retinue", "memory", "backends"],
        cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "notebook     notebook:Notebook  (notebook-memory)" in done.stdout
