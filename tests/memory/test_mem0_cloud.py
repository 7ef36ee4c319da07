"""Mem0Memory over real HTTP, against a stand-in for mem0's cloud."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from recollect_memory.mem0 import Mem0Memory
from recollect_memory.testing import ManagedConformance

from .mem0_cloud import KEY, Cloud


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with Cloud().running() as cloud:
        yield cloud


@pytest.fixture
async def memory(cloud: Cloud) -> AsyncIterator[Mem0Memory]:
    memory = Mem0Memory(KEY, host=cloud.url)
    yield memory
    await memory.aclose()


class TestMem0Memory(ManagedConformance):
    """Everything that holds of any memory."""

    imports_exactly = False
