"""The journal of a turn: the results of its steps, so that an attempt after a crash repeats none of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from retinue_agents import Journal
from retinue_agents.journal import JSONObject
from retinue_memory.errors import OutcomeUnknown

from .recorder import Recorder
from .turn import WRITES, MemoryWrite


class TurnJournal(Journal):
    """The steps of one turn. A result is committed before the next step starts, or with the end of the turn."""

    def __init__(self, recorder: Recorder, recorded: dict[str, str | None]) -> None:
        """`recorded` holds the committed results as JSON, by key; None for a step that started and must not be repeated."""
        self._recorder = recorder
        self._recorded = recorded

    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        if key in self._recorded:
            known = self._recorded[key]
            if known is not None:
                replayed: dict[str, Any] = json.loads(known)
                return replayed
            if not repeatable:
                raise OutcomeUnknown(f"outcome unknown: {key} was running when the server stopped, and is not repeated")
        if not repeatable:
            self._recorder.add_step(key, None)
        await self._recorder.commit_steps()
        writes: list[MemoryWrite] = []
        outer = WRITES.set(writes)
        try:
            result = await call()
        finally:
            WRITES.reset(outer)
        self._recorded[key] = text = json.dumps(result)
        self._recorder.add_step(key, text, writes)
        return result
