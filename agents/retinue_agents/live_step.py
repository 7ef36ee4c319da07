"""A step of a turn whose text is heard while the step runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable

from .journal import JSONObject


class StreamedStep:
    """A step whose text is heard while it runs. The step has a task of its own, for a journal may use timeouts, and those
    must not strike the consumer of the stream in between.
    """

    __slots__ = ("_said", "_waiter", "ran", "result")

    def __init__(self) -> None:
        self._said: deque[str] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ran = False
        self.result: JSONObject = {}

    def say(self, text: str) -> None:
        self._said.append(text)
        self._wake()

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def follow(self, running: Awaitable[JSONObject]) -> AsyncGenerator[str, None]:
        """The texts as they are said; then `result` is there. One that was recorded earlier comes as one text."""
        task = asyncio.ensure_future(running)
        task.add_done_callback(self._wake)
        try:
            while True:
                while self._said:
                    yield self._said.popleft()
                if task.done():
                    break
                self._waiter = task.get_loop().create_future()
                await self._waiter
            self.result = task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # seen: nobody is left to hear of it
        if not self.ran and self.result["text"]:
            yield self.result["text"]
