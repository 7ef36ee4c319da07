"""A step of a turn whose text is read while the step runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable

from .journal import JSONObject


class StreamedStep:
    """Run a journal's step in a task of its own, and stream the text that it adds meanwhile.

    The task is needed because a journal may use `asyncio.timeout`, which cancels the task that entered it: without one,
    the consumer of the stream.
    """

    __slots__ = ("_pieces", "_streamed", "_waiter", "result")

    def __init__(self) -> None:
        self._pieces: deque[str] = deque()
        self._streamed = False
        self._waiter: asyncio.Future[None] | None = None
        self.result: JSONObject = {}

    def add(self, text: str) -> None:
        """Stream a piece of text. Called by the step."""
        self._pieces.append(text)
        self._streamed = True
        self._wake()

    async def texts(self, step: Awaitable[JSONObject]) -> AsyncGenerator[str, None]:
        """Yield the pieces as the step adds them, then set `result`. A replayed step yields its whole text at once.

        Closing the generator cancels the step.
        """
        task = asyncio.ensure_future(step)
        task.add_done_callback(self._wake)
        try:
            while True:
                while self._pieces:
                    yield self._pieces.popleft()
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
                task.exception()  # mark it as retrieved: asyncio would log it otherwise
        if not self._streamed and self.result["text"]:
            yield self.result["text"]

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
