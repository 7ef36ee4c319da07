"""A turn (one message accepted for one task), and the values that handler, engine, store and outboxes exchange about it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

from a2a.types import Message, SendMessageRequest, Task, TaskPushNotificationConfig, TaskState

from retinue_memory import InvocationContext, Scope
from retinue_memory import Message as Remembered

TERMINAL = frozenset(
    (
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_REJECTED,
    )
)
INTERRUPTED = frozenset((TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED))
RESTING = TERMINAL | INTERRUPTED
"""The states in which no turn works on a task."""


class TurnState(IntEnum):
    """The stored state of a turn."""

    ASKED = -1
    """The turn interrupted its task, but its executor has not returned; after a crash the next message continues the task."""
    WAITING = 0
    RUNNING = 1
    DONE = 2


USER = "user/"
PRINCIPAL = "principal/"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, and to which agent.

    `visible_owner` is the owner whose tasks the caller may see; None means every owner of the tenant.
    """

    agent: str
    tenant: str
    principal: str
    visible_owner: str | None

    def owner(self, user: str | None) -> str:
        return USER + user if user is not None else PRINCIPAL + self.principal


@dataclass(frozen=True, slots=True)
class Turn:
    """An accepted turn. `request` has its ids filled in, and its metadata names the user if there is one."""

    id: int
    attempt: int
    caller: Caller
    owner: str
    task_id: str
    context_id: str
    request: SendMessageRequest
    new_task: bool = True
    """Whether this turn created its task."""
    new_context: bool = True
    """Whether this is the first turn of its context."""
    extensions: frozenset[str] = frozenset()
    crashes: int = 0

    @property
    def queue_key(self) -> tuple[str, str, str, str]:
        """The key of the turn's serial queue: turns of one queue run one at a time, in the order of acceptance."""
        return (self.caller.agent, self.caller.tenant, self.owner, self.context_id)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of `Turns.accept`: a new turn, or, if `replay`, the turn that the same message started before."""

    turn: Turn
    task: Task
    replay: bool = False
    over: bool = False
    """Whether the replayed turn is done."""
    answer: Message | None = None
    """The direct message that the replayed turn ended with."""
    generation: int = 1
    """The task's stored generation; a task is created with 1."""
    pushes: bool = False
    """Whether the task has push configs."""


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """A pending memory update of a turn. Raises IdentityError if `context` names no scope."""

    memory: str
    context: InvocationContext
    messages: Sequence[Remembered]
    key: tuple[str, str] = field(init=False, compare=False)
    """The memory and the scope: writes of one key are delivered in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.memory, Scope.of(self.context).key))


WRITES: ContextVar[list[MemoryWrite] | None] = ContextVar("retinue_writes", default=None)
"""Collects the memory writes of the current step, or of the current turn if no step runs; None outside of a turn."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a turn did since its last commit; `Turns.record` writes all of it in one transaction, or nothing."""

    turn: Turn
    state: TaskState
    status_at: int
    """Microseconds since the epoch."""
    snapshot: bytes
    """The current task, serialised."""
    generation: int
    """The task's generation with this snapshot."""
    pushes: Sequence[bytes] = ()
    """The events as serialised StreamResponse messages, if the task has push configs."""
    steps: Sequence[tuple[str, str | None]] = ()
    writes: Sequence[MemoryWrite] = ()
    done: bool = False
    asked: bool = False
    """Whether the turn interrupted its task and has not resumed it since."""
    answer: Message | None = None


@dataclass(frozen=True, slots=True)
class DueWrite:
    """A memory write that is due."""

    id: int
    task_id: str
    tries: int
    write: MemoryWrite


@dataclass(frozen=True, slots=True)
class FailedWrite:
    """A memory write that was given up, and why."""

    task_id: str
    tries: int
    problem: str
    write: MemoryWrite


@dataclass(frozen=True, slots=True)
class DuePush:
    """A push delivery that is due."""

    id: int
    tries: int
    payload: bytes
    config: TaskPushNotificationConfig


class StaleAttempt(Exception):
    """A newer attempt owns the turn, or its task has ended; nothing was written. Stop."""


class Continues(Exception):
    """The task cannot complete yet: another message for it was accepted. Nothing was written."""
