"""Retention: what has ended long ago goes, a little at a time."""

from __future__ import annotations

import asyncio
import logging

from retinue_memory.errors import StoreError

from .store.rows import now
from .store.tasks import Tasks

logger = logging.getLogger(__name__)

_EVERY = 60.0
_BATCH = 100
_PAUSE = 0.05
"""Seconds between two batches: others want to write too."""
_DAY = 86_400_000_000


async def purge_forever(tasks: Tasks, days: float | None) -> None:
    """Delete tasks that ended more than `days` ago, with all that belongs to them; None: keep everything."""
    while days is not None:
        try:
            purged = await tasks.purge(now() - int(days * _DAY), _BATCH)
        except StoreError:
            logger.exception("old tasks could not be purged")
            purged = 0
        await asyncio.sleep(_PAUSE if purged == _BATCH else _EVERY)
