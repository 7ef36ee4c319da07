"""Retention: delete tasks that ended long ago, in small batches."""

from __future__ import annotations

import asyncio
import logging

from retinue_memory.clock import DAY_US, now_us
from retinue_memory.errors import StoreError

from .store.tasks import Tasks

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
_BATCH = 100
_PAUSE_S = 0.05  # between batches, so that other writes get through


async def purge_forever(tasks: Tasks, days: float | None) -> None:
    """Delete tasks that ended more than `days` ago, with everything of theirs. Returns at once if `days` is None."""
    while days is not None:
        try:
            purged = await tasks.purge(now_us() - int(days * DAY_US), _BATCH)
        except StoreError:
            logger.exception("old tasks could not be purged, trying again in %g s", _INTERVAL_S)
            purged = 0
        await asyncio.sleep(_PAUSE_S if purged == _BATCH else _INTERVAL_S)
