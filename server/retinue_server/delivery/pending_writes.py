"""Memory writes that are committed and not delivered yet, as recall needs them."""

from __future__ import annotations

import asyncio
import contextlib

from retinue_server.runtime.turn import MemoryWrite

Key = tuple[str, str]
"""A memory's name and a scope's key."""

_WAIT_S = 0.3


class PendingWrites:
    """An index in memory of the outbox's rows, by memory and scope. Recall overlays them on what the memory finds."""

    def __init__(self) -> None:
        self._writes: dict[Key, list[MemoryWrite]] = {}
        self._delivered: dict[Key, asyncio.Event] = {}
        """Set when nothing is pending for a key any more, if somebody waits for that."""

    def add(self, write: MemoryWrite) -> None:
        self._writes.setdefault(write.key, []).append(write)

    def remove(self, write: MemoryWrite) -> None:
        """Remove a write that was delivered or given up."""
        left = [other for other in self._writes.get(write.key, ()) if not _same(write, other)]
        if left:
            self._writes[write.key] = left
        else:
            self._remove_key(write.key)

    def drop(self, tenant: str, user: str) -> list[Key]:
        """Remove all of a user. Returns the keys they had."""
        dropped = [key for key, writes in self._writes.items() if _is_of(writes[0], tenant, user)]
        for key in dropped:
            self._remove_key(key)
        return dropped

    def of(self, memory: str, scope: str) -> list[MemoryWrite]:
        """The pending writes of a scope, in their order."""
        return self._writes.get((memory, scope), [])

    def count(self, memory: str) -> int:
        return sum(len(writes) for (name, _), writes in self._writes.items() if name == memory)

    def __contains__(self, write: MemoryWrite) -> bool:
        return any(_same(write, other) for other in self._writes.get(write.key, ()))

    async def wait(self, memory: str, scope: str) -> None:
        """Wait a moment for the writes of a scope to be delivered."""
        key = (memory, scope)
        if key in self._writes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await self._delivered.setdefault(key, asyncio.Event()).wait()

    def _remove_key(self, key: Key) -> None:
        self._writes.pop(key, None)
        if (delivered := self._delivered.pop(key, None)) is not None:
            delivered.set()


def _is_of(write: MemoryWrite, tenant: str, user: str) -> bool:
    return (write.context.tenant, write.context.user_id) == (tenant, user)


def _same(one: MemoryWrite, other: MemoryWrite) -> bool:
    """Whether both are one write, as it was committed or as it was read from its row: the same messages of the same turn."""
    return one is other or (
        one.memory == other.memory
        and one.context.turn_id == other.context.turn_id
        and [message.id for message in one.messages] == [message.id for message in other.messages]
    )
