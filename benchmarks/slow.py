"""A memory that takes its time. It imports nothing of the benchmarks: a server's configuration names it, too."""

from __future__ import annotations

import asyncio
from typing import Any

from retinue_memory import Memory, Message

SECONDS = 1.0
"""What it takes for a search, and for a write."""


class Slow(Memory):
    """Knows nothing, and waits where another memory would wait for its network."""

    name = "slow"

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]:
        await asyncio.sleep(SECONDS)
        return []

    async def update(self, messages: list[Message], **kwargs: Any) -> None:
        await asyncio.sleep(SECONDS)
