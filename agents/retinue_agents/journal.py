"""What an agent takes, says while it works, and needs of whoever runs it: State, events, Journal, ToolContext."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

JSONObject = dict[str, Any]


# -- what the runner of an agent provides ---------------------------------------------------------------------------------


class Journal(ABC):
    """Where the results of a turn's steps are kept, so that a turn that starts again repeats none of them."""

    @abstractmethod
    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        """The recorded result of step `key`; where there is none, run `call` and record what it returns.

        The result is committed before this returns. What `call` raises is not recorded. Where an earlier attempt began
        the step and did not live to record it, `call` runs again, unless `repeatable` is false: then OutcomeUnknown.
        """


class NullJournal(Journal):
    """Keeps nothing: every step runs."""

    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        return await call()
