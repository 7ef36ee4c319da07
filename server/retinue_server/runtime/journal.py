"""A run: one attempt at a turn, from its start to its finishing commit. It is the event queue its executor speaks into."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from retinue_agents import Journal
from retinue_agents.journal import JSONObject
from retinue_memory.errors import OutcomeUnknown
from retinue_server.runtime.run import STEP, Run

from .turn import (
    MemoryWrite,
)


class TurnJournal(Journal):
    """The steps of one turn. A result is committed before the next step starts, or with the end of the turn."""

    def __init__(self, run: Run, recorded: dict[str, str | None]) -> None:
        self._run = run
        self._recorded = recorded

    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        if key in self._recorded:
            known = self._recorded[key]
            if known is not None:
                replayed: dict[str, Any] = json.loads(known)
                return replayed
            if not repeatable:
                raise OutcomeUnknown(
                    f"outcome unknown: {key} was under way when the server stopped, and is not repeated"
                )
        if not repeatable:
            self._run.add_step(key, None)
        await self._run.commit_steps()
        writes: list[MemoryWrite] = []
        outer = STEP.set(writes)
        try:
            result = await call()
        finally:
            STEP.reset(outer)
        self._recorded[key] = text = json.dumps(result)
        self._run.add_step(key, text, writes)
        self._run.log_soon()
        return result
