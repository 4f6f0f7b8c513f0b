"""The scheduler: examples of its choices, and what holds whatever happens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.schedule.lanes import Lane, State
from gateway.schedule.line import Waiting
from gateway.schedule.recall import Recalls
from gateway.schedule.scheduler import Scheduler
from gateway.schedule.terms import FullError, Rules
from gateway.schedule.workflow import Workflow

MODELS = {name: Workflow(name, frozenset({f"{name}.safetensors"})) for name in "abc"}


def waiting(
    seq: int, model: str = "a", client: str = "c", *, now: float = 0.0, pins: set[int] | None = None
) -> Waiting:
    where = None if pins is None else frozenset(pins)
    return Waiting(f"j{seq}", client, MODELS[model], seq, now, number=float(seq), pins=where)


def lanes(*weights: float) -> list[Lane]:
    return [Lane(index, weight) for index, weight in enumerate(weights)]


def taken(scheduler: Scheduler, now: float = 0.0) -> list[tuple[str, int]]:
    choices = iter(lambda: scheduler.next(now), None)
    return [(choice.job, choice.gpu) for choice in choices]


def test_a_burst_is_spread_and_the_rest_waits():
    """Each lane gets its depth and no more; what is chosen counts at once."""
    scheduler = Scheduler(lanes(1.0, 1.0))
    for seq in range(1, 7):
        scheduler.add(waiting(seq))
    went = taken(scheduler)
    assert sorted(gpu for _, gpu in went) == [0, 0, 1, 1]
    assert [place.position for place in scheduler.plan(0.0)] == [1, 2]


def test_the_lane_with_the_model_is_taken_while_it_ends_sooner():
    """A load is worth so many seconds of waiting, and no more."""
    scheduler = Scheduler(lanes(1.0, 1.0))
    scheduler.lanes[1].tell(["a.safetensors"])
    scheduler.add(waiting(1))
    assert taken(scheduler) == [("j1", 1)]
    choice = scheduler.chosen("j1")
    assert choice is not None
    assert [score.load for score in choice.scores] == [8.0, 0.0]
    scheduler.add(waiting(2))
    # 20 s of waiting there against 8 s of loading here, and 8 more for others.
    assert taken(scheduler) == [("j2", 0)]


def test_what_the_backend_says_of_its_models_counts():
    """What it names is there, what it names no more is not; what it never named is there by what was sent."""
    scheduler = Scheduler(lanes(1.0))
    lane = scheduler.lanes[0]
    lane.tell(["a.safetensors", "b.safetensors"])
    scheduler.add(waiting(1, "c"))
    assert taken(scheduler) == [("j1", 0)]
    # Room for two, as it has shown: the longest unused goes.
    assert set(lane.held) == {"b.safetensors", "c.safetensors"}
    lane.tell(["a.safetensors", "b.safetensors"])
    assert set(lane.held) == {"b.safetensors", "c.safetensors"}
    scheduler.ended("j1", 5.0, took=5.0)
    lane.tell([])
    assert set(lane.held) == {"c.safetensors"}, "nobody has ever named it"
    lane.tell(["c.safetensors"])
    lane.tell([])
    assert set(lane.held) == set()
    lane.tell(["a.safetensors"])
    scheduler.lane_lost(0)
    assert (set(lane.held), lane.told) == (set(), set())


def test_a_lane_that_keeps_one_jobs_models_will_have_those_of_its_next_job():
    """What the backend says is of now: the job that waits there takes the place of what there is."""
    scheduler = Scheduler(lanes(1.0))
    lane = scheduler.lanes[0]
    for seq, model in ((1, "a"), (2, "b")):
        scheduler.add(waiting(seq, model))
    assert taken(scheduler) == [("j1", 0), ("j2", 0)]
    scheduler.started("j1", 1.0)
    lane.tell(["a.safetensors"])
    assert set(lane.held) == {"b.safetensors"}
    scheduler.ended("j1", 5.0, took=4.0)
    scheduler.started("j2", 5.0)
    lane.tell(["a.safetensors", "b.safetensors"])
    assert set(lane.held) == {"a.safetensors", "b.safetensors"}, "it keeps more than it needs"
    lane.tell(["b.safetensors"])
    assert set(lane.held) == {"b.safetensors"}


def test_a_slow_lane_holds_nothing_that_a_fast_one_finishes_sooner():
    """It idles rather than take a job that would end later there."""
    scheduler = Scheduler([Lane(0, 1.0), Lane(1, 0.1)])
    for seq in range(1, 6):
        scheduler.add(waiting(seq))
    assert taken(scheduler) == [("j1", 0), ("j2", 0)]


def test_a_job_that_is_deferred_goes_at_last():
    """After its patience others' interest counts no more; after four times that it takes what has room."""
    scheduler = Scheduler([Lane(0, 1.0), Lane(1, 0.1)], Rules(patience=10.0))
    for seq in range(1, 4):
        scheduler.add(waiting(seq))
    assert taken(scheduler, 0.0) == [("j1", 0), ("j2", 0)]
    assert taken(scheduler, 39.0) == []
    assert scheduler.wake_at(39.0) == 40.0
    assert taken(scheduler, 40.0) == [("j3", 1)]


def test_lanes_that_are_not_ready_get_nothing():
    """Draining, faulted or away; and a pin to such a lane is waited for."""
    scheduler = Scheduler(lanes(1.0, 1.0, 1.0, 1.0))
    for gpu, state in ((0, State.DRAINING), (1, State.FAULTED), (2, State.DOWN)):
        scheduler.lane_state(gpu, state)
    scheduler.add(waiting(1, pins={0}))
    scheduler.add(waiting(2))
    assert taken(scheduler) == [("j2", 3)]
    assert [score.why_not for score in scheduler.scores(waiting(9, pins={0}), 0.0)] == [
        "draining",
        "faulted",
        "down",
        "pinned elsewhere",
    ]
    scheduler.lane_state(0, State.READY)
    assert taken(scheduler) == [("j1", 0)]


def test_a_line_that_is_paused_sends_nothing():
    """Everybody keeps the place, nobody's end is foretold; who is refused meanwhile is told a time all the same."""
    scheduler = Scheduler(lanes(1.0, 1.0), Rules(most_of_client=2))
    scheduler.paused = True
    scheduler.add(waiting(1))
    scheduler.add(waiting(2))
    assert taken(scheduler) == []
    assert [(place.job, place.position, place.finish) for place in scheduler.plan(0.0)] == [
        ("j1", 1, float("inf")),
        ("j2", 2, float("inf")),
    ]
    with pytest.raises(FullError) as of_client:
        scheduler.check("c", 0.0)
    assert 0 <= of_client.value.retry_after < float("inf")
    scheduler.paused = False
    assert sorted(taken(scheduler)) == [("j1", 0), ("j2", 1)]


def test_a_client_whose_lane_is_away_is_refused_with_a_time():
    """When that lane comes back nobody knows."""
    scheduler = Scheduler(lanes(1.0, 1.0), Rules(most_of_client=1))
    scheduler.lane_state(0, State.DOWN)
    scheduler.add(waiting(1, pins={0}))
    with pytest.raises(FullError) as of_client:
        scheduler.check("c", 0.0)
    assert of_client.value.retry_after < float("inf")


def test_bounds_are_met_with_a_time():
    """In all, and of one client; the time is that of the estimate."""
    scheduler = Scheduler(lanes(1.0), Rules(depth=1, most=3, most_of_client=2))
    for seq, client in ((1, "x"), (2, "a"), (3, "a")):
        scheduler.add(waiting(seq, client=client))
    scheduler.next(0.0)
    with pytest.raises(FullError) as of_client:
        scheduler.check("a", 5.0)
    assert of_client.value.retry_after == pytest.approx(scheduler.lanes[0].jobs["j1"].left(5.0))
    scheduler.check("b", 0.0)
    scheduler.add(waiting(4, client="b"))
    with pytest.raises(FullError):
        scheduler.check("d", 0.0)


def test_a_flood_of_one_client_does_not_hold_another_up():
    """Two hundred jobs wait; somebody else's one is among the next."""
    scheduler = Scheduler(lanes(1.0))
    for seq in range(1, 201):
        scheduler.add(waiting(seq, client="flood"))
    taken(scheduler)
    scheduler.add(waiting(500, client="one"))
    scheduler.ended("j1", 20.0, took=20.0)
    scheduler.ended("j2", 40.0, took=20.0)
    assert "j500" in {job for job, _ in taken(scheduler, 40.0)}


def known(*weights: float, seconds: float = 1.0) -> Scheduler:
    """Every lane holds the model, and what a job takes is known."""
    scheduler = Scheduler(lanes(*weights))
    for lane in scheduler.lanes.values():
        lane.tell(["a.safetensors"])
        for _ in range(3):
            scheduler.estimates.learn(MODELS["a"], lane.index, lane.weight, seconds)
    return scheduler


def test_nothing_is_bound_behind_what_is_overdue_while_another_lane_is_not():
    """That may run for any time; who may go nowhere else waits behind it all the same."""
    scheduler = known(1.0, 1.0)
    scheduler.add(waiting(1))
    assert taken(scheduler) == [("j1", 0)]
    scheduler.started("j1", 0.0)
    for seq in range(2, 6):
        scheduler.add(waiting(seq, now=2.0))
    went = taken(scheduler, 2.0)
    assert {gpu for _, gpu in went} == {1}
    for seconds, (job, _) in enumerate(went, 2):
        scheduler.started(job, seconds)
        scheduler.ended(job, seconds + 1.0, took=1.0)
    assert {gpu for _, gpu in taken(scheduler, 4.0)} == {1}
    scheduler.add(waiting(6, now=4.0, pins={0}))
    assert ("j6", 0) in taken(scheduler, 4.0)


def test_a_second_job_goes_behind_one_that_is_overdue_when_all_are():
    """Every lane runs something for longer than expected: they are all the same again."""
    scheduler = known(1.0, 1.0)
    for seq in (1, 2):
        scheduler.add(waiting(seq))
    for job, _ in taken(scheduler):
        scheduler.started(job, 0.0)
    for seq in (3, 4):
        scheduler.add(waiting(seq, now=5.0))
    assert sorted(gpu for _, gpu in taken(scheduler, 5.0)) == [0, 1]


def test_a_job_behind_one_that_lasts_is_taken_back_for_a_lane_that_idles():
    """Once, when that has lasted; not what came there by another way."""
    scheduler = known(1.0, 1.0)
    for seq in range(1, 5):
        scheduler.add(waiting(seq))
    on = dict(taken(scheduler))
    assert sorted(on.values()) == [0, 0, 1, 1]
    recalls = Recalls(scheduler)
    first, second = (next(job for job in on if on[job] == gpu) for gpu in (0, 1))
    behind = next(job for job in on if on[job] == 0 and job != first)
    last = next(job for job in on if on[job] == 1 and job != second)
    scheduler.started(first, 0.0)
    scheduler.started(second, 0.0)
    scheduler.ended(second, 1.0, took=1.0)
    assert recalls.next(5.0) is None, "no lane idles"
    scheduler.ended(last, 2.0, took=1.0)
    scheduler.placed(waiting(9), 0, 2.0)
    assert recalls.next(1.2) is None, "it is not late"
    scheduler.lane_state(1, State.DRAINING)
    assert recalls.next(5.0) is None
    scheduler.lane_state(1, State.READY)
    assert recalls.next(5.0) == behind
    assert recalls.next(6.0) is None, "once; and what came by another way stays"
    scheduler.take_back(behind)
    scheduler.add(waiting(int(behind[1:]), now=6.0))
    assert taken(scheduler, 6.0) == [(behind, 1)]


def test_a_pinned_job_is_not_taken_back_for_a_lane_that_it_may_not_use():
    """It waits where it is."""
    scheduler = known(1.0, 1.0)
    for seq in (1, 2):
        scheduler.add(waiting(seq, pins={0}))
    assert taken(scheduler) == [("j1", 0), ("j2", 0)]
    scheduler.started("j1", 0.0)
    assert Recalls(scheduler).next(100.0) is None


class Storm(RuleBasedStateMachine):
    """Anything, in any order."""

    @initialize(depth=st.integers(1, 3), count=st.integers(1, 4), patience=st.sampled_from([0.0, 5.0, 60.0]))
    def begin(self, depth: int, count: int, patience: float) -> None:
        self.rules = Rules(depth=depth, patience=patience, ageing=30.0)
        self.scheduler = Scheduler(lanes(*[1.0, 0.5, 2.0, 1.0][:count]), self.rules)
        self.now = 0.0
        self.seq = 0
        self.known: set[str] = set()
        self.deferred: dict[str, float] = {}

    @rule(
        model=st.sampled_from("abc"),
        client=st.sampled_from(["p", "q", "r"]),
        priority=st.integers(-2, 2),
        pinned=st.none() | st.integers(0, 3),
    )
    def add(self, model: str, client: str, priority: int, pinned: int | None) -> None:
        self.seq += 1
        new = waiting(self.seq, model, client, now=self.now, pins=None if pinned is None else {pinned})
        new.priority = priority
        self.scheduler.add(new)
        self.known.add(new.job)

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def decide(self) -> None:
        scheduler = self.scheduler
        while True:
            before = {gpu: lane.load for gpu, lane in scheduler.lanes.items()}
            ready = [gpu for gpu, lane in scheduler.lanes.items() if lane.state is State.READY]
            order = list(scheduler.line.order(self.now, scheduler._cost))
            choice = scheduler.next(self.now)
            roomy = [gpu for gpu in ready if before[gpu] < self.rules.depth]
            # Nobody waits past the bound while a lane that he may use has room.
            for each in order:
                usable = [gpu for gpu in roomy if each.pins is None or gpu in each.pins]
                late = each.passed is not None and self.now - each.passed >= 4 * self.rules.patience
                if usable and late:
                    assert choice is not None
                    if choice.job != each.job:
                        ahead = order[: order.index(each)]
                        assert choice.job in {one.job for one in ahead}, "passed over beyond its patience"
                    break
            if choice is None:
                break
            lane = scheduler.lanes[choice.gpu]
            assert lane.state is State.READY
            assert before[choice.gpu] < self.rules.depth
            chosen = next(each for each in order if each.job == choice.job)
            assert chosen.pins is None or choice.gpu in chosen.pins
            assert {score.gpu for score in choice.scores} == set(scheduler.lanes)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), how=st.sampled_from(["start", "end", "fail", "back", "direct"]))
    def something_happens(self, data: st.DataObject, how: str) -> None:
        job = data.draw(st.sampled_from(sorted(self.known)))
        scheduler = self.scheduler
        if how == "start":
            scheduler.started(job, self.now)
        elif how == "end":
            scheduler.ended(job, self.now, took=data.draw(st.floats(0.0, 1000.0)))
        elif how == "fail":
            scheduler.ended(job, self.now)
        elif how == "direct":
            found = scheduler.line.get(job)
            if found is not None:
                scheduler.placed(found, data.draw(st.sampled_from(sorted(scheduler.lanes))), self.now)
        elif scheduler.lane_of(job) is not None:
            scheduler.take_back(job)
        if scheduler.lane_of(job) is None and scheduler.line.get(job) is None:
            self.known.discard(job)

    @rule(gpu=st.integers(0, 3), state=st.sampled_from(State))
    def lane_changes(self, gpu: int, state: State) -> None:
        if gpu in self.scheduler.lanes:
            self.scheduler.lane_state(gpu, state)

    @rule(gpu=st.integers(0, 3))
    def lane_dies(self, gpu: int) -> None:
        if gpu in self.scheduler.lanes:
            self.scheduler.lane_lost(gpu)
            self.known = {
                job for job in self.known if self.scheduler.line.get(job) or self.scheduler.lane_of(job) is not None
            }

    @invariant()
    def a_job_is_in_one_place(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        on = [job for lane in scheduler.lanes.values() for job in lane.jobs]
        line = [each.job for each in scheduler.line]
        assert len(set(on)) == len(on)
        assert not set(on) & set(line)
        assert set(on) | set(line) == self.known
        assert set(scheduler._on) == set(on)

    @invariant()
    def everybody_has_a_place(self) -> None:
        if hasattr(self, "scheduler"):
            places = list(self.scheduler.plan(self.now))
            assert [place.position for place in places] == list(range(1, len(self.scheduler.line) + 1))
            assert all(place.finish >= place.start >= 0 for place in places)

    def teardown(self) -> None:
        """Everything ends: lanes come back, jobs go through, and nothing is left reserved."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        for gpu in scheduler.lanes:
            scheduler.lane_state(gpu, State.READY)
        reachable = {each.job for each in scheduler.line if each.pins is None or each.pins & set(scheduler.lanes)}
        for _ in range(20 * (len(self.known) + 1)):
            self.decide()
            on = [job for lane in scheduler.lanes.values() for job in list(lane.jobs)]
            for job in on:
                reachable.discard(job)
                scheduler.started(job, self.now)
                scheduler.ended(job, self.now + 1.0, took=1.0)
                self.known.discard(job)
            self.now += max(1.0, self.rules.patience)
        assert not reachable, "somebody starved"
        assert not scheduler._on
        assert all(lane.load == 0 for lane in scheduler.lanes.values())


Storm.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestStorm(Storm.TestCase):
    """Hypothesis looks for an order of events that breaks a promise."""
