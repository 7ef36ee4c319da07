"""Serial queues of runs, and how many turns are admitted to them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from retinue_memory.errors import LimitError

from .run import Run
from .turn import Caller

LimitKey = tuple[str, ...]
"""The agent, tenant, owner and context or task whose waiting messages are limited together; the last may be empty."""


class SerialQueues:
    """The runs of an engine that are not done. Of each serial queue only the first may run."""

    def __init__(self, *, max_turns: int, max_waiting: int) -> None:
        self._max_turns = max_turns
        self._max_waiting = max_waiting
        self._queues: dict[tuple[str, str, str, str], deque[Run]] = {}
        self._by_task: dict[str, list[Run]] = {}
        self._admitted = 0
        self._counts: Counter[LimitKey] = Counter()
        self._limit_keys: dict[int, LimitKey] = {}
        self.idle = asyncio.Event()
        """Set while there is no run, or nobody shall wait for that."""
        self.idle.set()

    def admit(self, key: LimitKey) -> None:
        """Reserve a place for one turn. Raises LimitError if there are too many."""
        if self._admitted >= self._max_turns:
            raise LimitError(f"{self._max_turns} messages are running or waiting: try again", retry_after=1)
        if key[-1] and self._counts[key] >= self._max_waiting:
            raise LimitError(
                f"{self._max_waiting} messages wait in {key[-1]}: wait until some of them are answered", retry_after=1
            )
        self._admitted += 1
        self._counts[key] += 1

    def release(self, key: LimitKey) -> None:
        """Give back a place that `admit` reserved."""
        self._admitted -= 1
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def add(self, run: Run, key: LimitKey | None) -> bool:
        """Append a run to its queue; its place is the one reserved under `key`, or a new one. Returns whether it is first."""
        if key is None:
            self._admitted += 1
        else:
            self._limit_keys[run.turn.id] = key
        self.idle.clear()
        self._by_task.setdefault(run.turn.task_id, []).append(run)
        queue = self._queues.setdefault(run.turn.queue_key, deque())
        queue.append(run)
        return len(queue) == 1

    def remove(self, run: Run) -> bool:
        """Remove a run with its reserved place. Returns whether it was the first of its queue."""
        turn = run.turn
        queue, runs = self._queues[turn.queue_key], self._by_task[turn.task_id]
        was_first = queue[0] is run
        queue.remove(run)
        runs.remove(run)
        if not queue:
            del self._queues[turn.queue_key]
        if not runs:
            del self._by_task[turn.task_id]
        if (key := self._limit_keys.pop(turn.id, None)) is not None:
            self.release(key)
        else:
            self._admitted -= 1
        if not self._by_task:
            self.idle.set()
        return was_first

    def __contains__(self, run: Run) -> bool:
        return run in self._queues.get(run.turn.queue_key, ())

    def __iter__(self) -> Iterator[Run]:
        return (run for runs in self._by_task.values() for run in runs)

    def first(self, queue_key: tuple[str, str, str, str]) -> Run | None:
        """Return the first run of a queue, or None if the queue is empty."""
        queue = self._queues.get(queue_key)
        return queue[0] if queue else None

    def of_task(self, task_id: str) -> Sequence[Run]:
        """Return the runs of a task in order; only the first may be running."""
        return self._by_task.get(task_id, ())

    def find(self, caller: Caller, task_id: str) -> Run | None:
        """Return the first run of a task that the caller may see, or None if there is none."""
        return next((run for run in self.of_task(task_id) if _is_visible(run, caller)), None)

    def visible_to(self, caller: Caller) -> list[Run]:
        """Return the runs that the caller may see."""
        return [run for run in self if _is_visible(run, caller)]

    def task_ids(self) -> frozenset[str]:
        return frozenset(self._by_task)


def _is_visible(run: Run, caller: Caller) -> bool:
    turn = run.turn
    same_agent = (turn.caller.agent, turn.caller.tenant) == (caller.agent, caller.tenant)
    return same_agent and caller.visible_owner in (None, turn.owner)
