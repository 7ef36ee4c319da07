"""What the memory tests share: a database file, and the real embedder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.native.embedder import MiniLM, find_embedder
from retinue_memory.native.memory import NativeMemory


@pytest.fixture(scope="session")
def minilm(weights: object) -> MiniLM:
    """The built-in embedder, from the weights that the test session has fetched."""
    embedder = find_embedder()
    assert isinstance(embedder, MiniLM)
    return embedder


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SQLiteDatabase]:
    database = SQLiteDatabase(tmp_path / "test.db", synchronous="NORMAL")
    yield database
    await database.aclose()


@pytest.fixture
async def native(database: SQLiteDatabase) -> AsyncIterator[NativeMemory]:
    """The native memory by words alone."""
    memory = NativeMemory(database)
    yield memory
    await memory.aclose()
