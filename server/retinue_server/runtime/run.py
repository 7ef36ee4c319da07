"""A run: one attempt at a turn, from its start to its finishing commit. It is the event queue its executor speaks into."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from a2a.server.events import EventQueue
from a2a.types import Message, Role, Task, TaskArtifactUpdateEvent, TaskState, TaskStatus, TaskStatusUpdateEvent
from a2a.utils.errors import InvalidAgentResponseError

from retinue_memory.errors import RetinueError
from retinue_server.a2a.validation import (
    stamp,
    unfit,
    unfit_artifact,
    unfit_message,
)

from .events import (
    Event,
    Snapshot,
    coalesce,
    payload_of,
)
from .store.turns import Turns
from .subscribers import Subscriber
from .timer import CoalescingTimer
from .turn import (
    RESTING,
    TERMINAL,
    Accepted,
    Continues,
    DueWrite,
    MemoryWrite,
    Progress,
)

logger = logging.getLogger(__name__)

CURRENT: ContextVar[Run | None] = ContextVar("retinue_run", default=None)
"""The run that the code at hand works for; a memory write finds its turn by it."""
STEP: ContextVar[list[MemoryWrite] | None] = ContextVar("retinue_step", default=None)
"""Where the step at hand puts the memory writes that are committed with its result; None: no step is at hand."""


class Run(EventQueue):
    """One attempt at a turn.

    `settled` becomes the answer to whoever waits: the task once it has ended or is interrupted, or the agent's message.
    """

    def __init__(
        self,
        accepted: Accepted,
        turns: Turns,
        watchers: Callable[[Event], None],
        committed: Callable[[Progress, Sequence[DueWrite]], None],
        reminder: CoalescingTimer,
        owed_at_end: Callable[[Task, Sequence[MemoryWrite]], list[MemoryWrite]],
    ) -> None:
        self.turn = accepted.turn
        self.snapshot = Snapshot(accepted.task, accepted.generation)
        self.snapshot.hear(self.turn.request.message)
        self.pushes = accepted.pushes
        self.settled: asyncio.Future[Task | Message] = asyncio.get_running_loop().create_future()
        self.subscribers: list[Subscriber] = []
        self.writes: list[MemoryWrite] = []
        """What the turn owes from its end on; `_owed` is what its steps do, from the commit of each."""
        self._owed: list[MemoryWrite] = []
        self.key: tuple[str, ...] | None = None
        """What the engine counts this run under."""
        self.work: asyncio.Task[None] | None = None
        self.remembers = True
        """Whether its memory writes are kept; not those of an owner who was erased meanwhile."""
        self.known = (
            not self.turn.new_task or self.turn.attempt > 1 or self.turn.request.configuration.return_immediately
        )
        """Whether somebody may know the task, and look for the answer there: a direct message becomes its end then."""
        self.canceling = False
        self.finishing = False
        """Whether the finishing commit has begun: from then on the run cannot be stopped."""
        self.ended = False
        """Whether the finishing commit is done."""
        self.asked = False
        """Whether it interrupted its task, and did not go on since."""
        self.over = asyncio.Event()
        """Set when the engine is done with the run."""
        self.continues = False
        """Whether the task goes on with another message that waits, although this turn is done."""
        self._turns = turns
        self._watchers = watchers
        self._committed = committed
        self._owed_at_end = owed_at_end
        self._answer: Message | None = None
        self._status_before: TaskStatus | None = None
        self._spoke = False
        self._events: list[Event] = []
        self._steps: list[tuple[str, str | None]] = []
        self._reminder = reminder
        self._waiters: list[asyncio.Future[None]] = []
        self._recording: asyncio.Task[None] | None = None

    # -- what the executor says ----------------------------------------------------------------------------------------

    async def enqueue_event(self, event: Event) -> None:
        """`say` an event, if it can be stored."""
        if problem := _unfit(event):
            raise InvalidAgentResponseError(f"what the agent said cannot be stored: {problem}")
        await self.say(event)

    async def say(self, event: Event) -> None:
        """Apply, publish and log an event. One that ends or interrupts the task is published after it is committed."""
        if self.finishing:
            raise InvalidAgentResponseError("the agent went on speaking after its task had ended")
        if self._answer is not None or (self._spoke and isinstance(event, Message)):
            raise InvalidAgentResponseError("a message is an agent's only event, or none")
        if isinstance(event, Message):
            event.context_id = self.turn.context_id
            self._answer = event
            return
        self._spoke = True
        if not isinstance(event, TaskArtifactUpdateEvent):
            self.asked = event.status.state in RESTING
        if isinstance(event, TaskArtifactUpdateEvent) or event.status.state not in RESTING:
            self.snapshot.apply(event)
            if isinstance(event, Task):
                event = self.snapshot.copy()
            self._events.append(event)
            self._publish(event)
            self.log_soon()
            return
        before = TaskStatus()
        before.CopyFrom(self.snapshot.task.status)
        self.snapshot.apply(event)
        self._status_before = before
        if isinstance(event, Task):
            event = self.snapshot.copy()
        if event.status.state in TERMINAL:
            await self._finish(event)
        else:
            self._events.append(event)
            await self.flush()
            self._status_before = None
            self._publish(event)
            self.settle(self.snapshot.copy())

    @property
    def vanishes(self) -> bool:
        """Whether its end is being committed, and it is a direct message: nobody will find the task then."""
        return self.finishing and self._answer is not None

    def announce(self) -> None:
        """Say what a new task's first event is: the task as it was accepted."""
        self._spoke = True
        self.snapshot.seq += 1
        task = self.snapshot.copy()
        self._events.append(task)
        self._publish(task)
        self.log_soon()

    def shown(self) -> Task:
        """A copy of the task for whoever asks: a state that ends or interrupts it is not shown before it is committed."""
        task = self.snapshot.copy()
        if self._status_before is not None:
            task.status.CopyFrom(self._status_before)
        return task

    def resume(self, task: Task, seq: int) -> None:
        """Go on from the task as it became while this run waited."""
        self.snapshot = Snapshot(task, seq)
        self.snapshot.hear(self.turn.request.message)
        for subscriber in self.subscribers:
            if subscriber.fresh:
                subscriber.put(self.snapshot.copy())

    async def fail(self, reason: str) -> None:
        """End the task as FAILED, with a reason for its owner."""
        said = Message(message_id=f"{self.turn.task_id}/{self.turn.id}/status", role=Role.ROLE_AGENT)
        said.parts.add(text=reason)
        await self._status(TaskState.TASK_STATE_FAILED, said)

    async def cancel(self) -> None:
        await self._status(TaskState.TASK_STATE_CANCELED)

    async def finish(self) -> None:
        """Commit the end of the turn, if its last event has not done so. The task stays as it is."""
        if self._answer is not None and self.known:
            await self._status(TaskState.TASK_STATE_COMPLETED, self._answer)
        elif not self.ended:
            await self._finish(None)

    async def _finish(self, event: Task | TaskStatusUpdateEvent | None) -> None:
        if event is not None:
            self._events.append(event)
            if event.status.state in TERMINAL and len(self.snapshot.task.history) > 1:  # more than what is answered now
                self.writes += self._owed_at_end(self.snapshot.task, self.writes)
        self.finishing = True
        await self._recorded()
        before = self._events, self._steps, self._owed
        try:
            await self._record(self._progress(done=True))
        except Continues:
            # the task goes on with the next message: what would have completed it leaves it working
            self.continues = True
            self.snapshot.task.status.state = TaskState.TASK_STATE_WORKING
            if event is not None:
                event.status.CopyFrom(self.snapshot.task.status)
            self._events, self._steps, self._owed = before
            await self._record(self._progress(done=True))
        except RetinueError:
            self._events, self._steps, self._owed = before  # whoever tries again must lose nothing of it
            raise
        self.ended = True
        self._status_before = None
        if event is not None:
            self._publish(event)
        if self._answer is not None:
            self._publish(self._answer)
        if not self.continues:
            self.settle(self._answer or self.snapshot.task)

    async def _status(self, state: TaskState, said: Message | None = None) -> None:
        event = TaskStatusUpdateEvent(task_id=self.turn.task_id, context_id=self.turn.context_id)
        event.status.state = state
        event.status.timestamp.CopyFrom(stamp())
        if said is not None:
            event.status.message.CopyFrom(said)
            event.status.message.task_id, event.status.message.context_id = self.turn.task_id, self.turn.context_id
        self._answer = None
        await self.say(event)

    # -- who listens ---------------------------------------------------------------------------------------------------

    def subscribe(self) -> Subscriber:
        """The events of this run from now on."""
        subscriber = Subscriber(self._caught_up)
        self.subscribers.append(subscriber)
        return subscriber

    async def _caught_up(self) -> Task:
        return self.shown()

    def close(self) -> None:
        """Tell everyone who listens that this run says no more."""
        self._reminder.forget(self._log)
        for subscriber in self.subscribers:
            subscriber.close()

    def _publish(self, event: Event) -> None:
        for subscriber in self.subscribers:
            subscriber.put(event)
        self._watchers(event)

    async def answer(self) -> Task | Message:
        """Wait until `settled` is; a caller who is cancelled leaves it to whoever else waits.

        As `asyncio.shield` does, with one turn of the event loop less.
        """
        if not self.settled.done():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        return self.settled.result()

    def settle(self, answer: Task | Message | Exception) -> None:
        """Answer whoever waits, unless they were answered before."""
        if self.settled.done():
            return
        if isinstance(answer, Exception):
            self.settled.set_exception(answer)
            self.settled.exception()  # nobody may be waiting
        else:
            self.settled.set_result(answer)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- what is committed on the way ----------------------------------------------------------------------------------

    def add_step(self, key: str, result: str | None, writes: Sequence[MemoryWrite] = ()) -> None:
        self._steps.append((key, result))
        self._owed += writes

    def log_soon(self) -> None:
        self._reminder.ask(self._log)

    async def flush(self) -> None:
        """Commit what happened so far."""
        await self._recorded()
        if self._events or self._steps:
            self._recording = asyncio.create_task(self._record(self._progress()))
            await asyncio.shield(self._recording)

    async def commit_steps(self) -> None:
        """Commit the steps that were taken so far, if any are not. Raises if they could not be, whoever tried."""
        await self._recorded()
        if self._steps:
            await self.flush()
        elif self._recording is not None and self._recording.done():
            self._recording.result()

    async def _recorded(self) -> None:
        """Wait for the commit that is under way; whoever began it hears of its failure."""
        self._reminder.forget(self._log)
        while self._recording is not None and not self._recording.done():
            await asyncio.wait((self._recording,))

    def _log(self) -> None:
        if self._recording is not None and not self._recording.done():
            self.log_soon()
        elif not self.finishing and (self._events or self._steps):
            self._recording = asyncio.create_task(self._record(self._progress()))
            self._recording.add_done_callback(self._stop_if_it_failed)

    async def _record(self, progress: Progress) -> None:
        owed = await self._turns.record(progress)
        if progress.pushes or owed:
            self._committed(progress, owed)

    def _stop_if_it_failed(self, recording: asyncio.Task[None]) -> None:
        error = None if recording.cancelled() else recording.exception()
        if error is not None and self.work is not None:
            logger.error("task %s stops: its progress could not be stored: %s", self.turn.task_id, error)
            self.work.cancel()

    def _progress(self, *, done: bool = False) -> Progress:
        """What happened since the last commit, taken off the lists: a record that fails ends the run."""
        task = self.snapshot.task
        progress = Progress(
            self.turn,
            state=task.status.state,
            status_at=task.status.timestamp.ToMicroseconds(),
            snapshot=task.SerializeToString(),
            generation=self.snapshot.seq,
            pushes=[payload_of(event) for event in coalesce(self._events)] if self.pushes else [],
            steps=self._steps,
            writes=[*self._owed, *(self.writes if done else ())] if self.remembers else (),
            done=done,
            asked=self.asked,
            answer=self._answer,
        )
        self._events, self._steps, self._owed = [], [], []
        return progress


def _unfit(event: Event) -> str | None:
    match event:
        case TaskArtifactUpdateEvent():
            return unfit_artifact(event.artifact) or _unfit_metadata(event)
        case TaskStatusUpdateEvent():
            return _unfit_status(event.status) or _unfit_metadata(event)
        case Message():
            return unfit_message(event)
        case _:
            said = [unfit_message(message) for message in event.history]
            made = [unfit_artifact(artifact) for artifact in event.artifacts]
            found = (_unfit_status(event.status), _unfit_metadata(event), *said, *made)
            return next((problem for problem in found if problem), None)


def _unfit_status(status: TaskStatus) -> str | None:
    return unfit_message(status.message) if status.HasField("message") else None


def _unfit_metadata(event: Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> str | None:
    return unfit(event.metadata) if event.HasField("metadata") else None
