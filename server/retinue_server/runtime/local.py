"""The engine of one process: every turn is an asyncio task, every lane a queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.types import (
    Message,
    SendMessageRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
)
from a2a.utils.errors import (
    A2AError,
    InternalError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from retinue_memory.errors import LimitError, RetinueError
from retinue_server.a2a.executor import JOURNAL, TURN, A2AExecutor

from .engine import Engine, Submission
from .events import Event, payload_of
from .journal import TurnJournal
from .run import CURRENT, Run
from .store.tasks import Tasks
from .store.turns import Turns
from .subscribers import Subscriber
from .task_state import canceled, owed_at_end
from .timer import CoalescingTimer
from .turn import (
    RESTING,
    TERMINAL,
    Accepted,
    Caller,
    DueWrite,
    Progress,
    StaleAttempt,
    TurnState,
)

logger = logging.getLogger(__name__)

_MOST_CRASHES = 3
_CANCEL_WITHIN = 0.4
"""Seconds that an executor gets to stop before its task is ended without it."""
_LOG_EVERY = 0.05
"""Seconds that an event waits for others before it is logged. A shorter turn logs its events in its finishing commit."""
_COMMIT_WITHIN = 30.0
"""Seconds that the commit of a cancellation may take, on a disk that is slow: it must not be cut off."""
_STOP_WITHIN = 2.0
"""Seconds that executors get, at the end of a stop's grace, before they are left behind."""


class LocalEngine(Engine):
    """Runs turns on the event loop that made it.

    `executors` are by agent name. `committed` is told of each commit that has something leave the server, with the memory
    writes that it owes; None: a push.
    """

    def __init__(
        self,
        turns: Turns,
        tasks: Tasks,
        executors: Mapping[str, AgentExecutor],
        *,
        committed: Callable[[Progress | None, Sequence[DueWrite]], None],
        most: int = 10_000,
        most_waiting: int = 32,
    ) -> None:
        self._turns = turns
        self._tasks = tasks
        self._committed = committed
        self._executors = executors
        self._most = most
        self._most_waiting = most_waiting
        self._lanes: dict[tuple[str, str, str, str], deque[Run]] = {}
        self._runs: dict[str, list[Run]] = {}
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._total = 0
        self._changes = 0
        """How many turns began, and tasks ended without one: what a read of the store may have missed."""
        self._orphans: dict[str, list[Run]] = {}
        self._watchers: dict[str, list[Subscriber]] = {}
        self._stop_begun: asyncio.Task[None] | None = None
        self._stopping = False
        """Whether the grace is over."""
        self._idle = asyncio.Event()
        """Whether a stop need not wait for turns: there are none, or it was told to hurry."""
        self._idle.set()
        self._background: set[asyncio.Task[None]] = set()
        self._reminder = CoalescingTimer(_LOG_EVERY)

    async def start(self) -> None:
        for accepted in await self._turns.recover():
            turn = accepted.turn
            if turn.caller.agent not in self._executors:
                logger.warning("task %s: waits until there is an agent %s again", turn.task_id, turn.caller.agent)
                continue
            self._total += 1
            self._line_up(accepted)

    async def stop(self, grace: float) -> None:
        self._stop_begun = self._stop_begun or asyncio.create_task(self._stop(grace))
        await asyncio.shield(self._stop_begun)

    def hurry(self) -> None:
        self._idle.set()

    async def _stop(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        self._stopping = True
        left = [run for runs in self._runs.values() for run in runs]
        for run in left:
            if run.work is not None and not run.finishing:
                run.work.cancel()
        if working := [run.work for run in left if run.work is not None]:
            await asyncio.wait(working, timeout=_STOP_WITHIN)
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(self._leave(run) for run in left))
        for subscriber in [one for watchers in self._watchers.values() for one in watchers]:
            subscriber.close()

    async def _leave(self, run: Run) -> None:
        """Leave a run to the next start, with all that it did."""
        if not run.ended:
            try:
                if not run.finishing:
                    await run.flush()
                # stopped in order: not a crash
                await self._turns.mark(run.turn, TurnState.DONE if run.asked else TurnState.WAITING)
            except (StaleAttempt, RetinueError) as error:
                logger.warning("task %s: what it did last is lost: %s", run.turn.task_id, error)
            self._fail(run, InternalError("the server is stopping; the task goes on when it is back"))
        run.over.set()

    async def submit(
        self, caller: Caller, request: SendMessageRequest, *, user: str | None, extensions: frozenset[str] = frozenset()
    ) -> Submission:
        named = request.message.task_id or request.message.context_id
        key = (caller.agent, caller.tenant, caller.owner(user), named)
        self._admit(key)
        self._total += 1
        self._counts[key] += 1
        kept = False
        try:
            accepted = await self._turns.accept(caller, request, user=user, extensions=extensions)
            if accepted.replay:
                runs = self._runs.get(accepted.turn.task_id, ())
                return Submission(accepted, next((run for run in runs if run.turn.id == accepted.turn.id), None))
            kept = True
            return Submission(accepted, self._line_up(accepted, key))
        except asyncio.CancelledError:
            self._note(self._keep(caller, request, user, extensions))
            raise
        finally:
            if not kept:
                self._total -= 1
                self._release(key)

    async def _keep(
        self, caller: Caller, request: SendMessageRequest, user: str | None, extensions: frozenset[str]
    ) -> None:
        """Run the message of a caller who left while it was being stored: it may be stored, and then it has to be run."""
        try:
            accepted = await self._turns.accept(caller, request, user=user, extensions=extensions)
        except (A2AError, RetinueError) as error:
            logger.info("a message whose sender left is refused: %s", error)
            return
        turn = accepted.turn
        known = any(run.turn.id == turn.id for run in self._runs.get(turn.task_id, ()))
        if not (known or accepted.over or self._stopping):
            self._total += 1
            self._line_up(accepted)

    def _admit(self, key: tuple[str, ...]) -> None:
        if self._stop_begun is not None:
            raise LimitError("the server is stopping: try again", retry_after=5)
        if self._total >= self._most:
            raise LimitError(f"{self._most} messages are being worked on or wait: try again", retry_after=1)
        if key[-1] and self._counts[key] >= self._most_waiting:
            raise LimitError(
                f"{self._most_waiting} messages wait in {key[-1]}: let some of them be answered first", retry_after=1
            )

    def _line_up(self, accepted: Accepted, key: tuple[str, ...] | None = None) -> Run:
        turn = accepted.turn
        executor = self._executors[turn.caller.agent]
        owed = partial(owed_at_end, executor, turn.caller.tenant)
        run = Run(accepted, self._turns, self._tell_watchers, self._committed, self._reminder, owed)
        run.key = key
        self._changes += 1
        self._runs.setdefault(turn.task_id, []).append(run)
        self._idle.clear()
        for orphan in self._orphans.pop(turn.task_id, ()):
            self._adopt(orphan, run)
        lane = self._lanes.setdefault(turn.lane, deque())
        lane.append(run)
        if len(lane) == 1:
            if turn.attempt > 1:  # the store knows it as one that waits
                self._note(self._next(run))
            else:
                self._begin(run)
        return run

    def live(self, caller: Caller, task_id: str) -> Task | None:
        run = self._reachable(caller, task_id)
        return None if run is None else run.shown()

    def at_work(self) -> frozenset[str]:
        return frozenset(self._runs)

    def pushes(self, caller: Caller, task_id: str) -> None:
        for run in self._runs.get(task_id, ()):
            run.pushes = True

    async def disown(self, tenant: str, owner: str, *, cancel: bool) -> None:
        runs = [run for runs in self._runs.values() for run in runs]
        theirs = [run for run in runs if (run.turn.caller.tenant, run.turn.owner) == (tenant, owner)]
        for run in theirs:
            run.remembers = False
        if cancel:
            outcomes = (self.cancel(replace(run.turn.caller, visible_owner=owner), run.turn.task_id) for run in theirs)
            await asyncio.gather(*outcomes, return_exceptions=True)

    async def cancel(self, caller: Caller, task_id: str) -> Task:
        run = self._reachable(caller, task_id)
        if run is None:
            return await self._cancel_parked(caller, task_id)
        if not (run.finishing or run.canceling):
            run.canceling = True
            if run.work is not None:
                run.work.cancel()
            self._note(self._cancel(run))
        await run.over.wait()
        if not run.ended:  # the task ended without it
            return await self._cancel_parked(caller, task_id)
        if run.snapshot.task.status.state not in TERMINAL:
            return await self.cancel(caller, task_id)  # its turn ended, not the task: it waits, or another turn goes on
        if run.snapshot.task.status.state != TaskState.TASK_STATE_CANCELED:
            raise TaskNotCancelableError(f"task {task_id} ended before it could be canceled")
        return run.snapshot.copy()

    async def _cancel(self, run: Run) -> None:
        """See to it that a run which is told to stop does, or is ended without its executor."""
        if run.work is not None:
            await asyncio.wait((run.work,), timeout=_CANCEL_WITHIN)
            if not run.finishing:
                logger.warning("task %s: its executor does not stop; the task ends without it", run.turn.task_id)
        if run.finishing:
            return
        try:
            await run.cancel()
        except Exception as error:
            logger.exception("task %s: its cancellation could not be stored", run.turn.task_id)
            self._fail(run, error if isinstance(error, RetinueError) else InternalError("internal error"))
        self._over(run)

    async def subscribe(self, caller: Caller, task_id: str) -> tuple[Task, Subscriber]:
        while True:
            changes = self._changes
            task = self.live(caller, task_id) or await self._tasks.get(caller, task_id)
            if (run := self._reachable(caller, task_id)) is not None:
                if run.vanishes and not run.over.is_set():
                    await run.over.wait()
                    continue
                run.known = True
                task = run.shown()
            elif changes != self._changes:
                continue  # the task may have changed while the store was read
            if task is None:
                raise TaskNotFoundError(f"there is no task {task_id}")
            if task.status.state in TERMINAL:
                raise UnsupportedOperationError(f"task {task_id} has ended")
            subscriber = Subscriber(partial(self._current, caller, task))
            self._watchers.setdefault(task_id, []).append(subscriber)
            return task, subscriber

    def unsubscribe(self, task_id: str, subscriber: Subscriber) -> None:
        watchers = self._watchers.get(task_id, [])
        if subscriber in watchers:
            watchers.remove(subscriber)
        if not watchers:
            self._watchers.pop(task_id, None)

    # -- the life of a run ---------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        run.work = asyncio.create_task(self._work(run))

    async def _work(self, run: Run) -> None:
        try:
            if run.turn.crashes >= _MOST_CRASHES:
                await run.fail(f"the server stopped {_MOST_CRASHES} times while it worked on this task")
            else:
                await self._execute(run)
        except asyncio.CancelledError:
            if run.canceling:
                await self._canceled(run)
            elif not self._stopping:
                self._fail(run, InternalError("the task stopped: its progress could not be stored"))
        except StaleAttempt as error:
            logger.warning("task %s: this run has no say in it any more: %s", run.turn.task_id, error)
            await self._turns.mark(run.turn, TurnState.DONE)  # no effect where another attempt has the turn
            found = await self._turns.reload(run.turn)
            if found is None or found[0].status.state in TERMINAL:
                self._came_too_late(run, found)
            self._fail(run, InternalError("the task goes on elsewhere"))
        except Exception as error:
            logger.exception("task %s: its end could not be stored", run.turn.task_id)
            self._fail(run, error if isinstance(error, RetinueError | A2AError) else InternalError("internal error"))
        finally:
            if not self._stopping:
                self._over(run)

    async def _execute(self, run: Run) -> None:
        turn = run.turn
        CURRENT.set(run)
        resumed = turn.attempt > 1
        call = ServerCallContext(tenant=turn.caller.tenant, requested_extensions=set(turn.extensions))
        recorded = await self._turns.steps(turn) if resumed else {}
        call.state[JOURNAL] = TurnJournal(run, recorded)
        call.state[TURN] = turn
        context = RequestContext(
            call,
            turn.request,
            task_id=turn.task_id,
            context_id=turn.context_id,
            task=run.snapshot.copy() if resumed or not turn.new_task else None,
        )
        executor = self._executors[turn.caller.agent]
        if isinstance(executor, A2AExecutor) and turn.new_task and not resumed:
            run.announce()
        try:
            await executor.execute(context, run)
        except StaleAttempt:
            raise
        except Exception as error:
            logger.exception("task %s: the executor failed", turn.task_id)
            if not run.finishing:
                known = isinstance(error, A2AError | RetinueError)
                await run.fail(str(error) if known else "the agent failed unexpectedly; the server's log says why")
        await run.finish()

    async def _canceled(self, run: Run) -> None:
        executor = self._executors[run.turn.caller.agent]
        context = RequestContext(
            ServerCallContext(tenant=run.turn.caller.tenant),
            task_id=run.turn.task_id,
            context_id=run.turn.context_id,
            task=run.snapshot.copy(),
        )
        work = asyncio.create_task(executor.cancel(context, run))
        await asyncio.wait((work,), timeout=_CANCEL_WITHIN / 2)
        if run.finishing:
            await asyncio.wait((work,), timeout=_COMMIT_WITHIN)
        if not work.done():
            work.cancel()
            logger.warning("task %s: its executor's cancel does not end", run.turn.task_id)
        elif not work.cancelled() and (error := work.exception()) is not None:
            logger.warning("task %s: its executor's cancel failed: %r", run.turn.task_id, error)
        if not run.finishing:
            await run.cancel()

    def _over(self, run: Run) -> None:
        """Take the run off its lane and begin the next."""
        turn = run.turn
        lane = self._lanes.get(turn.lane)
        if lane is None or run not in lane:
            return
        was_first = lane[0] is run
        self._take_off(run, lane)
        behind = self._runs.get(turn.task_id, [])
        if run.ended and run.snapshot.task.status.state in TERMINAL:
            for doomed in list(behind):
                self._take_off(doomed, lane)
                self._note(self._turns.mark(doomed.turn, TurnState.DONE))
                self._fail(doomed, _too_late(doomed))
        elif run.ended and behind:
            behind[0].resume(run.snapshot.copy(), run.snapshot.seq)
        if run.continues:
            self._hand_over(run)
        else:
            self._fail(run, InternalError("the task stopped"))
        if not lane:
            del self._lanes[turn.lane]
        elif was_first:
            self._note(self._next(lane[0]))
        if not self._runs:
            self._idle.set()

    def _take_off(self, run: Run, lane: deque[Run]) -> None:
        task_id = run.turn.task_id
        lane.remove(run)
        self._runs[task_id].remove(run)
        if not self._runs[task_id]:
            del self._runs[task_id]
        run.over.set()
        self._total -= 1
        if run.key is not None:
            self._release(run.key)

    def _hand_over(self, run: Run) -> None:
        """The task goes on with another message: who waits for its end, and who listens, goes on with it."""
        heir = next(iter(self._runs.get(run.turn.task_id, ())), None)
        if heir is None:
            self._orphans.setdefault(run.turn.task_id, []).append(run)
        else:
            self._adopt(run, heir)

    def _adopt(self, orphan: Run, heir: Run) -> None:
        heir.subscribers.extend(orphan.subscribers)
        heir.settled.add_done_callback(partial(_pass_on, orphan))

    async def _next(self, run: Run) -> None:
        """Begin a run that waited, on the task as it is by now."""
        turn = run.turn
        try:
            if not turn.new_task:
                found = await self._turns.reload(turn)
                if found is None or found[0].status.state in TERMINAL:
                    await self._turns.mark(turn, TurnState.DONE)
                    self._came_too_late(run, found)
                    self._over(run)
                    return
                if run.canceling:
                    return
                run.resume(*found)
            await self._turns.mark(turn, TurnState.RUNNING)
        except Exception:
            logger.exception("task %s could not begin", turn.task_id)
            self._over(run)
            return
        if not (run.canceling or self._stopping):
            self._begin(run)

    # -- small things --------------------------------------------------------------------------------------------------

    async def _cancel_parked(self, caller: Caller, task_id: str) -> Task:
        task = await self._tasks.get(caller, task_id)
        if self._reachable(caller, task_id) is not None:
            return await self.cancel(caller, task_id)  # a message came while the store was read
        if task is None:
            raise TaskNotFoundError(f"there is no task {task_id}")
        if task.status.state in TERMINAL:
            raise TaskNotCancelableError(f"task {task_id} has ended")
        found = TaskStatus()
        found.CopyFrom(task.status)
        event = canceled(task)
        writes = owed_at_end(self._executors[caller.agent], caller.tenant, task)
        owed = await self._turns.end(caller, task, found, payload_of(event), writes)
        if owed is None:
            return await self.cancel(caller, task_id)  # it is not any more as it was found
        self._changes += 1
        self._committed(None, owed)
        self._tell_watchers(event)
        return task

    async def _current(self, caller: Caller, task: Task) -> Task:
        return self.live(caller, task.id) or await self._tasks.get(caller, task.id) or task

    def _reachable(self, caller: Caller, task_id: str) -> Run | None:
        for run in self._runs.get(task_id, ()):
            turn = run.turn
            same = (turn.caller.agent, turn.caller.tenant) == (caller.agent, caller.tenant)
            if same and caller.visible_owner in (None, turn.owner):
                return run
        return None

    def _tell_watchers(self, event: Event) -> None:
        if not self._watchers or isinstance(event, Message):
            return
        task_id = event.id if isinstance(event, Task) else event.task_id
        for subscriber in self._watchers.get(task_id, ()):
            subscriber.put(event)
            if not isinstance(event, TaskArtifactUpdateEvent) and event.status.state in RESTING:
                subscriber.close()

    def _came_too_late(self, run: Run, found: tuple[Task, int] | None) -> None:
        """Tell whoever sent the message that the task had ended, and whoever listens to it since."""
        self._fail(run, _too_late(run))
        if found is not None:
            self._tell_watchers(found[0])

    def _fail(self, run: Run, error: Exception) -> None:
        run.settle(error)
        run.close()

    def _note(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _release(self, key: tuple[str, ...]) -> None:
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]


def _too_late(run: Run) -> UnsupportedOperationError:
    return UnsupportedOperationError(f"task {run.turn.task_id} ended before this message's turn")


def _pass_on(to: Run, settled: asyncio.Future[Task | Message]) -> None:
    if settled.cancelled():
        return
    error = settled.exception()
    to.settle(error if isinstance(error, Exception) else settled.result())
