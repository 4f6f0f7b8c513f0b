"""A job's states: the table of moves, and what a record remembers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.record import MOVES, IllegalMoveError, State, from_json, in_order, new


@given(st.lists(st.sampled_from(list(State)), max_size=8))
def test_only_moves_of_the_table_are_made(path: list[State]):
    """Whatever is tried: a final state is never left, every entered state has its time, and JSON keeps it all."""
    record = new("a", 1, 0.0)
    for at, state in enumerate(path, 1):
        allowed = state in MOVES[record.state]
        if not allowed:
            with pytest.raises(IllegalMoveError):
                record.moved(state, at)
            continue
        assert not record.ended
        record = record.moved(state, at)
        assert record.times[-1] == (state.value, at)
        assert record.since(state) == at
    assert from_json(record.to_json()) == record


def test_unknown_is_never_done():
    """Only the end that somebody saw can be written: from lost there is no way to succeeded."""
    lost = new("a", 1, 0.0).moved(State.LOST, 1.0)
    assert lost.ended
    with pytest.raises(IllegalMoveError):
        lost.moved(State.SUCCEEDED, 2.0)


def test_the_order_of_running_again():
    """What ran comes first, then places in the queue, then who came first."""
    front = new("front", 4, 0.0, booted=5.0, place=-3, attempts=1)
    ran = new("ran", 3, 0.0, booted=5.0, place=9, attempts=1).moved(State.RUNNING, 1.0)
    unsent = new("unsent", 1, 0.0)
    second = new("second", 2, 0.0, booted=5.0, place=2, attempts=1)
    older = new("older", 0, 0.0, booted=4.0, place=1, attempts=1)
    asked = new("asked", 0, 0.0, booted=5.0)
    jobs = [asked, unsent, older, second, ran, front]
    assert [each.id for each in in_order(jobs)] == ["ran", "front", "second", "asked", "older", "unsent"]


def test_what_a_later_version_wrote_is_read():
    """A field that this version does not know is left out."""
    text = new("a", 1, 0.0).to_json()[:-1] + ', "invented_later": 1}'
    assert from_json(text) == new("a", 1, 0.0)
