"""The engine of one process: every turn is an asyncio task of its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from a2a.types import Message, SendMessageRequest, Task, TaskState, TaskStatus
from a2a.utils.errors import A2AError, TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError

from retinue_memory.errors import LimitError, RetinueError

from .engine import Engine, Submission, TurnHandle
from .events import Numbered, payload_of
from .executor import TurnExecutor
from .recorder import RECORD_WITHIN_S, Commits
from .run import Run
from .scheduler import Scheduler
from .serial_queues import SerialQueues
from .store.tasks import Tasks
from .store.turns import Turns
from .subscribers import Subscriber, TaskSubscribers
from .task_state import cancel_task
from .timer import CoalescingTimer
from .turn import TERMINAL, Accepted, Caller, DueWrite, Progress

logger = logging.getLogger(__name__)


class LocalTurn(TurnHandle):
    """A turn of this process."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def result(self) -> Awaitable[Numbered[Task] | Message]:
        return self._run.outcome.wait()

    def result_now(self) -> Numbered[Task] | Message | None:
        outcome = self._run.outcome.outcome
        return None if outcome is None else outcome.result()

    def subscribe(self, *, after: int = 0) -> Subscriber:
        return self._run.publication.subscribe(after)

    def acknowledge(self) -> bool:
        return self._run.acknowledge()


class LocalEngine(Engine):
    """Runs turns on the event loop that created it."""

    def __init__(
        self,
        turns: Turns,
        tasks: Tasks,
        executors: Mapping[str, TurnExecutor],
        *,
        committed: Callable[[Progress | None, Sequence[DueWrite]], None],
        max_turns: int = 10_000,
        max_waiting: int = 32,
    ) -> None:
        """`executors` are by agent name. `committed` is called after each commit that has something to deliver, with its
        memory writes; without a Progress, there is a push."""
        self._turns = turns
        self._tasks = tasks
        self._executors = executors
        self._committed = committed
        self._queues = SerialQueues(max_turns=max_turns, max_waiting=max_waiting)
        self._subscribers = TaskSubscribers()
        commits = Commits(turns, CoalescingTimer(RECORD_WITHIN_S), committed)
        self._scheduler = Scheduler(turns, executors, commits, self._queues, self._subscribers)
        self._stop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for accepted in await self._turns.recover():
            turn = accepted.turn
            if turn.caller.agent in self._executors:
                self._scheduler.enqueue(accepted)
            else:
                logger.warning("task %s: there is no agent %s any more; it waits", turn.task_id, turn.caller.agent)

    async def stop(self, grace: float) -> None:
        self._stop_task = self._stop_task or asyncio.create_task(self._stop(grace))
        await asyncio.shield(self._stop_task)

    def hurry(self) -> None:
        self._queues.idle.set()

    async def _stop(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queues.idle.wait(), grace)
        await self._scheduler.stop()
        self._subscribers.close_all()

    async def submit(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Submission:
        if self._stop_task is not None:
            raise LimitError("the server is stopping: try again", retry_after=5)
        key = (caller.agent, caller.tenant, caller.owner(user), request.message.task_id or request.message.context_id)
        self._queues.admit(key)
        enqueued = False
        try:
            accepted = await self._turns.accept(caller, request, user=user, extensions=extensions)
            if accepted.replay:
                found = self._run_of(accepted)
                return Submission(accepted, None if found is None else LocalTurn(found))
            enqueued = True
            return Submission(accepted, LocalTurn(self._scheduler.enqueue(accepted, key)))
        except asyncio.CancelledError:
            self._scheduler.spawn(self._submit_again(caller, request, user, extensions))
            raise
        finally:
            if not enqueued:
                self._queues.release(key)

    async def _submit_again(
        self, caller: Caller, request: SendMessageRequest, user: str | None, extensions: frozenset[str]
    ) -> None:
        """Run the message of a caller who left while it was being stored: if it was stored, it must be run."""
        try:
            accepted = await self._turns.accept(caller, request, user=user, extensions=extensions)
        except (A2AError, RetinueError) as error:
            logger.info("a message whose sender left is refused: %s", error)
            return
        if not (accepted.over or self._scheduler.stopping) and self._run_of(accepted) is None:
            self._scheduler.enqueue(accepted)

    def _run_of(self, accepted: Accepted) -> Run | None:
        turn = accepted.turn
        return next((run for run in self._queues.of_task(turn.task_id) if run.turn.id == turn.id), None)

    def live(self, caller: Caller, task_id: str) -> Numbered[Task] | None:
        run = self._queues.find(caller, task_id)
        return None if run is None else run.publication.shown()

    async def commit_states(self, caller: Caller) -> None:
        await asyncio.gather(*(run.commit_state() for run in self._queues.visible_to(caller)))

    def active_tasks(self) -> frozenset[str]:
        return self._queues.task_ids()

    def start_pushing(self, caller: Caller, task_id: str) -> None:
        for run in self._queues.of_task(task_id):
            run.recorder.start_pushing()

    async def disown(self, tenant: str, owner: str, *, cancel: bool) -> None:
        runs = [run for run in self._queues if (run.turn.caller.tenant, run.turn.owner) == (tenant, owner)]
        for run in runs:
            run.recorder.drop_writes()
        if cancel:
            outcomes = (self.cancel(replace(run.turn.caller, visible_owner=owner), run.turn.task_id) for run in runs)
            await asyncio.gather(*outcomes, return_exceptions=True)

    async def cancel(self, caller: Caller, task_id: str) -> Numbered[Task]:
        run = self._queues.find(caller, task_id)
        if run is None:
            return await self._cancel_resting(caller, task_id)
        self._scheduler.cancel(run)
        await run.closed.wait()
        if not run.state.committed:
            return await self._cancel_resting(caller, task_id)
        if not run.task_ended:
            return await self.cancel(
                caller, task_id
            )  # only the turn ended: the task rests, or another turn continues it
        task = run.publication.shown()
        if task.event.status.state != TaskState.TASK_STATE_CANCELED:
            raise TaskNotCancelableError(f"task {task_id} ended before it could be canceled")
        return task

    async def _cancel_resting(self, caller: Caller, task_id: str) -> Numbered[Task]:
        """Cancel a task that has no turn."""
        found = await self._tasks.get(caller, task_id)
        if self._queues.find(caller, task_id) is not None:
            return await self.cancel(caller, task_id)  # a message came while the store was read
        if found is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        task, generation = found
        if task.status.state in TERMINAL:
            raise TaskNotCancelableError(f"task {task_id} has ended")
        status = TaskStatus()
        status.CopyFrom(task.status)
        event = cancel_task(task, generation)
        writes = self._executors[caller.agent].pending_writes(task, caller.tenant, ())
        due = await self._turns.end(caller, task, status, payload_of(event.event), writes)
        if due is None:
            return await self.cancel(caller, task_id)  # it has changed since it was read
        self._committed(None, due)
        self._subscribers.publish(event)
        return Numbered(task, event.generation)

    async def subscribe(self, caller: Caller, task_id: str) -> tuple[Numbered[Task], Subscriber]:
        subscriber = Subscriber(partial(self._current, caller, task_id))
        self._subscribers.add(task_id, subscriber)  # before the task is read, so that no event is missed
        try:
            task = await self._acknowledged(caller, task_id)
            if task.event.status.state in TERMINAL:
                raise UnsupportedOperationError(f"task {task_id} has ended")
        except BaseException:
            self._subscribers.remove(task_id, subscriber)
            raise
        subscriber.start_after(task.generation)
        return task, subscriber

    def unsubscribe(self, task_id: str, subscriber: Subscriber) -> None:
        self._subscribers.remove(task_id, subscriber)

    async def _acknowledged(self, caller: Caller, task_id: str) -> Numbered[Task]:
        """Return the task for somebody who will look for its end. Raises TaskNotFoundError."""
        while True:
            run = self._queues.find(caller, task_id)
            if run is None:
                found = await self._tasks.get(caller, task_id)
                if self._queues.find(caller, task_id) is not None:
                    continue  # a message came while the store was read
                if found is None:
                    raise TaskNotFoundError(f"there is no task {task_id}")
                return found
            if run.acknowledge() or run.closed.is_set():
                return run.publication.shown()
            await run.closed.wait()

    async def _current(self, caller: Caller, task_id: str) -> Numbered[Task]:
        found = self.live(caller, task_id) or await self._tasks.get(caller, task_id)
        if found is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        return found
