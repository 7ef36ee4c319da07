"""The program that calls an agent behind a server, in the shape that others bring along, against a server that runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from retinue_memory.weights import Weight

from .conftest import Serve, Server

CONFIG = """\
memory:
  default: {backend: native}
agents:
  assistant: {model: local/smollm2-135m, system_prompt: You are a helpful assistant., default: true}
  reciter: {model: "parts:Recite"}
"""
SLOW = """\
memory:
  default: {backend: "slow:Slow"}
agents:
  reciter: {model: "parts:Recite"}
"""
SLOWLY = """
import asyncio
from retinue_memory import Memory

class Slow(Memory):
    async def retrieve(self, query, *, top_k=5, **kwargs):
        return []

    async def update(self, messages, **kwargs):
        await asyncio.Event().wait()  # never written
"""

PROGRAM = """
import sys

from retinue_server import TaskClient

with TaskClient(sys.argv[1]) as task_client:
    task_client.send_task(
        message="I am from Italy",
        metadata={"user_id": "ada"},
    )
    for user in ("ada", "ben"):
        task = task_client.send_task(
            message="What's the capital of my country?",
            metadata={"user_id": user},
        )
        print(task.text)
"""

SESSIONS = """
import sys

from retinue_server import TaskClient

task_client = TaskClient(sys.argv[1] + "/agents/reciter")
told = task_client.send_task(message="My parrot is called Olaf")
for context in (told.context_id, None):
    task = task_client.send_task(message="What is my parrot called?", context_id=context)
    print("Olaf" in task.text)
task_client.close()
"""


@pytest.fixture(scope="module")
def server(serve: Serve, weights: Mapping[Weight, Path], tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with serve(tmp_path_factory.mktemp("examples"), CONFIG) as running:
        yield running


def test_what_was_said_is_known_before_it_is_written(serve: Serve, tmp_path: Path) -> None:
    """The next question finds it though its words are others, and though the memory has taken nothing yet; nobody else's does."""
    (tmp_path / "slow.py").write_text(SLOWLY, encoding="utf-8")
    with serve(tmp_path, SLOW) as server:
        ada, ben = "\n".join(run(server, PROGRAM)).split("user: What's the capital of my country?")[:2]
    assert "I am from Italy" in ada
    assert "Italy" not in ben


def run(server: Server, program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_user_of_the_metadata_is_whose_memory_it_is(server: Server) -> None:
    """Each task is a conversation of its own: what Ada said in one is known in the next, and Ben's agent knows nothing."""
    ada, ben = run(server, PROGRAM)
    assert "Rome" in ada
    assert "Rome" not in ben


def test_without_a_user_the_context_is_whose_memory_it_is(server: Server) -> None:
    """Nobody is named: what was said is known in the same context, and nowhere else."""
    assert run(server, SESSIONS) == ["True", "False"]
