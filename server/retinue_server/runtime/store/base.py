"""The contract of a task store. Two implementations pass one suite; scope is a condition of every query."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from a2a.types import SendMessageRequest, Task, TaskPushNotificationConfig, TaskStatus

from retinue_memory import Memory
from retinue_memory.database.base import Alongside
from retinue_server.runtime.events import Numbered
from retinue_server.runtime.turn import (
    Accepted,
    Caller,
    DuePush,
    DueWrite,
    FailedWrite,
    MemoryWrite,
    Progress,
    Turn,
    TurnState,
)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of tasks. Times are microseconds since the epoch; `before` is where the last page ended."""

    context_id: str = ""
    state: int = 0
    """A TaskState; 0: any."""
    after: int = 0
    size: int = 50
    before: tuple[int, str] | None = None
    count: bool = True
    """Whether to count the tasks."""


@dataclass(frozen=True, slots=True)
class OwnedTask:
    place: int
    """Grows from task to task of one owner."""
    agent: str
    task: Task


class Store(ABC):
    """Everything raises StoreError where the database fails; what is not the caller's is not found."""

    @abstractmethod
    async def accept(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Accepted:
        """Store the message and its turn, and a new task where it names none, in one commit. The turn counts as running,
        unless another of its lane is not done: then it waits.

        The same message again, for the same owner, is a replay: nothing is stored. Raises TaskNotFoundError,
        UnsupportedOperationError for a task that has ended, and InvalidParamsError for a contextId that is not the
        task's, for another user than the task's, and for a messageId that was used with another content.
        """

    @abstractmethod
    async def record(self, progress: Progress) -> list[DueWrite]:
        """Write what a turn did; the memory writes that are owed from now on.

        Raises, and writes nothing: StaleAttempt, where the turn's attempt is not the current one or its task has ended;
        Continues, where the task would be completed although another message waits for it.
        """

    @abstractmethod
    async def mark(self, turn: Turn, state: TurnState) -> None:
        """Note that a turn runs, waits for another, or is dropped since its task has ended."""

    @abstractmethod
    async def reload(self, turn: Turn) -> Numbered[Task] | None:
        """The task of a turn that waited; None: it is gone."""

    @abstractmethod
    async def recover(self) -> list[Accepted]:
        """The turns that were not done when the last process ended, oldest first, each with its attempt raised.

        They wait: only one that was marked as running (or recorded something) has crashed if the process stops again.
        """

    @abstractmethod
    async def steps(self, turn: Turn) -> dict[str, str | None]:
        """The journal of a turn: results as JSON by key; None: begun, and not to be repeated."""

    @abstractmethod
    async def task(self, caller: Caller, task_id: str) -> Numbered[Task] | None: ...

    @abstractmethod
    async def tasks(self, caller: Caller, listing: Listing) -> tuple[list[Numbered[Task]], int]:
        """One page, newest status first, and how many tasks there are without paging; 0 where they are not to be counted."""

    @abstractmethod
    async def context(self, turn: Turn, limit: int) -> list[Task]:
        """The newest tasks of the turn's context before it, oldest first; the turn's own task included, if older."""

    @abstractmethod
    async def end(
        self, caller: Caller, task: Task, found: TaskStatus, event: bytes, writes: Sequence[MemoryWrite] = ()
    ) -> list[DueWrite] | None:
        """Write how a task ended that no turn runs; the memory writes that are owed from now on.

        None, and nothing is written, where its status is no longer the one that was found. `event` is what is pushed of it: a
        serialised StreamResponse.
        """

    # -- what leaves the server ---------------------------------------------------------------------------------------

    @abstractmethod
    async def due_writes(self, memory: str, limit: int) -> list[DueWrite]:
        """The writes owed to one memory that are due, oldest first."""

    @abstractmethod
    async def next_write(self, memory: str) -> int | None:
        """When the next write to a memory is due, in microseconds since the epoch; None: nothing is owed to it."""

    @abstractmethod
    async def unconfirmed_writes(self) -> list[MemoryWrite]:
        """Every memory write that is owed: what recall overlays until it is done."""

    @abstractmethod
    async def write_done(self, due: DueWrite) -> None: ...

    @abstractmethod
    def done_alongside(self, due: DueWrite, memory: Memory) -> Alongside | None:
        """What notes a write as done in the memory's own commit; None: the memory keeps its rows elsewhere."""

    @abstractmethod
    async def write_failed(self, due: DueWrite, problem: str, retry_at: int | None) -> bool:
        """Try again at `retry_at` (microseconds since the epoch); None: give up. False: it is not owed any longer."""

    @abstractmethod
    async def failed_writes(self, limit: int) -> list[FailedWrite]:
        """The memory writes that were given up, oldest first."""

    @abstractmethod
    async def retry_failed_writes(self, memory: str) -> list[MemoryWrite]:
        """Have what was given up of a memory's writes be due again, as tried once; those writes, in no order."""

    @abstractmethod
    async def due_pushes(self, limit: int) -> list[DuePush]:
        """The first undelivered push of each config that is due."""

    @abstractmethod
    async def next_push(self) -> int | None:
        """When the next push is due, in microseconds since the epoch; None: none is owed."""

    @abstractmethod
    async def push_done(self, due: DuePush) -> None: ...

    @abstractmethod
    async def push_failed(self, due: DuePush, problem: str, retry_at: int | None) -> None: ...

    @abstractmethod
    async def push_later(self, due: DuePush, at: int) -> None:
        """Leave it for later, without counting a try."""

    @abstractmethod
    async def set_push_config(self, caller: Caller, config: TaskPushNotificationConfig) -> bool:
        """False: no such task."""

    @abstractmethod
    async def push_configs(self, caller: Caller, task_id: str) -> list[TaskPushNotificationConfig] | None:
        """None: no such task."""

    @abstractmethod
    async def delete_push_config(self, caller: Caller, task_id: str, config_id: str) -> bool: ...

    @abstractmethod
    async def purge(self, before: int, limit: int) -> int:
        """Delete up to `limit` tasks that ended before `before`, with everything of theirs; how many."""

    # -- all of an owner's -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def owned(self, tenant: str, owner: str, after: int, limit: int) -> list[OwnedTask]:
        """An owner's tasks, of every agent, oldest first, from behind the `place` of the last one known on."""

    @abstractmethod
    async def restore(self, tenant: str, owner: str, agent: str, task: Task) -> bool:
        """Store a task that was exported; False, and nothing is written, where its id is taken."""

    @abstractmethod
    async def disown_writes(self, tenant: str, owner: str) -> int:
        """Drop what is owed to memories on behalf of an owner; how many writes."""

    @abstractmethod
    async def erase(self, tenant: str, owner: str) -> dict[str, int]:
        """Delete an owner's tasks with everything of theirs; the rows that went, by table."""

    @abstractmethod
    async def remains(self, tenant: str, owner: str) -> dict[str, int]:
        """The rows that are there of an owner, by table; tables without any are left out."""
