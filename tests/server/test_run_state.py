"""The table of a run's transitions."""

from __future__ import annotations

from retinue_server.runtime.run_state import TRANSITIONS, RunState


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    """TRANSITIONS has every state, and leads to each of them from WAITING."""
    assert TRANSITIONS.keys() == set(RunState)
    reached, new = {RunState.WAITING}, {RunState.WAITING}
    while new:
        new = {following for state in new for following in TRANSITIONS[state]} - reached
        reached |= new
    assert reached == set(RunState)


def test_exactly_the_final_states_have_no_transition() -> None:
    """A final state is never left, and every other has a transition to a final one."""
    for state in RunState:
        assert state.final == (not TRANSITIONS[state])
        assert state.final or any(following.final for following in TRANSITIONS[state])


def test_publishing_states_are_stoppable_and_committed_ones_follow_finishing() -> None:
    """A run that publishes can be stopped, and only FINISHING leads to a committed state."""
    for state in RunState:
        assert state.stoppable or not state.publishing
        assert not (state.stoppable and state.committed)
        assert not state.committed or all(
            RunState.FINISHING is before for before in RunState if state in TRANSITIONS[before]
        )


def test_the_docstring_describes_every_state() -> None:
    """The table in the docstring of RunState has a row for each state, in their order."""
    assert RunState.__doc__ is not None
    rows = [line.split("|")[1].strip() for line in RunState.__doc__.splitlines() if line.strip().startswith("|")]
    assert rows[2:] == [state.name for state in RunState]
