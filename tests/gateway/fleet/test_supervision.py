"""The backend's life as a table: which step follows which event, at which time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.command import EXIT_DEVICE_FAULT, EXIT_PORT_IN_USE, EXIT_USAGE
from gateway.fleet.supervision import (
    BecameReady,
    Begin,
    Done,
    Event,
    Exited,
    Kill,
    Phase,
    Rules,
    Start,
    State,
    Step,
    Stop,
    Terminate,
    Tick,
    Wait,
    how_it_ended,
    next_step,
)

RULES = Rules(restart_min=1.0, restart_max=30.0, stop_timeout=5.0)


def live(*events: tuple[float, Event]) -> tuple[State, list[Step]]:
    """Run a life; each event comes at its time."""
    state, steps = State(), []
    for now, event in events:
        state, step = next_step(state, event, now, RULES)
        steps.append(step)
    return state, steps


def test_a_good_life():
    """Started, ready, asked to stop, gone."""
    state, steps = live((0, Begin()), (3, BecameReady()), (9, Stop()), (10, Exited(0)))
    assert steps == [Start(), Wait(), Terminate(), Done()]
    assert state.phase is Phase.OVER


def test_deaths_back_off_doubling_up_to_the_limit():
    """One second, two, four … thirty, while no start lives for a minute."""
    events: list[tuple[float, Event]] = [(0, Begin())]
    for death in range(7):
        events += [(death, Exited(1)), (death + 0.5, Tick())]
    _, steps = live(*events)
    assert [step.seconds for step in steps if isinstance(step, Wait)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_life_forgives_earlier_failures():
    """A backend that ran for a minute starts again as if it were its first death."""
    _, steps = live((0, Begin()), (1, Exited(1)), (2, Tick()), (3, BecameReady()), (62, Exited(-9)))
    assert steps[-1] == Wait(1.0)


def test_bad_arguments_are_not_tried_again():
    """A backend that says its start makes no sense ends the matter with a line for the user."""
    state, steps = live((0, Begin()), (1, Exited(EXIT_USAGE)))
    assert state.phase is Phase.OVER
    assert isinstance(steps[-1], Done)
    assert "cannot run as configured" in steps[-1].why


def test_a_busy_port_ends_the_first_start_but_not_a_later_one():
    """Who never ran is misconfigured; who ran before may be waiting for its own old socket."""
    _, first = live((0, Begin()), (1, Exited(EXIT_PORT_IN_USE)))
    assert isinstance(first[-1], Done)
    _, later = live((0, Begin()), (1, BecameReady()), (2, Exited(-9)), (3, Tick()), (4, Exited(EXIT_PORT_IN_USE)))
    assert later[-1] == Wait(2.0)


def test_a_device_fault_is_started_again_at_once_but_only_once():
    """A new process heals a poisoned device; where it does not, the back-off applies."""
    _, steps = live(
        (0, Begin()), (1, Exited(EXIT_DEVICE_FAULT)), (1, Tick()), (2, Exited(EXIT_DEVICE_FAULT))
    )
    assert [step.seconds for step in steps if isinstance(step, Wait)] == [0.0, 2.0]


def test_who_does_not_stop_is_killed_when_the_time_is_over():
    """SIGTERM, then SIGKILL after stop_timeout, then done whatever the exit code."""
    state, steps = live((0, Begin()), (1, Stop()))
    assert state.deadline == 6.0
    state, step = next_step(state, Tick(), 6.0, RULES)
    assert step == Kill()
    assert next_step(state, Exited(-9), 6.1, RULES)[1] == Done()
    assert steps[-1] == Terminate()


def test_a_second_stop_kills_at_once():
    """Ctrl-C twice does not wait."""
    _, steps = live((0, Begin()), (1, Stop()), (1.1, Stop()))
    assert steps[-1] == Kill()


def test_stopping_between_two_starts_starts_nothing():
    """A stop during the back-off is the end, and a late tick does not revive."""
    state, steps = live((0, Begin()), (1, Exited(1)), (1.5, Stop()))
    assert steps[-1] == Done()
    assert next_step(state, Tick(), 9, RULES) == (state, Wait())


def test_what_cannot_happen_is_refused():
    """An exit of a process that was never started is a mistake in the loop, and raises."""
    with pytest.raises(ValueError, match="cannot happen"):
        next_step(State(), Exited(0), 0, RULES)


@given(st.lists(st.sampled_from(["ready", "exit", "tick", "stop"]), max_size=40))
def test_at_most_one_process_and_none_after_the_end(names: list[str]):
    """Whatever happens in whatever order, Start comes only when no process runs, and never after a stop."""
    state, step = next_step(State(), Begin(), 0, RULES)
    running, stopped, now = isinstance(step, Start), False, 0.0
    for name in names:
        now += 0.7
        if name == "exit" and not running:
            continue
        event: Event = {"ready": BecameReady(), "exit": Exited(1), "tick": Tick(), "stop": Stop()}[name]
        stopped, running = stopped or name == "stop", running and name != "exit"
        state, step = next_step(state, event, now, RULES)
        if isinstance(step, Start):
            assert not running
            assert not stopped
            running = True
        if isinstance(step, Done):
            assert not running
        if isinstance(step, Terminate | Kill):
            assert stopped


def test_an_exit_is_told_in_words():
    """Signals and exit codes are told apart."""
    assert (how_it_ended(-9), how_it_ended(1)) == ("signal 9", "exit code 1")
