"""The scheduler: it starts the first run of each serial queue, and sees each run to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from a2a.types import Task, TaskState
from a2a.utils.errors import A2AError, InternalError, UnsupportedOperationError

from retinue_memory.errors import RetinueError

from . import execution
from .events import Numbered
from .executor import TurnExecutor
from .outcome import Outcome
from .pieces import WINDOW_S
from .recorder import Commits
from .run import Run
from .run_state import RunState
from .serial_queues import LimitKey, SerialQueues
from .store.turns import Turns
from .subscribers import TaskSubscribers
from .timer import CoalescingTimer
from .turn import TERMINAL, Accepted, StaleAttempt, TurnState

logger = logging.getLogger(__name__)

_MAX_CRASHES = 3
_CANCEL_TIMEOUT_S = 0.4  # then the task ends without its executor
_STOP_TIMEOUT_S = 2.0


class Scheduler:
    """Runs the turns of one process on its event loop."""

    def __init__(
        self,
        turns: Turns,
        executors: Mapping[str, TurnExecutor],
        commits: Commits,
        queues: SerialQueues,
        subscribers: TaskSubscribers,
    ) -> None:
        """`executors` are by agent name."""
        self._turns = turns
        self._executors = executors
        self._commits = commits
        self._queues = queues
        self._subscribers = subscribers
        self._pieces_timer = CoalescingTimer(WINDOW_S)
        self._without_successor: dict[str, list[Run]] = {}
        """By task id, runs that CONTINUE with a message whose run does not exist yet."""
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False

    def enqueue(self, accepted: Accepted, key: LimitKey | None = None) -> Run:
        """Create the run of an accepted turn, and start it if it is the first of its serial queue."""
        turn = accepted.turn
        executor = self._executors[turn.caller.agent]
        run = Run(accepted, executor, self._commits, self._pieces_timer, self._subscribers.publish)
        is_first = self._queues.add(run, key)
        for predecessor in self._without_successor.pop(turn.task_id, ()):
            predecessor.continue_with(run)
        if is_first and turn.attempt == 1:
            run.start(self._work(run))
        elif is_first:  # the store knows it as one that waits
            self.spawn(self._start_first(run))
        return run

    def cancel(self, run: Run) -> None:
        """Have a run end as CANCELED, unless that has been asked for or it is too late."""
        if run.request_cancel():
            self.spawn(self._end_canceled(run))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background; `stop` waits for it."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def stop(self) -> None:
        """Interrupt what runs, and leave it to the next start."""
        self._stopping = True
        for run in self._queues:
            run.interrupt()
        await asyncio.gather(*(run.wait_for_work(_STOP_TIMEOUT_S) for run in self._queues))
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(self._leave(run) for run in list(self._queues)))

    @property
    def stopping(self) -> bool:
        return self._stopping

    async def _start_first(self, run: Run) -> None:
        """Start a run that waited, with the task as it is by now."""
        turn = run.turn
        try:
            if not turn.new_task:
                found = await self._turns.reload(turn)
                if found is None or found.event.status.state in TERMINAL:
                    await self._turns.mark(turn, TurnState.DONE)
                    self._refuse(run, found)
                    self._end(run)
                    return
                if run.state is not RunState.WAITING:
                    return
                run.resume(found)
            await self._turns.mark(turn, TurnState.RUNNING)
        except Exception:
            logger.exception("task %s could not be started, giving up until the next start", turn.task_id)
            self._end(run)
            return
        if run.state is RunState.WAITING and not self._stopping:
            run.start(self._work(run))

    async def _work(self, run: Run) -> None:
        """Execute a run, and end it whatever happens."""
        turn = run.turn
        try:
            try:
                if turn.crashes >= _MAX_CRASHES:
                    reason = f"the server stopped {_MAX_CRASHES} times while it worked on this task"
                    await run.end_task(TaskState.TASK_STATE_FAILED, reason)
                else:
                    await execution.execute(run, self._executors[turn.caller.agent], self._turns)
            except asyncio.CancelledError:
                if run.state is RunState.CANCELING:
                    await execution.cancel(run, self._executors[turn.caller.agent])
                elif not self._stopping:
                    error = InternalError("the task stopped: its progress could not be stored")
                    run.give_up(RunState.FAILED, error)
            except StaleAttempt as stale:
                logger.warning("task %s: attempt %d is stale, stopping: %s", turn.task_id, turn.attempt, stale)
                await self._supersede(run)
        except Exception as error:
            logger.exception("task %s: its end could not be stored, giving up until the next start", turn.task_id)
            self._fail(run, error)
        finally:
            if not self._stopping:
                self._end(run)

    async def _supersede(self, run: Run) -> None:
        await self._turns.mark(run.turn, TurnState.DONE)  # does nothing if another attempt owns the turn
        found = await self._turns.reload(run.turn)
        if found is None or found.event.status.state in TERMINAL:
            self._refuse(run, found)
        else:
            run.give_up(RunState.STALE, InternalError("the task goes on elsewhere"))

    async def _end_canceled(self, run: Run) -> None:
        """Wait for a run that is CANCELING, and end its task without the executor if that does not stop."""
        stopped = await run.wait_for_work(_CANCEL_TIMEOUT_S)
        if not run.state.stoppable:
            return
        if not stopped:
            logger.warning("task %s: its executor does not stop; the task ends without it", run.turn.task_id)
        try:
            await run.end_task(TaskState.TASK_STATE_CANCELED)
        except Exception as error:
            logger.exception("task %s: its cancellation could not be stored", run.turn.task_id)
            self._fail(run, error)
        self._end(run)

    def _end(self, run: Run) -> None:
        """Remove a run from its queue, and start the next."""
        if run not in self._queues:
            return
        task_id = run.turn.task_id
        was_first = self._queues.remove(run)
        waiting = list(self._queues.of_task(task_id))
        if run.task_ended:
            for late in waiting:
                self._queues.remove(late)
                self.spawn(self._turns.mark(late.turn, TurnState.DONE))
                self._refuse(late, None)
                late.close()
        elif run.state.committed and waiting:
            waiting[0].resume(run.publication.shown())
        run.close()
        if run.state is RunState.CONTINUES:
            if waiting:
                run.continue_with(waiting[0])
            else:
                self._without_successor.setdefault(task_id, []).append(run)
        if was_first and (following := self._queues.first(run.turn.queue_key)) is not None:
            self.spawn(self._start_first(following))

    def _refuse(self, run: Run, task: Numbered[Task] | None) -> None:
        """Give up a run whose task ended before its turn; `task` is for those who have subscribed to the task since."""
        error = UnsupportedOperationError(f"task {run.turn.task_id} ended before this message's turn")
        run.give_up(RunState.STALE, error)
        if task is not None:
            self._subscribers.publish(task)

    def _fail(self, run: Run, error: Exception) -> None:
        known = isinstance(error, RetinueError | A2AError)
        run.give_up(RunState.FAILED, error if known else InternalError("internal error"))

    async def _leave(self, run: Run) -> None:
        """Leave a run to the next start, with all that it did."""
        state, turn = run.state, run.turn
        stopping = InternalError("the server is stopping; the task goes on when it is back")
        if not state.committed:
            try:
                if state.stoppable:
                    run.publication.publish_held()
                    await run.recorder.flush()
                # marked as waiting, because an orderly stop is no crash
                await self._turns.mark(turn, TurnState.DONE if state is RunState.ASKED else TurnState.WAITING)
            except (StaleAttempt, RetinueError) as error:
                logger.warning("task %s: its latest progress is lost: %s", turn.task_id, error)
            run.give_up(RunState.ABANDONED, stopping)
        elif state is RunState.CONTINUES:
            run.outcome.resolve(Outcome(error=stopping))
            run.publication.close()
        run.close()
        self._queues.remove(run)
