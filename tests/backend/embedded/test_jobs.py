"""Queues and history: every job in exactly one place, every call to the lane it meant."""

import threading

import pytest

from backend.embedded import jobs as jobs_module
from backend.embedded.jobs import Free, Job, Jobs
from backend.lanes import Lane


@pytest.fixture
def lanes() -> list[Lane]:
    return [Lane(0, "cpu"), Lane(1, "cpu")]


@pytest.fixture
def jobs(lanes: list[Lane]) -> Jobs:
    return Jobs(lanes)


def job(prompt_id: str, lane: int = 0, number: float = 0, client: str | None = None) -> Job:
    return Job(number, prompt_id, {}, {"client_id": client} if client else {}, [], lane)


def put(jobs: Jobs, *prompt_ids: str, lane: int = 0) -> None:
    for each in prompt_ids:
        jobs.submit(job(each, lane))


def take(jobs: Jobs, lane: int = 0) -> Job:
    found = jobs.take(lane)
    assert isinstance(found, Job)
    return found


def ids(found: list[Job]) -> list[str]:
    return [each.prompt_id for each in found]


def test_lower_numbers_first_then_arrival(jobs: Jobs):
    """Equal numbers keep the order they came in, whatever their prompts hold."""
    for number, prompt_id in ((2, "c"), (1, "a"), (2, "d"), (-5, "first"), (1, "b")):
        jobs.submit(job(prompt_id, number=number))
    assert ids(jobs.view(0)[1]) == ["first", "a", "b", "c", "d"]
    assert [take(jobs).prompt_id for _ in range(5)] == ["first", "a", "b", "c", "d"]


def test_a_job_is_seen_until_it_is_in_the_history(jobs: Jobs):
    """Waiting, running, then in the history: at no moment in none of them."""
    put(jobs, "a")
    running = take(jobs)
    assert ids(jobs.view(None)[0]) == ["a"]
    assert jobs.remaining(0) == 1
    jobs.finish(running, "success", {"outputs": {}})
    assert (jobs.remaining(0), list(jobs.history())) == (0, ["a"])


def test_secrets_are_not_shown(jobs: Jobs):
    """API keys in extra_data reach neither the queue nor the history."""
    secret = Job(0, "a", {}, {"api_key_comfy_org": "s3cret", "x": 1}, [], 0)
    jobs.submit(secret)
    assert jobs.view(0)[1][0].item()[3] == {"x": 1}
    jobs.finish(take(jobs), "success", {})
    assert "s3cret" not in str(jobs.history())


def test_the_worker_waits_for_work(jobs: Jobs):
    """take blocks until a job comes for its lane, and ends when the queues close."""
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.extend([jobs.take(1), jobs.take(1)]))
    thread.start()
    put(jobs, "other", lane=0)
    put(jobs, "mine", lane=1)
    while not got and thread.is_alive() and jobs.remaining(1) != 1:
        pass
    jobs.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got[-1] is None


def test_close_stops_what_runs(jobs: Jobs):
    """The running job is told to stop; no other is given out."""
    put(jobs, "a", "b")
    running = take(jobs)
    jobs.close()
    assert running.stop.is_set()
    assert jobs.take(0) is None


def test_interrupt_means_one_moment(jobs: Jobs):
    """Only what runs now is stopped; the flag is the job's own and touches no other, before or after."""
    put(jobs, "a", "b")
    put(jobs, "c", lane=1)
    assert jobs.interrupt(None, "a") == 0
    first, other = take(jobs), take(jobs, 1)
    assert jobs.interrupt(1, "a") == 1  # an id is found on any lane
    jobs.finish(first, "interrupted", {})
    assert jobs.interrupt(0, "a") == 0
    second = take(jobs)
    assert (first.stop.is_set(), second.stop.is_set(), other.stop.is_set()) == (True, False, False)
    assert jobs.interrupt(0, None) == 1
    assert (second.stop.is_set(), other.stop.is_set()) == (True, False)
    assert jobs.interrupt(None, None) == 2


def test_the_same_id_on_two_lanes_is_interrupted_on_both(jobs: Jobs):
    """Who submits an id twice means both by it."""
    put(jobs, "a")
    put(jobs, "a", lane=1)
    both = [take(jobs), take(jobs, 1)]
    assert jobs.interrupt(None, "a") == 2
    assert all(each.stop.is_set() for each in both)


def test_deleting_counts_and_tells(jobs: Jobs, lanes: list[Lane]):
    """Jobs taken out of a queue are counted as deleted there and told once; unknown ids are passed over."""
    told: list[tuple[str, list[str]]] = []
    put(jobs, "a", "b", "c")
    put(jobs, "d", lane=1)
    jobs.on_change = lambda change, gone: told.append((change, ids(list(gone))))
    jobs.delete(0, ["b", "d", "zzz"])
    jobs.clear(1)
    jobs.clear(1)
    assert told == [("ended", ["b"]), ("ended", ["d"])]
    assert [lane.stats.snapshot().outcomes["deleted"] for lane in lanes] == [1, 1]
    assert ids(jobs.view(None)[1]) == ["a", "c"]


def test_free_is_asked_once_and_adds_up(jobs: Jobs):
    """Two requests before the worker looks are one; outputs include models; only the lane meant is asked."""
    jobs.free(0, models=True, outputs=False)
    jobs.free(0, models=False, outputs=True)
    put(jobs, "a")
    put(jobs, "b", lane=1)
    assert jobs.take(0) == Free(models=True, outputs=True)
    assert take(jobs).prompt_id == "a"
    assert take(jobs, 1).prompt_id == "b"


def finished(jobs: Jobs, *prompt_ids: str, lane: int = 0) -> None:
    for each in prompt_ids:
        jobs.submit(job(each, lane))
        jobs.finish(take(jobs, lane), "success", {})


def test_history_is_bounded(jobs: Jobs, monkeypatch: pytest.MonkeyPatch):
    """The oldest entry goes when there are too many."""
    monkeypatch.setattr(jobs_module, "MAX_HISTORY", 3)
    finished(jobs, "a", "b", "c", "d")
    assert list(jobs.history()) == ["b", "c", "d"]


def test_an_id_run_again_moves_to_the_end(jobs: Jobs):
    """The history keeps the last run of an id, at its place in time."""
    finished(jobs, "a", "b", "a")
    assert list(jobs.history()) == ["b", "a"]


@pytest.mark.parametrize(
    ("max_items", "offset", "expected"),
    [
        (None, -1, "abcd"), (2, -1, "cd"), (9, -1, "abcd"), (0, -1, ""), (2, 0, "ab"), (2, 3, "d"), (None, 2, "cd"),
        (2, 9, ""),
    ],
)  # fmt: skip
def test_history_pages(jobs: Jobs, max_items: int | None, offset: int, expected: str):
    """Newest by max_items, pages from the oldest by offset."""
    finished(jobs, *"abcd")
    assert "".join(jobs.history(max_items, offset)) == expected


def test_forgetting_keeps_to_the_lane(jobs: Jobs):
    """Clear and delete through a lane leave the other lanes' entries."""
    finished(jobs, "a", "b")
    finished(jobs, "c", lane=1)
    jobs.forget(1, ["a", "zzz"])
    assert list(jobs.history()) == ["a", "b", "c"]
    jobs.forget(0, ["a"])
    jobs.forget(1)
    assert list(jobs.history()) == ["b"]
    jobs.forget(None)
    assert jobs.history() == {}
