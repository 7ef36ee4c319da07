"""The crash suite in short: `python -m benchmarks.crash --kills 200` is the long run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import environment

ROOT = Path(__file__).parents[2]
KILLS, SEED = 10, 20261120


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_done_twice_however_often_the_server_is_killed(tmp_path: Path) -> None:
    """Killed with SIGKILL at random moments under load, the server keeps its promises: no acknowledged task is missing or
    stuck, no committed step is made again, no memory is missing or doubled, no push lost, no event out of order.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.crash", f"--kills={KILLS}", f"--seed={SEED}", f"--folder={tmp_path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"seed {SEED}, {KILLS} kills" in ran.stdout
