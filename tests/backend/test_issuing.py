"""h/T from model calls, the verdict on it, and the experiment that decides about the issue lock."""

import itertools
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.issue_lock import (
    CHECK_AFTER,
    LONGEST_PAUSE,
    PAUSE,
    SHORT_PAUSE,
    WINDOW,
    Decision,
    Window,
    after,
    gain,
)
from backend.issuing import ENOUGH, Call, IssueView, Issuing
from backend.lanes import Lane
from backend.model_calls import ModelCalls
from backend.verdict import BOUND, describe, judge
from tests.doubles.wait import wait_until


def steps(count: int, *, host: float, step: float, wall: float | None = None, run: object = "job",
          locked: float = 0.0) -> Issuing:
    """Counters after so many equal steps."""
    found = Issuing()
    for number in range(count):
        found.called(Call(run, number * step, host if wall is None else wall, host, locked))
    return found


def test_the_ratio_is_the_hosts_part_of_a_step():
    """Two milliseconds of issuing in steps of ten are 0.2."""
    view = steps(40, host=0.002, step=0.010).view()
    assert view.ratio == pytest.approx(0.2)
    assert view.waited == pytest.approx(0.0, abs=1e-9)
    assert (view.calls, view.host_seconds, view.step_seconds) == (40, pytest.approx(0.08), pytest.approx(0.39))


def test_there_is_no_ratio_before_enough_steps():
    """A handful of steps, the first ones with their warm-up, say nothing."""
    assert steps(ENOUGH, host=0.1, step=1.0).view().ratio is None
    assert steps(ENOUGH + 1, host=0.1, step=1.0).view().ratio is not None


def test_waiting_for_others_does_not_hide_the_ratio():
    """A lane that waits three quarters of its step for the interpreter has the ratio it has alone."""
    alone = steps(40, host=0.010, step=0.020).view()
    among = steps(40, host=0.010, step=0.050, wall=0.040).view()
    assert among.ratio == pytest.approx(alone.ratio)
    assert among.waited == pytest.approx(0.6)


def test_waiting_for_the_issue_lock_does_not_hide_it_either():
    """The wait before the call is taken out of the step as well, and counted."""
    view = steps(40, host=0.010, step=0.050, locked=0.030).view()
    assert view.ratio == pytest.approx(0.5)
    assert view.locked_seconds == pytest.approx(1.2)


def test_runs_and_pauses_are_no_steps():
    """From one job's last call to the next job's first, and over a pause, no step is counted."""
    found = Issuing()
    for run in range(30):
        found.called(Call(run, run * 1.0, 0.1, 0.1))
    assert found.view().step_seconds == 0.0
    for number in range(30):
        found.called(Call("slow", number * 100.0, 0.1, 0.1))
    assert found.view().step_seconds == 0.0


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 10), st.floats(0, 10), st.floats(0, 20)), max_size=60))
def test_shares_stay_shares(calls: list[tuple[int, float, float, float]]):
    """Whatever clocks say, ratio and waited lie between 0 and 1."""
    found, now = Issuing(), 0.0
    for run, wall, host, pause in calls:
        found.called(Call(run, now, wall, host))
        now += wall + pause
    view = found.view()
    for share in (view.ratio, view.waited):
        assert share is None or 0.0 <= share <= 1.0


def seen(ratio: float | None, ahead: float | None = None) -> IssueView:
    return IssueView(calls=100, ratio=ratio, waited=0.0, ahead=ahead)


def test_the_verdict_follows_the_sum_of_the_ratios():
    """Four lanes at 0.02 do not wait, at 0.15 they begin to, at 0.3 they are bound."""
    for ratio, wanted in ((0.02, "fine"), (0.15, "close"), (0.3, "gil-bound")):
        found = judge([(f"cuda:{index}", seen(ratio)) for index in range(4)])
        assert (found.state, found.demand) == (wanted, pytest.approx(4 * ratio))


def test_the_advice_for_bound_lanes_names_the_way_out():
    """Whoever reads it knows what to write into the configuration."""
    assert 'mode = "per-gpu"' in judge([("cuda:0", seen(0.9)), ("cuda:1", seen(0.9))]).advice


def test_a_lane_that_ran_nothing_is_taken_to_be_like_the_others():
    """One busy lane of four is enough to say what four will do."""
    lanes = [("cuda:0", seen(0.3))] + [(f"cuda:{index}", seen(None)) for index in (1, 2, 3)]
    found = judge(lanes)
    assert found.demand is not None
    assert found.demand > BOUND


def test_one_lane_waits_for_nobody():
    """However light its model."""
    assert judge([("cuda:0", seen(1.0))]).state == "fine"


def test_a_device_behind_its_host_is_not_held_up_by_it():
    """A thread that waits for a full launch queue looks busy; the device knows better."""
    assert judge([(f"cuda:{index}", seen(0.7, ahead=1.0)) for index in range(4)]).state == "fine"
    assert judge([(f"cuda:{index}", seen(0.7, ahead=0.0)) for index in range(4)]).state == "gil-bound"


def test_nothing_is_said_of_cpu_lanes_and_of_nothing():
    """On the CPU the thread's time is the model's own."""
    assert judge([("cpu", seen(1.0))] * 4).state == "cpu"
    assert judge([("cuda:0", seen(None))]).state == "unknown"
    assert judge([]).state == "unknown"


def test_the_description_is_json():
    """As routes send it, with every lane's figures."""
    lanes = [Lane(0, "cuda:0", issuing=steps(40, host=0.1, step=0.3)), Lane(1, "cuda:1")]
    found = json.loads(json.dumps(describe(lanes)))
    assert found["verdict"] == "close"
    assert found["lanes"][0] == {"gpu_id": 0, "calls": 40, "ratio": 0.3333, "waited": 0.0, "ahead": None}
    assert found["lanes"][1]["ratio"] is None


def window(count: int = 100, lanes: int = 4, what: str = "SDXL", demand: float = 1.2, waited: float = 0.3) -> Window:
    return Window(WINDOW, dict.fromkeys(range(lanes), (what, count)), demand, waited)


def run(*windows: Window, before: Decision | None = None, each: float = WINDOW) -> list[Decision]:
    """The decisions after each of these windows."""
    found, now, decisions = before or Decision(), 0.0, []
    for one in windows:
        now += each
        found = after(found, one, now)
        decisions.append(found)
    return decisions


def test_a_trial_that_helps_is_kept():
    """Off, tried, on."""
    assert [one.phase for one in run(window(100), window(150), window(150))] == ["trial", "on", "on"]


def test_a_trial_that_brings_nothing_is_not_repeated_soon():
    """Each one that failed doubles the pause before the next."""
    first = run(window(100), window(101))[-1]
    assert first.phase == "off"
    assert first.not_before == pytest.approx(2 * WINDOW + PAUSE)
    assert after(first, window(), PAUSE).phase == "off"
    tried = after(first, window(), first.not_before)
    assert tried.phase == "trial"
    second = after(tried, window(90), first.not_before + WINDOW)
    assert second.not_before == pytest.approx(first.not_before + WINDOW + 2 * PAUSE)
    for _ in range(12):
        second = after(after(second, window(), second.not_before), window(90), second.not_before)
    assert second.not_before <= second.since + LONGEST_PAUSE


@pytest.mark.parametrize("quiet", [
    window(lanes=1), window(demand=0.1), window(waited=0.0), window(count=3), Window(WINDOW, {}),
], ids=["one lane", "little issuing", "nobody waits", "few calls", "nothing"])
def test_no_trial_without_cause(quiet: Window):
    """With one lane, with little to issue, with nobody waiting, with next to no calls."""
    assert run(quiet, quiet)[-1] == Decision()


def test_other_work_makes_a_trial_worthless():
    """Neither success nor failure: it is tried again soon."""
    found = run(window(100), window(400, what="SD15"))[-1]
    assert (found.phase, found.failures) == ("off", 0)
    assert found.not_before == pytest.approx(2 * WINDOW + SHORT_PAUSE)


def test_a_lock_in_use_is_looked_at_again():
    """After five minutes one window goes without it: it stays when that was slower, and goes when it was not."""
    on = Decision("on", 0.0)
    assert after(on, window(150), CHECK_AFTER - 1).phase == "on"
    check = after(on, window(150), CHECK_AFTER)
    assert (check.phase, check.held) == ("check", False)
    assert after(check, window(100), CHECK_AFTER + WINDOW).phase == "on"
    assert after(check, window(160), CHECK_AFTER + WINDOW).phase == "off"
    assert after(check, window(160, what="else"), CHECK_AFTER + WINDOW).phase == "on"


def test_a_lock_nobody_needs_is_given_up():
    """When the load has become light, or one lane is left."""
    assert after(Decision("on"), window(demand=0.2), 1.0) == Decision("off", 1.0)
    assert after(Decision("on"), window(lanes=1), 1.0) == Decision("off", 1.0)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4), st.floats(0, 4), st.floats(0, 1)), max_size=80))
def test_a_trial_or_check_lasts_one_window(windows: list[tuple[int, int, float, float]]):
    """Whatever comes: no experiment goes on, and the lock is on only after a trial."""
    found = (window(count, lanes, "a", demand, waited) for count, lanes, demand, waited in windows)
    for before, now in itertools.pairwise([Decision(), *run(*found)]):
        assert not (before.phase == now.phase and now.phase in {"trial", "check"})
        assert not (before.phase == "off" and now.phase == "on")


def test_gain_is_the_mean_over_the_lanes():
    """One lane twice as fast and one half as fast are no gain."""
    then = Window(5.0, {0: ("a", 100), 1: ("a", 100)})
    assert gain(Window(5.0, {0: ("a", 200), 1: ("a", 50)}), then) == pytest.approx(1.0)
    assert gain(Window(2.5, {0: ("a", 100), 1: ("a", 100)}), then) == pytest.approx(2.0)
    assert gain(Window(5.0, {0: ("a", 100)}), then) is None


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_call_is_counted_with_its_threads_time():
    """Wall and CPU time of the block; a call inside another belongs to it; one that raises counts too."""
    lane, clock, thread = Lane(0, "cuda:0"), Clock(), Clock()
    calls = ModelCalls([lane], clock=clock, thread_clock=thread)
    with calls.around(0, "job", "net"), calls.around(0, "job", "inner"):
        clock.now, thread.now = 2.0, 0.5
    with pytest.raises(ValueError, match="node"), calls.around(0, "job", "net"):
        raise ValueError("node")
    view = lane.issuing.view()
    assert (view.calls, view.host_seconds, view.waited_seconds) == (2, 0.5, 1.5)


def test_with_the_lock_one_lane_at_a_time_issues():
    """Two lanes' calls never overlap, and both end."""
    lanes = [Lane(0, "cpu"), Lane(1, "cpu")]
    calls = ModelCalls(lanes, "on")
    inside, most = [], []

    def work(lane: int) -> None:
        for _ in range(20):
            with calls.around(lane, "job", "net", resident=True):
                inside.append(lane)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work, args=(lane,)) for lane in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(most), max(most)) == (40, 1)
    assert [lane.issuing.view().calls for lane in lanes] == [20, 20]


@pytest.mark.parametrize(("mode", "resident", "device"), [
    ("off", True, "cuda:0"), ("on", False, "cuda:0"), ("auto", True, "cpu"),
])
def test_who_takes_no_lock(mode: str, resident: bool, device: str):
    """Switched off; a model that is partly in host memory; on the CPU, where the call is the computing itself."""
    lanes = [Lane(0, device), Lane(1, device)]
    calls = ModelCalls(lanes, mode)  # type: ignore[arg-type] # one of the modes, from the list above
    if mode == "auto":
        calls.decision = Decision("on")
    with calls.around(0, "a", "net", resident):
        other = threading.Thread(target=lambda: _once(calls, resident))
        other.start()
        wait_until(lambda: lanes[1].issuing.view().calls == 1)
        other.join(60)
    assert lanes[1].issuing.view().calls == 1


def _once(calls: ModelCalls, resident: bool) -> None:
    with calls.around(1, "b", "net", resident):
        pass


def test_a_lock_that_is_held_for_long_stops_nobody(monkeypatch: pytest.MonkeyPatch):
    """A node that waits for a person inside a model call does not make the other lanes wait with it."""
    monkeypatch.setattr("backend.model_calls.PATIENCE", 0.01)
    lanes = [Lane(0, "cuda:0"), Lane(1, "cuda:1")]
    calls = ModelCalls(lanes, "on")
    with calls.around(0, "a", "net", resident=True):
        other = threading.Thread(target=_once, args=(calls, True))
        other.start()
        other.join(60)
        assert lanes[1].issuing.view().calls == 1
    assert lanes[1].issuing.view().locked_seconds >= 0.01


def test_the_experiment_runs_by_itself():
    """Two busy lanes that wait for each other: the lock is tried, and kept when they became faster."""
    clock, thread = Clock(), Clock()
    lanes = [Lane(0, "cuda:0"), Lane(1, "cuda:1")]
    calls = ModelCalls(lanes, "auto", clock, thread)
    phases = []
    for _ in range(4000):
        for lane in (0, 1):
            with calls.around(lane, f"job{lane}", "net", resident=True):
                # Fighting for the interpreter, a call takes three times what it needs; in its turn, what it needs.
                clock.now += 0.010 if calls.decision.held else 0.030
                thread.now += 0.010
        clock.now += 0.001
        phases.append(calls.decision.phase)
    assert list(dict.fromkeys(phases)) == ["off", "trial", "on"]


def test_an_idle_hour_is_no_window():
    """A rate over time in which nobody asked for anything decides nothing."""
    clock = Clock()
    lanes = [Lane(0, "cuda:0"), Lane(1, "cuda:1")]
    calls = ModelCalls(lanes, "auto", clock, clock)
    calls.decision = Decision("trial", 0.0, window(lanes=2))
    clock.now = 3600.0
    with calls.around(0, "job", "net", resident=True):
        pass
    assert calls.decision.phase == "trial"
