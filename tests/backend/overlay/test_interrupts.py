"""Interrupts are aimed at a job, not at whoever looks next."""

import pytest

from backend.context import in_job, in_lane
from backend.overlay.interrupts import Interrupts


def asked(interrupts: Interrupts, lane: int | None, job: str | None) -> tuple[bool, bool]:
    """What code of this lane and job sees: hit, taken."""
    with in_lane(lane), in_job(job):
        return interrupts.hit(), interrupts.take()


@pytest.mark.parametrize(("lane", "job"), [(1, "other"), (0, "mine"), (None, "mine"), (None, None), (1, None)])
def test_nobody_else_is_stopped(lane: int | None, job: str | None) -> None:
    """Not another job of the lane, not another lane, not code without one; and the flag stays for its own."""
    interrupts = Interrupts()
    interrupts.begin(1, "mine")
    interrupts.aim(1, "mine")
    assert asked(interrupts, lane, job) == (False, False)
    assert asked(interrupts, 1, "mine") == (True, True)


def test_it_stops_once() -> None:
    """As ComfyUI's flag: the first that asks consumes it."""
    interrupts = Interrupts()
    interrupts.aim(0, "a")
    assert asked(interrupts, 0, "a") == (True, True)
    assert asked(interrupts, 0, "a") == (False, False)


def test_the_reset_at_a_jobs_start_keeps_what_is_aimed_at_it() -> None:
    """An interrupt between taking the job and starting it is not lost."""
    interrupts = Interrupts()
    interrupts.begin(0, "a")
    interrupts.aim(0, "a")
    with in_lane(0), in_job("a"):
        interrupts.reset()
        assert interrupts.hit()


def test_a_later_reset_takes_the_interrupt_back() -> None:
    """A node that clears the flag in the middle of its job means it."""
    interrupts = Interrupts()
    interrupts.begin(0, "a")
    with in_lane(0), in_job("a"):
        interrupts.reset()
        interrupts.aim(0, "a")
        interrupts.reset()
        assert not interrupts.hit()


def test_a_start_of_one_lane_leaves_the_others() -> None:
    """The reset at a job's start drops what was aimed at its own lane's past only."""
    interrupts = Interrupts()
    interrupts.aim(0, "a")
    interrupts.aim(1, "gone")
    interrupts.begin(1, "b")
    with in_lane(1), in_job("b"):
        interrupts.reset()
    interrupts.reset()
    assert asked(interrupts, 0, "a") == (True, True)


def test_what_came_too_late_stops_nobody() -> None:
    """Aimed at a job that has just ended, it does not reach the next one, whether or not its end was seen."""
    interrupts = Interrupts()
    interrupts.begin(0, "a")
    interrupts.aim(0, "a")
    interrupts.end(0)
    interrupts.begin(0, "b")
    assert asked(interrupts, 0, "b") == (False, False)
    interrupts.aim(0, "b")
    interrupts.begin(0, "c")
    assert asked(interrupts, 0, "c") == (False, False)


def test_a_second_try_starts_like_the_first() -> None:
    """Its reset keeps an interrupt that arrived between the two tries."""
    interrupts = Interrupts()
    interrupts.begin(0, "a")
    with in_lane(0), in_job("a"):
        interrupts.reset()
        interrupts.aim(0, "a")
        interrupts.again(0)
        interrupts.reset()
        assert interrupts.hit()


def test_whoever_waits_is_told_at_once() -> None:
    """After the flag is there: a job that waits for its turn looks then, and not before."""
    seen: list[tuple[bool, bool]] = []
    interrupts = Interrupts(lambda: seen.append(asked(interrupts, 0, "a")))
    interrupts.aim(0, "a")
    assert seen == [(True, True)]
