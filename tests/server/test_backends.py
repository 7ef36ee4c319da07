"""Memories that a server finds by name: built in, beside the configuration, or offered by an installed distribution."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from retinue_server import TaskClient

from .conftest import Serve, command, environment

DIARY = """
from retinue_memory import MemoryBackend, MemoryEntry, MemoryKind

class Diary(MemoryBackend):
    name = "diary"

    def __init__(self, greeting="noted: "):
        self.greeting, self.pages = greeting, {}

    def record(self, session_id, user_msg, assistant_msg):
        self.pages.setdefault(session_id, []).append(self.greeting + user_msg)

    def recall(self, session_id, query, max_entries):
        kept = self.pages.get(session_id, [])[-max_entries:]
        return [MemoryEntry(str(at), text, MemoryKind.RECENT_MESSAGE, 1.0, at) for at, text in enumerate(kept)]

    def flush(self, session_id):
        pass
"""
CONFIG = """\
memory:
  default: {backend: paper-diary, greeting: "written down: "}
agents:
  reciter: {model: "parts:Recite"}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with one distribution in it, as an installer leaves it, on the path of new processes."""
    site = tmp_path / "site"
    info = site / "paper_diary-0.3.dist-info"
    info.mkdir(parents=True)
    (site / "paper_diary.py").write_text(DIARY, encoding="utf-8")
    metadata = "Metadata-Version: 2.1\nName: paper-diary\nVersion: 0.3\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    points = "[retinue.memory]\npaper-diary = paper_diary:Diary\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return site


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_an_installed_memory_is_served_by_its_short_name(site: Path, serve: Serve, tmp_path: Path) -> None:
    """A config says `backend: paper-diary`, and a real server recalls with it, one user's words for that user alone."""
    with serve(tmp_path, CONFIG) as server, TaskClient(server.url) as client:
        client.send_task("I have a cat", {"user_id": "alice"})
        assert "written down: I have a cat" in client.send_task("What do I have?", {"user_id": "alice"}).text
        assert "cat" not in client.send_task("What do I have?", {"user_id": "bob"}).text


def test_what_there_is_can_be_seen(site: Path, tmp_path: Path) -> None:
    """`retinue memory backends` lists the names a config may give and who offers them; `check` tells those in use."""
    listed = run("memory", "backends", "--json", folder=tmp_path)
    found = {one["name"]: one for one in json.loads(listed.stdout)}
    assert found["native"]["distribution"] is None
    assert found["paper-diary"] == {
        "name": "paper-diary",
        "target": "paper_diary:Diary",
        "distribution": "paper-diary",
    }
    assert "paper-diary  paper_diary:Diary  (paper-diary)" in run("memory", "backends", folder=tmp_path).stdout
    (tmp_path / "c.yaml").write_text(
        "memory: {default: {backend: paper-diary}}\nagents: {a: {model: echo}}\n", encoding="utf-8"
    )
    checked = run("check", "c.yaml", folder=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "Memories: default (paper-diary)" in checked.stdout


def test_a_name_that_nobody_offers_is_told_by_line(site: Path, tmp_path: Path) -> None:
    """With the line, all the names, and the nearest."""
    (tmp_path / "c.yaml").write_text(
        "agents: {a: {model: echo}}\nmemory:\n  default: {backend: paper-dairy}\n", encoding="utf-8"
    )
    checked = run("check", "c.yaml", folder=tmp_path)
    assert checked.returncode == 2
    assert "line 3: memory.default.backend: there is no memory 'paper-dairy'; did you mean \"paper-diary\"?" in (
        checked.stderr
    )
    assert "native, mem0, mem0-server, mem0-local, paper-diary" in checked.stderr
