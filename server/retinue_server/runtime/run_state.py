"""The states of a run and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, auto


class RunState(IntEnum):
    """The state of a run. `TRANSITIONS` holds which state may follow which; `Run` checks every step against it.

    | state     | meaning                                                               | entered by                      |
    |-----------|-----------------------------------------------------------------------|---------------------------------|
    | WAITING   | accepted; an earlier turn of its serial queue is not done             | (created)                       |
    | RUNNING   | its executor works                                                    | start; a status after ASKED     |
    | ASKED     | it interrupted its task, but its executor has not returned            | input or auth required          |
    | CANCELING | told to stop; ends as CANCELED unless the executor ends it first      | request_cancel                  |
    | FINISHING | its final commit has started; it cannot be stopped any more           | a terminal status; finish       |
    | ENDED     | its final commit is done                                              | the final commit                |
    | CONTINUES | its final commit is done; its task goes on with a message that waited | the final commit                |
    | STALE     | another attempt owns the turn, or the task ended before its turn      | give_up                         |
    | FAILED    | it stopped without a final commit, which could not be stored          | give_up; close                  |
    | ABANDONED | the server stops; the turn goes on at the next start                  | give_up                         |
    """

    WAITING = auto()
    RUNNING = auto()
    ASKED = auto()
    CANCELING = auto()
    FINISHING = auto()
    ENDED = auto()
    CONTINUES = auto()
    STALE = auto()
    FAILED = auto()
    ABANDONED = auto()

    @property
    def publishing(self) -> bool:
        """Whether the executor may publish events."""
        return self in _PUBLISHING

    @property
    def stoppable(self) -> bool:
        """Whether the turn can still be canceled, failed or interrupted."""
        return self is RunState.WAITING or self in _PUBLISHING

    @property
    def committed(self) -> bool:
        """Whether the final commit is done."""
        return self in _COMMITTED

    @property
    def final(self) -> bool:
        return self in _COMMITTED or self in GIVEN_UP


_PUBLISHING = frozenset((RunState.RUNNING, RunState.ASKED, RunState.CANCELING))
_COMMITTED = frozenset((RunState.ENDED, RunState.CONTINUES))
GIVEN_UP = frozenset((RunState.STALE, RunState.FAILED, RunState.ABANDONED))

TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    RunState.WAITING: GIVEN_UP | {RunState.RUNNING, RunState.CANCELING},
    RunState.RUNNING: GIVEN_UP | {RunState.ASKED, RunState.CANCELING, RunState.FINISHING},
    RunState.ASKED: GIVEN_UP | {RunState.RUNNING, RunState.CANCELING, RunState.FINISHING},
    RunState.CANCELING: GIVEN_UP | {RunState.FINISHING},
    RunState.FINISHING: GIVEN_UP | _COMMITTED,
    **dict.fromkeys(_COMMITTED | GIVEN_UP, frozenset[RunState]()),
}
