"""Where the results of a turn's steps are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

JSONObject = dict[str, Any]


class Journal(ABC):
    """Keeps the results of a turn's steps, so that a turn that is run again does not repeat them."""

    @abstractmethod
    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        """Return the recorded result of step `key`, or run `call` and record its result.

        The result is committed before the next step starts. An exception of `call` is not recorded. A step that an
        earlier attempt started and did not finish runs again if it is `repeatable`, and raises OutcomeUnknown otherwise.
        """


class NullJournal(Journal):
    """Records nothing: every step runs."""

    async def step(self, key: str, call: Callable[[], Awaitable[JSONObject]], *, repeatable: bool = True) -> JSONObject:
        return await call()
