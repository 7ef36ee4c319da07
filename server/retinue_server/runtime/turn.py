"""A turn: one message accepted for one task, and the values that travel between handler, store and engine."""

from __future__ import annotations

from collections.abc import Sequence
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
RESTING = TERMINAL | {TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED}
"""The states of a task that nobody works on: it has ended, or is interrupted."""


class TurnState(IntEnum):
    ASKED = -1
    """It interrupted its task, though its executor has not returned: a crash leaves the task to the next message."""
    WAITING = 0
    RUNNING = 1
    DONE = 2


USER = "user/"
PRINCIPAL = "principal/"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, of which agent. `visible_owner` is the owner whose tasks they may see; None: every owner's of the tenant."""

    agent: str
    tenant: str
    principal: str
    visible_owner: str | None

    def owner(self, user: str | None) -> str:
        return USER + user if user is not None else PRINCIPAL + self.principal


@dataclass(frozen=True, slots=True)
class Turn:
    """An accepted turn. `request` has its ids filled in, and its metadata name the user, where there is one."""

    id: int
    attempt: int
    caller: Caller
    owner: str
    task_id: str
    context_id: str
    request: SendMessageRequest
    new_task: bool = True
    """Whether the task began with this turn."""
    new_context: bool = True
    """Whether nothing was said in the context before."""
    extensions: frozenset[str] = frozenset()
    crashes: int = 0

    @property
    def lane(self) -> tuple[str, str, str, str]:
        """Turns of one lane run one after the other."""
        return (self.caller.agent, self.caller.tenant, self.owner, self.context_id)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `Turns.accept` did: stored a new turn, or, where `replay`, found the turn that the same message began before."""

    turn: Turn
    task: Task
    replay: bool = False
    over: bool = False
    """Whether the turn that was found is done."""
    answer: Message | None = None
    """The direct message that a replayed turn ended with."""
    generation: int = 0
    """The task's stored generation."""
    pushes: bool = False
    """Whether the task has push configs."""


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """A memory update that a turn owes. Raises IdentityError where `context` names no scope."""

    memory: str
    context: InvocationContext
    messages: Sequence[Remembered]
    key: tuple[str, str] = field(init=False, compare=False)
    """The memory and the scope: writes of one key are made in their order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.memory, Scope.of(self.context).key))


@dataclass(frozen=True, slots=True)
class Progress:
    """What a turn did since its last commit; `Turns.record` writes it all in one transaction, or nothing."""

    turn: Turn
    state: TaskState
    status_at: int
    """Microseconds since the epoch."""
    snapshot: bytes
    """The task as it is now, serialised."""
    generation: int
    pushes: Sequence[bytes] = ()
    """The events as serialised StreamResponse messages, for a task that has push configs."""
    steps: Sequence[tuple[str, str | None]] = ()
    writes: Sequence[MemoryWrite] = ()
    done: bool = False
    asked: bool = False
    """Whether the turn interrupted its task, and did not go on since."""
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
    """Another attempt has this turn now, or it has ended: stop, nothing was written."""


class Continues(Exception):
    """The task cannot complete yet: another message for it was accepted. Nothing was written."""
