"""The table of a run's transitions."""

from __future__ import annotations

from retinue_server.runtime.run_state import TRANSITIONS, RunState


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert TRANSITIONS.keys() == set(RunState)
    reached, new = {RunState.WAITING}, {RunState.WAITING}
    while new:
        new = {following for state in new for following in TRANSITIONS[state]} - reached
        reached |= new
    assert reached == set(RunState)


def test_a_final_state_is_left_by_none_and_every_other_can_end() -> None:
    for state in RunState:
        assert state.final == (not TRANSITIONS[state])
        assert state.final or any(following.final for following in TRANSITIONS[state])


def test_only_a_run_that_can_be_stopped_publishes_and_only_a_commit_follows_the_final_one() -> None:
    for state in RunState:
        assert state.stoppable or not state.publishing
        assert not (state.stoppable and state.committed)
        assert not state.committed or all(
            RunState.FINISHING is before for before in RunState if state in TRANSITIONS[before]
        )


def test_the_docstring_describes_every_state() -> None:
    assert RunState.__doc__ is not None
    rows = [line.split("|")[1].strip() for line in RunState.__doc__.splitlines() if line.strip().startswith("|")]
    assert rows[2:] == [state.name for state in RunState]
