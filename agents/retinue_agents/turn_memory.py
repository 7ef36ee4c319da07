"""The agent's memories as one turn uses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from retinue_memory import InvocationContext, ManagedMemory, Message, Recall
from retinue_memory.messages import message_of
from retinue_memory.recall import RecallResult
from retinue_memory.text import same_text

from .events import Event, MemoryFailed, MemoryOperation, MemoryRetrieved, MemoryUpdated
from .journal import JSONObject
from .memory_writes import MemoryWrites, PendingWrite, failures_of


class MemoryEffects(TypedDict, total=False):
    """What a tool call did to the user's memory, as JSON.

    `retrieved` are the messages that a search found, as `message_json` writes them. `added` is a text that was saved, and
    `updated` whether every memory accepted it. `forgotten` is the number of existing memories that were to be deleted.
    `failed` has the fields of each `MemoryFailed`.
    """

    retrieved: list[JSONObject]
    added: str
    updated: bool
    forgotten: int
    failed: list[tuple[MemoryOperation, str, str]]


@dataclass(slots=True)
class TurnMemory:
    """What a turn recalls, what it will write, and what the model has seen of the memories so far."""

    recall: Recall
    writes: MemoryWrites
    ctx: InvocationContext
    top_k: int | None = None
    """Memories per search. None: as many as the agent is set to."""
    readable: bool = True
    writable: bool = True
    prompt: Sequence[Message] = ()
    """The model's prompt so far: a search shortens what is shown in it already."""
    to_write: list[Message] = field(default_factory=list[Message])
    """The user's message, last, after the earlier ones that ended in a question. Empty: the turn is not remembered."""
    known: list[str] = field(default_factory=list[str])
    """Texts of memories that the model has seen or saved in this turn."""

    @property
    def managed(self) -> list[ManagedMemory]:
        """The memories that can forget."""
        return [managed for memory in self.recall.memories if (managed := memory.managed) is not None]

    @property
    def may_forget(self) -> bool:
        return self.readable and self.writable and bool(self.managed)

    async def retrieve(self, query: str) -> RecallResult:
        """Search the memories, after the user's writes in flight have ended."""
        await self.writes.wait(self.ctx, self.recall.timeout)
        return await self.recall.retrieve(query, self.ctx, top_k=self.top_k)

    def write(self, answer: Message | None = None) -> PendingWrite | None:
        """Start to write the turn. Returns None if it is not remembered."""
        if not self.to_write:
            return None
        answered = [answer] if answer is not None and answer.content else []
        return self.writes.start([*self.to_write, *answered], self.ctx)

    async def outcome(
        self, write: PendingWrite | None, max_wait_s: float | None = None
    ) -> Sequence[MemoryFailed | MemoryUpdated]:
        """Wait at most `max_wait_s` seconds for a write; its outcome as events. Empty if there is none, or it is in flight."""
        failures = await failures_of(write, max_wait_s) if write is not None else None
        if failures is None:
            return ()
        return failures or (MemoryUpdated(),)

    def knows(self, text: str) -> bool:
        wanted = same_text(text)
        return any(same_text(known) == wanted for known in self.known)

    def apply(self, effects: MemoryEffects) -> Iterator[Event]:
        """Update the turn by the effects of a tool call, whether it just ran or was replayed, and yield them as events.

        A turn that forgot something is not remembered: the user's message and the answer would name it again.
        """
        for operation, memory, problem in effects.get("failed", ()):
            yield MemoryFailed(operation, memory, problem)
        if "retrieved" in effects:
            messages = tuple(map(message_of, effects["retrieved"]))
            self.known += [message.content for message in messages]
            yield MemoryRetrieved(messages)
        if "added" in effects:
            self.known.append(effects["added"])
        if effects.get("forgotten"):
            self.to_write.clear()
            self.known.clear()
        if effects.get("updated"):
            yield MemoryUpdated()


def no_memory() -> TurnMemory:
    """The memory of a turn that has none."""
    return TurnMemory(Recall(()), MemoryWrites((), timeout=0.0), InvocationContext(""))
