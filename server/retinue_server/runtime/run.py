"""A run: one attempt at a turn, from its acceptance to its final commit. It is the event queue of the turn's executor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from a2a.server.events import EventQueue
from a2a.types import Message, Role, Task, TaskArtifactUpdateEvent, TaskState, TaskStatusUpdateEvent
from a2a.utils.errors import InternalError, InvalidAgentResponseError

from retinue_memory.clock import now_us
from retinue_server.a2a.json_values import event_problem

from .events import Event, Numbered, Snapshot, only_describes
from .executor import TurnExecutor
from .outcome import Outcome, PendingOutcome
from .publication import Publication
from .recorder import Commits, Recorder
from .run_state import TRANSITIONS, RunState
from .timer import CoalescingTimer
from .turn import RESTING, TERMINAL, Accepted, Continues, MemoryWrite

logger = logging.getLogger(__name__)


class Run(EventQueue):
    """One attempt at a turn. Its lifecycle is `state`, its answer `outcome`, the task and its events `publication`, its
    commits `recorder`."""

    def __init__(
        self,
        accepted: Accepted,
        executor: TurnExecutor,
        commits: Commits,
        pieces_timer: CoalescingTimer,
        publish: Callable[[Numbered[Event]], None],
    ) -> None:
        """`publish` is called with every event that changes the task."""
        self.turn = turn = accepted.turn
        self.writes: list[MemoryWrite] = []
        """The memory writes that come due with the end of the turn."""
        self.outcome = PendingOutcome()
        self.closed = asyncio.Event()
        """Set once the engine is done with the run."""
        # a database of an earlier version may count from 0
        self._snapshot = Snapshot(accepted.task, max(accepted.generation, 1))
        self._snapshot.add_message(turn.request.message)
        self.recorder = Recorder(turn, self._snapshot, commits, pushes=accepted.pushes, failed=self._stop_unrecorded)
        new_task = turn.new_task and turn.attempt == 1
        self.publication = Publication(self._snapshot, self.recorder, pieces_timer, publish, new_task=new_task)
        self._executor = executor
        self._state = RunState.WAITING
        self._acknowledged = not new_task or turn.request.configuration.return_immediately
        self._work: asyncio.Task[None] | None = None
        self._answer: Message | None = None
        self._last_event: Task | TaskStatusUpdateEvent | None = None

    @property
    def state(self) -> RunState:
        return self._state

    @property
    def task_ended(self) -> bool:
        """Whether the final commit is done and ended the task."""
        return self._state.committed and self._snapshot.task.status.state in TERMINAL

    def acknowledge(self) -> bool:
        """Note that somebody was given the task's id and may look for the answer there: a direct message becomes the end of
        the task then. Returns False if it is too late: a direct message is being committed, and nobody will find the task.
        """
        if self._answer is not None and not self._state.stoppable:
            return False
        self._acknowledged = True
        return True

    # -- transitions ---------------------------------------------------------------------------------------------------------

    def _move(self, state: RunState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"task {self.turn.task_id}: a run cannot go from {self._state.name} to {state.name}")
        self._state = state

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which ends the run, in an asyncio task."""
        self._move(RunState.RUNNING)
        self._work = asyncio.create_task(work)

    def resume(self, task: Numbered[Task]) -> None:
        """Take over the task as the turns before this one left it."""
        self._snapshot.load(task.event, task.generation)
        self._snapshot.add_message(self.turn.request.message)

    def request_cancel(self) -> bool:
        """Tell the run to stop. Returns False if it was told before, or cannot be stopped any more."""
        if not self._state.stoppable or self._state is RunState.CANCELING:
            return False
        self._move(RunState.CANCELING)
        self.interrupt()
        return True

    def interrupt(self) -> None:
        """Cancel the asyncio task, unless the final commit has started."""
        if self._work is not None and self._state.stoppable:
            self._work.cancel()

    async def wait_for_work(self, timeout_s: float) -> bool:
        """Wait for the end of the asyncio task. Returns False if it is still running."""
        if self._work is None:
            return True
        await asyncio.wait((self._work,), timeout=timeout_s)
        return self._work.done()

    def give_up(self, state: RunState, error: Exception) -> None:
        """Stop without a final commit: STALE, FAILED or ABANDONED. `error` is the outcome, unless there is one.

        Does nothing if the run is in a final state.
        """
        if not self._state.final:
            self._move(state)
            self.outcome.resolve(Outcome(error=error))
            self.recorder.close()
            self.publication.close()

    def close(self) -> None:
        """Finish the run after everything else. The subscribers of one that CONTINUES stay, for its successor."""
        if not self._state.final:
            self.give_up(RunState.FAILED, InternalError("the task stopped"))
        self.recorder.close()
        if self._state is not RunState.CONTINUES:
            self.publication.close()
        self.closed.set()

    def continue_with(self, successor: Run) -> None:
        """Hand whoever waits or subscribes over to the run that continues the task."""
        self.publication.continue_with(successor.publication)
        self.outcome.follow(successor.outcome)

    def _stop_unrecorded(self, error: BaseException) -> None:
        logger.error("task %s: its progress could not be stored, stopping: %s", self.turn.task_id, error)
        if self._work is not None:
            self._work.cancel()

    # -- the executor's events -----------------------------------------------------------------------------------------------

    async def enqueue_event(self, event: Event) -> None:
        """Apply, number and publish an event. A state that ends or interrupts the task is published after its commit.

        Raises InvalidAgentResponseError if the event does not fit the task, cannot be stored, or comes after the end.
        """
        if self._executor.events_need_checks and (problem := event_problem(event)):
            raise InvalidAgentResponseError(f"the agent's event cannot be stored: {problem}")
        if not self._state.publishing:
            raise InvalidAgentResponseError("the agent published an event after the end of its turn")
        if self._answer is not None:
            raise InvalidAgentResponseError(
                "the agent published an event after its message, which must be the only one"
            )
        if isinstance(event, Message):
            if self.publication.started:
                raise InvalidAgentResponseError(
                    "the agent published a message after another event; it must be the only one"
                )
            event.context_id = self.turn.context_id
            self._answer = event
            return
        if not self.publication.started:
            described = event if only_describes(event) else None
            self.publication.announce(described)
            if described is not None:
                return
        if isinstance(event, TaskArtifactUpdateEvent):
            self.publication.publish_artifact(event)
        else:
            await self._publish_status(event)

    async def _publish_status(self, event: Task | TaskStatusUpdateEvent) -> None:
        self.publication.publish_held()
        asked = event.status.state in RESTING
        self.recorder.set_asked(asked)
        if not asked:
            self.publication.publish(event)
            if self._state is RunState.ASKED:
                self._move(RunState.RUNNING)
            return
        event = self.publication.apply_uncommitted(event)
        if event.status.state in TERMINAL:
            await self._finish(event)
            return
        if self._state is RunState.RUNNING:
            self._move(RunState.ASKED)
        self.recorder.add_event(event)
        await self.recorder.flush()
        self.publication.publish_committed(event)
        self.outcome.resolve(Outcome(task=self._snapshot.copy()))

    async def commit_state(self) -> None:
        """Commit the task's state if it is stored as another, unless the turn is about to end or to interrupt it."""
        await self.recorder.flush_if(lambda: self._state is RunState.RUNNING)

    # -- the end of the turn -------------------------------------------------------------------------------------------------

    async def end_task(self, state: TaskState, reason: str = "") -> None:
        """End the task in a terminal state, with a reason for its owner if there is one."""
        message = None
        if reason:
            message = Message(message_id=f"{self.turn.task_id}/{self.turn.id}/status", role=Role.ROLE_AGENT)
            message.parts.add(text=reason)
        await self._end_task(state, message)

    async def finish(self) -> None:
        """Commit the end of the turn, unless its last event did. The task keeps its state, but a direct message becomes the
        end of a task whose id somebody knows."""
        if self._state.final:
            return
        if self._answer is not None and self._acknowledged:
            await self._end_task(TaskState.TASK_STATE_COMPLETED, self._answer)
        else:
            await self._finish(None)

    async def _end_task(self, state: TaskState, message: Message | None) -> None:
        turn = self.turn
        event = TaskStatusUpdateEvent(task_id=turn.task_id, context_id=turn.context_id)
        event.status.state = state
        event.status.timestamp.FromMicroseconds(now_us())
        if message is not None:
            event.status.message.CopyFrom(message)
            event.status.message.task_id, event.status.message.context_id = turn.task_id, turn.context_id
        self._answer = None
        await self.enqueue_event(event)

    async def _finish(self, event: Task | TaskStatusUpdateEvent | None) -> None:
        if self._state is not RunState.FINISHING:  # else a commit failed, and is tried again
            self.publication.publish_held()
            self._move(RunState.FINISHING)
        if event is not None:
            self._last_event = event
            self.recorder.add_event(event)
            task = self._snapshot.task
            if len(task.history) > 1:  # more than the message that is answered now
                self.writes += self._executor.pending_writes(task, self.turn.caller.tenant, self.writes)
        try:
            await self.recorder.finish(self._answer, self.writes)
            self._move(RunState.ENDED)
        except Continues:
            # the task goes on with the next message: what would have completed it leaves it working
            self._snapshot.task.status.state = TaskState.TASK_STATE_WORKING
            if self._last_event is not None:
                self._last_event.status.CopyFrom(self._snapshot.task.status)
            await self.recorder.finish(self._answer, self.writes)
            self._move(RunState.CONTINUES)
        self.publication.publish_committed(self._last_event, self._answer)
        if self._state is RunState.ENDED:
            if self._answer is not None:
                self.outcome.resolve(Outcome(message=self._answer))
            else:
                self.outcome.resolve(Outcome(task=Numbered(self._snapshot.task, self._snapshot.generation)))
