"""The fleet's arithmetic: loads, reservations, looks, and the choice between lanes."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Backend, Config
from gateway.fleet.lanes import Fleet, fleet_of
from gateway.fleet.member import Member
from gateway.layout import layout


def a_fleet(gpus: int = 4) -> Fleet:
    fleet = Fleet(gpus)
    fleet.members[0].backend_up("embedded 0.1.0", ["cpu"] * gpus)
    return fleet


def loads(fleet: Fleet) -> list[int]:
    return [fleet.load(gpu) for gpu in range(fleet.gpus)]


def test_a_burst_of_forty_inside_one_poll_spreads_evenly():
    """Forty submissions without a look in between land ten on each of four lanes."""
    fleet = a_fleet()
    landed: Counter[int] = Counter()
    for _ in range(40):
        gpu = fleet.choose()
        fleet.reserve(gpu)
        landed[gpu] += 1
    assert landed == {0: 10, 1: 10, 2: 10, 3: 10}


def test_ties_rotate():
    """Equal lanes take turns, even when every submission is refused at once."""
    fleet = a_fleet()
    chosen = []
    for _ in range(8):
        chosen.append(fleet.choose())
        fleet.reserve(chosen[-1]).release()
    assert chosen == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_least_busy_lane_is_chosen_by_what_the_look_saw():
    """Running and pending both count."""
    fleet = a_fleet()
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(1, 2), (1, 0), (0, 3), (1, 1)])
    assert fleet.choose() == 1


def test_an_accepted_job_counts_until_a_look_that_started_later_is_taken():
    """A look under way when the backend accepted may not have seen the job, so it does not end the count."""
    fleet = a_fleet(1)
    early = fleet.members[0].look_begins()
    fleet.reserve(0).accepted()
    fleet.members[0].look_ends(early, [(0, 0)])
    assert fleet.load(0) == 1
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(1, 0)])
    assert fleet.load(0) == 1
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0)])
    assert fleet.load(0) == 0


def test_a_job_being_sent_stays_counted_through_looks():
    """Between sending and the answer no look can tell whether the job is in the queue yet."""
    fleet = a_fleet(1)
    reservation = fleet.reserve(0)
    for _ in range(3):
        fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0)])
    assert fleet.load(0) == 1
    reservation.release()
    assert fleet.load(0) == 0


def test_a_failed_look_ends_no_count():
    """What a look that never arrived should have seen stays counted until one arrives."""
    fleet = a_fleet(1)
    fleet.reserve(0).accepted()
    fleet.members[0].look_begins()
    assert fleet.load(0) == 1
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 1)])
    assert fleet.load(0) == 1


def test_a_reservation_ends_once():
    """The first of accepted and release decides; leaving the block afterwards changes nothing."""
    fleet = a_fleet(1)
    with fleet.reserve(0) as reservation:
        reservation.accepted()
        reservation.release()
    assert fleet.load(0) == 1
    with fleet.reserve(0):
        assert fleet.load(0) == 2
    assert fleet.load(0) == 1


def test_a_new_backend_starts_empty_and_old_reservations_do_not_touch_it():
    """After a restart neither an old answer nor an old look changes the new backend's counts."""
    fleet = a_fleet(1)
    old = fleet.reserve(0)
    mark = fleet.members[0].look_begins()
    fleet.members[0].backend_down("The backend died.", 2)
    assert (fleet.up, fleet.reason, fleet.retry_after) == (False, "The backend died.", 2)
    fleet.members[0].backend_up("embedded 0.1.0", ["cpu"])
    old.accepted()
    fleet.members[0].look_ends(mark, [(5, 5)])
    assert loads(fleet) == [0]


def test_lanes_that_the_backend_does_not_have_are_not_chosen():
    """One device named in the ready line is one lane; the next backend may have more again."""
    fleet = Fleet(4)
    fleet.members[0].backend_up("embedded 0.1.0", ["cpu"])
    assert {fleet.choose() for _ in range(8)} == {0}
    fleet.members[0].backend_up("embedded 0.1.0", ["cpu"] * 9)
    assert {fleet.choose() for _ in range(8)} == {0, 1, 2, 3}


def test_a_reservation_wakes_whoever_watches():
    """A resting poller is told that there is something to look at."""
    fleet = a_fleet()
    woken: list[bool] = []
    fleet.members[0].on_activity = lambda: woken.append(True)
    fleet.reserve(2)
    assert woken == [True]
    assert fleet.members[0].working


def test_a_fleet_without_gpus_is_refused():
    """A gateway with nothing behind it is a mistake in the config, not an empty table."""
    with pytest.raises(ValueError, match="at least one GPU"):
        Fleet(0)


STEPS = st.lists(st.sampled_from(["submit", "accept", "refuse", "begin", "end", "finish", "restart"]), max_size=60)


@given(STEPS)
def test_the_load_is_never_below_the_truth_and_settles_on_it(steps: list[str]):
    """Whatever the order of events, no queued job goes uncounted, and two quiet looks later the count is exact."""
    fleet, truth, sent, mark, seen = a_fleet(1), 0, [], None, 0
    for step in steps:
        if step == "submit":
            sent.append(fleet.reserve(0))
        elif step == "accept" and sent:
            sent.pop().accepted()
            truth += 1
        elif step == "refuse" and sent:
            sent.pop().release()
        elif step == "begin" and mark is None:
            mark, seen = fleet.members[0].look_begins(), truth
        elif step == "end" and mark is not None:
            fleet.members[0].look_ends(mark, [(0, seen)])
            mark = None
        elif step == "finish" and truth:
            truth -= 1
            seen = min(seen, truth) if mark is not None else seen
        elif step == "restart":
            fleet.members[0].backend_up()
            truth, sent, mark = 0, [], None
        assert fleet.load(0) >= truth
    for reservation in sent:
        reservation.release()
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, truth)])
    assert fleet.load(0) == truth


def test_a_lane_that_takes_no_jobs_is_not_chosen():
    """While another takes some; what is said about it goes with the backend that said it."""
    fleet = Fleet(2)
    fleet.members[0].backend_up()
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(5, 5), (0, 0)], ["", "its worker thread has ended"])
    assert [fleet.choose() for _ in range(3)] == [0, 0, 0]
    assert (fleet.fault(0), fleet.fault(None)) == ("", "")
    assert fleet.fault(1) == "GPU 1 takes no jobs: its worker thread has ended."
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0), (0, 0)], ["it too", "it too"])
    assert len(fleet.faults) == 2
    assert {fleet.choose(), fleet.choose()} == {0, 1}
    fleet.members[0].backend_down("it died", 5)
    fleet.members[0].backend_up()
    assert fleet.faults == []


def pair(*weights: float) -> Fleet:
    """Backends with one lane each, all up."""
    fleet = Fleet([Member(1, index=index, first=index, weight=weight) for index, weight in enumerate(weights)])
    for member in fleet.members:
        member.backend_up()
    return fleet


def chosen(fleet: Fleet, count: int) -> list[int]:
    """The lanes of so many submissions, each of which stays."""
    return [fleet.reserve(fleet.choose()).gpu for _ in range(count)]


def test_weight_says_how_far_a_lane_is_filled():
    """With twice the weight it gets twice as many."""
    found = chosen(pair(1.0, 2.0), 9)
    assert (found.count(0), found.count(1)) == (3, 6)


def test_one_that_is_away_out_or_draining_gets_nothing_while_there_is_another():
    """And everything when there is none."""
    for change in (
        lambda member: member.backend_down("it died", 1),
        lambda member: [member.failed() for _ in range(3)],
        lambda member: setattr(member, "drain", True),
    ):
        fleet = pair(1.0, 1.0)
        change(fleet.members[0])
        assert set(chosen(fleet, 4)) == {1}
        change(fleet.members[1])
        assert chosen(fleet, 2)


def test_the_fleet_is_up_while_any_backend_is():
    """Why it is not, and when to ask again, is that of the one which is there soonest."""
    fleet = pair(1.0, 1.0)
    fleet.members[0].backend_down("first", 9)
    assert (fleet.up, fleet.reason, fleet.retry_after) == (True, "", 0)
    fleet.members[1].backend_down("second", 2)
    assert (fleet.up, fleet.reason, fleet.retry_after) == (False, "second", 2)
    assert fleet.healthy == 0


def test_weights_and_drains_follow_a_reload():
    """Each backend its own; what an administrator has drained by hand stays so."""
    config = replace(Config(), further=(Backend(url="http://127.0.0.1:9", lanes=1),))
    config = replace(config, backend=replace(config.backend, lanes=config.gpus - 1))
    fleet = fleet_of(layout(config))
    fleet.member(0).drained.add(0)
    (second,) = config.further
    fleet.apply(replace(config, further=(replace(second, weight=0.5, drain=True),)))
    assert [(member.weight, member.drain) for member in fleet.members] == [(1.0, False), (0.5, True)]
    assert fleet.member(0).drained == {0}
    fleet.apply(config)
    assert [(member.weight, member.drain) for member in fleet.members] == [(1.0, False), (1.0, False)]


def test_a_gpu_whose_queue_cannot_be_seen_says_why():
    """Its backend is down, or has fewer GPUs than ports, or does not answer."""
    fleet = Fleet([Member(1), Member(2, index=1, first=1)])
    fleet.members[0].backend_down("it died", 3)
    fleet.members[1].backend_up("toy", ["one"])
    assert fleet.unseen(0) == "Its backend is down: it died"
    assert fleet.unseen(1) == "Its backend did not answer."
    assert fleet.unseen(2) == "The backend has no such GPU."
