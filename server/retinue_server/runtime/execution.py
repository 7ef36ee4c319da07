"""The execution of a run: its executor's `execute` or `cancel`, with what the turn gives to it."""

from __future__ import annotations

import asyncio
import logging

from a2a.server.agent_execution import RequestContext
from a2a.server.context import ServerCallContext
from a2a.types import TaskState
from a2a.utils.errors import A2AError

from retinue_memory.errors import RetinueError
from retinue_server.a2a.executor import JOURNAL, TURN

from .executor import TurnExecutor
from .journal import TurnJournal
from .run import Run
from .run_state import RunState
from .store.turns import Turns
from .turn import WRITES, StaleAttempt

logger = logging.getLogger(__name__)

_CANCEL_TIMEOUT_S = 0.2
_COMMIT_TIMEOUT_S = 30.0  # a commit on a slow disk must not be cut off


async def execute(run: Run, executor: TurnExecutor, turns: Turns) -> None:
    """Run the executor and commit the end of the turn. If the executor fails, the task ends as FAILED."""
    turn = run.turn
    WRITES.set(run.writes)
    resumed = turn.attempt > 1
    call = ServerCallContext(tenant=turn.caller.tenant, requested_extensions=set(turn.extensions))
    recorded = await turns.steps(turn) if resumed else {}
    call.state[JOURNAL] = TurnJournal(run.recorder, recorded)
    call.state[TURN] = turn
    context = RequestContext(
        call,
        turn.request,
        task_id=turn.task_id,
        context_id=turn.context_id,
        task=run.publication.shown().event if resumed or not turn.new_task else None,
    )
    try:
        await executor.execute(context, run)
    except StaleAttempt:
        raise
    except Exception as error:
        logger.exception("task %s: its executor failed, ending the task", turn.task_id)
        if run.state.publishing:
            explained = isinstance(error, A2AError | RetinueError)
            reason = str(error) if explained else "the agent failed unexpectedly; the server's log says why"
            await run.end_task(TaskState.TASK_STATE_FAILED, reason)
    await run.finish()


async def cancel(run: Run, executor: TurnExecutor) -> None:
    """Let the executor cancel its task for a moment, then end the task as CANCELED if it did not."""
    turn = run.turn
    context = RequestContext(
        ServerCallContext(tenant=turn.caller.tenant),
        task_id=turn.task_id,
        context_id=turn.context_id,
        task=run.publication.shown().event,
    )
    work = asyncio.create_task(executor.cancel(context, run))
    await asyncio.wait((work,), timeout=_CANCEL_TIMEOUT_S)
    if run.state is RunState.FINISHING:
        await asyncio.wait((work,), timeout=_COMMIT_TIMEOUT_S)
    if not work.done():
        work.cancel()
        logger.warning("task %s: its executor's cancel did not return within %g s", turn.task_id, _CANCEL_TIMEOUT_S)
    elif not work.cancelled() and (error := work.exception()) is not None:
        logger.warning("task %s: its executor's cancel failed: %r", turn.task_id, error)
    if run.state.publishing:
        await run.end_task(TaskState.TASK_STATE_CANCELED)
