"""Mem0: a memory over a `Service`, with what mem0 itself does not give."""

from __future__ import annotations

from typing import Any

from recollect_memory.contract import InvocationContext, Message, Scope
from recollect_memory.sqlite import Database

from .service import Service


class Mem0Shape:
    """THE PUBLIC SHAPE, to be replaced by `Mem0` under the same signatures.

    class Mem0Memory(Mem0):
        def __init__(self, api_key=None, *, host=None, ..., **of Mem0):
            super().__init__(CloudService(...), space=..., name=..., database=..., infer=...)

        @classmethod
        def from_config(cls, entry, *, name, database, embedder) -> Self

    `Mem0` runs every call of the service on one event loop of its own, in a thread of its own: a service need not care for
    several loops, and nothing it does blocks the caller's.
    """

    def __init__(
        self,
        service: Service,
        *,
        space: str = "default",
        name: str = "mem0",
        database: Database | str | None = None,
        infer: bool = True,
        patience: float = 5.0,
    ) -> None: ...

    async def retrieve(self, query: str, *, top_k: int = 5, **kwargs: Any) -> list[Message]: ...
    async def update(self, messages: list[Message], **kwargs: Any) -> None: ...
    async def wait_indexed(self, ctx: InvocationContext | None = None, *, timeout: float = 60.0) -> bool: ...
    async def erase(self, scope: Scope) -> Any: ...
    async def aclose(self) -> None: ...
