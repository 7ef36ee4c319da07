"""How much is found, on dialogues of the project's own: by the benchmark itself, as it is run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USES = ("benchmarks.retrieval", "--quick")


@pytest.fixture(scope="module")
def table(weights: object) -> dict[str, list[float]]:
    """The rows of the recall table: R@1, R@5, R@10, R@20, hit@10, MRR."""
    done = subprocess.run(
        [sys.executable, "-m", *USES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[float]] = {}
    for line in done.stdout.splitlines():
        name, *cells = line.rsplit(maxsplit=7)
        if len(cells) == 7 and cells[0] == "70":
            rows[name.strip()] = [float(cell) for cell in cells[1:]]
    return rows


def test_the_native_memory_finds_what_answers(table: dict[str, list[float]]) -> None:
    """Nine of ten answering turns among the first ten, half of them first; words alone find four of five."""
    at_1, _, at_10, *_, mrr = table["native"]
    assert at_1 > 0.5
    assert at_10 > 0.9
    assert mrr > 0.75
    assert table["native, words only"][2] > 0.8


def test_it_is_ahead_of_what_is_usual(table: dict[str, list[float]]) -> None:
    """With and without vectors: better than the plain hybrid, and that is better than BM25 alone."""
    at_10 = {name: row[2] for name, row in table.items()}
    assert at_10["native"] > at_10["plain hybrid"] + 0.05
    assert at_10["native, words only"] > at_10["BM25 alone"] + 0.1
    assert at_10["plain hybrid"] > at_10["BM25 alone"]
