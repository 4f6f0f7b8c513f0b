"""What is learned from how long jobs took."""

import pytest

from gateway.schedule.estimates import LOAD_PRIOR, PRIOR, Estimates
from gateway.schedule.workflow import Workflow

A = Workflow("a", frozenset({"m"}))
B = Workflow("b", frozenset({"m"}))


def test_before_anything_is_known_the_weight_counts():
    """A lane of half the weight takes twice as long."""
    estimates = Estimates()
    assert estimates.run(A, 0, 1.0) == PRIOR
    assert estimates.run(A, 0, 0.5) == 2 * PRIOR
    assert estimates.load({"m"}) == LOAD_PRIOR
    assert estimates.load({"m", "n"}) == 2 * LOAD_PRIOR


def test_a_class_is_known_by_its_median_on_every_lane():
    """One seen on a fast lane is expected on a slow one; outliers do not count."""
    estimates = Estimates()
    for seconds in (10.0, 10.0, 500.0):
        estimates.learn(A, 0, 1.0, seconds)
    assert estimates.run(A, 0, 1.0) == 10.0
    assert estimates.run(A, 1, 0.5) == 20.0
    # Another class: what jobs took in general.
    assert estimates.run(B, 0, 1.0) == 10.0


def test_a_lane_that_is_slower_than_its_weight_is_found_out():
    """By the class itself, and for classes that were never there by the lane's factor."""
    estimates = Estimates()
    for _ in range(5):
        estimates.learn(A, 0, 1.0, 10.0)
        estimates.learn(B, 0, 1.0, 40.0)
        estimates.learn(A, 1, 1.0, 30.0)
    assert estimates.run(A, 1, 1.0) == 30.0
    assert estimates.run(B, 1, 1.0) > 80.0
    assert estimates.run(B, 0, 1.0) == 40.0


def test_a_load_is_what_cold_jobs_take_longer():
    """Read off where the load shows; the class itself is not thought longer for it."""
    estimates = Estimates()
    for _ in range(3):
        estimates.learn(A, 0, 1.0, 10.0)
    for _ in range(5):
        estimates.learn(A, 0, 1.0, 13.0, {"m"})
    assert estimates.load({"m"}) == pytest.approx(3.0)
    assert estimates.run(A, 0, 1.0) == 10.0
    # Not known by itself: as loads are in general.
    assert estimates.load({"other"}) == pytest.approx(3.0)


def test_a_long_job_says_nothing_about_loads():
    """Jobs of one class differ by more than a load takes."""
    estimates = Estimates()
    for seconds in (300.0, 300.0, 300.0):
        estimates.learn(A, 0, 1.0, seconds)
    for _ in range(5):
        estimates.learn(A, 0, 1.0, 900.0, {"m"})
    assert estimates.load({"m"}) == LOAD_PRIOR


def test_what_has_only_been_seen_cold_is_expected_without_the_load():
    """Until a warm one tells."""
    estimates = Estimates()
    estimates.learn(A, 0, 1.0, 10.0 + LOAD_PRIOR, {"m"})
    assert estimates.run(A, 0, 1.0) == 10.0
    estimates.learn(A, 0, 1.0, 4.0)
    assert estimates.run(A, 0, 1.0) == 4.0


def test_memory_is_bounded():
    """However many classes clients make up."""
    estimates = Estimates()
    for number in range(6000):
        estimates.learn(Workflow(f"k{number}"), 0, 1.0, 1.0)
    assert len(estimates._windows) <= 5000
    assert estimates.run(Workflow("k5999"), 0, 1.0) == 1.0
