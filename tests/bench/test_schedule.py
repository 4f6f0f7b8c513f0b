"""The replay of the scheduler, small: the order of the policies, on a clock of its own, the same everywhere."""

import json
import sqlite3
from pathlib import Path

import pytest

from bench.arrivals import Job, World, generated, recorded
from bench.replay import Ours, PollAndPick, Replay, RoundRobin
from bench.schedule import ahead, table
from gateway.schedule.workflow import Workflow

SEEDS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [generated(seed, 200, 1.2) for seed in SEEDS]


def test_the_gateways_scheduler_is_ahead_of_the_others(worlds: list[World]):
    """On mean wait and on model loads, of each, on every run."""
    assert ahead(table(worlds)) == (len(SEEDS), len(SEEDS))


def test_it_is_within_a_tenth_of_the_lower_bound(worlds: list[World]):
    """On average over the runs: nothing could end sooner than the bound."""
    ratios = [Replay(world, Ours()).run().makespan / world.lower_bound() for world in worlds]
    assert all(ratio >= 1.0 for ratio in ratios)
    assert sum(ratios) / len(ratios) < 1.1


def test_a_replay_is_the_same_each_time():
    """Nothing of the machine it runs on goes into it."""
    world = generated(7, 60)
    assert Replay(world, Ours()).run() == Replay(world, Ours()).run()


def test_a_replay_does_what_it_says():
    """Three jobs, by hand: a load, a warm start, and the half as fast GPU."""
    one, two = Workflow("k", frozenset({"m"})), Workflow("l", frozenset({"n"}))
    jobs = (Job("a", 0.0, one, 10.0), Job("b", 0.0, two, 10.0), Job("c", 1.0, one, 10.0))
    world = World(jobs, (1.0, 0.5), (("m", 4.0), ("n", 2.0)))
    replay = Replay(world, RoundRobin())
    result = replay.run()
    # a: 4 + 10 on GPU 0; b: 2 + 20 on GPU 1; c: warm behind a.
    assert replay.ends == {"a": 14.0, "b": 22.0, "c": 24.0}
    assert (result.loads, result.waits, result.makespan) == (2, (0.0, 0.0, 13.0), 24.0)
    assert world.lower_bound() == 20.0


def test_poll_and_pick_piles_a_burst_on_one_gpu():
    """Which is why it loads few models, and why its jobs wait."""
    kind = Workflow("k", frozenset({"m"}))
    world = World(tuple(Job(f"j{n}", 0.1 + n / 100, kind, 10.0) for n in range(4)), (1.0, 1.0))
    assert Replay(world, PollAndPick()).run().loads == 1
    assert Replay(world, PollAndPick()).run().makespan > 40.0


def test_arrivals_are_read_out_of_a_journal(tmp_path: Path):
    """What succeeded: when it came, how long it ran, and what it was."""
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as store:
        store.execute("CREATE TABLE jobs (id, seq, key, record, body, entry)")
        for number, end in ((1, "succeeded"), (2, "failed"), (3, "succeeded")):
            times = [["queued", 100.0 + number], ["running", 110.0], [end, 117.0]]
            record = {"id": f"j{number}", "times": times, "client_id": "me", "client": "127.0.0.1"}
            graph = {"1": {"class_type": "Loader", "inputs": {"ckpt_name": "x.safetensors"}}}
            entry = {"prompt": [1, f"j{number}", graph, {}, []]}
            values = (f"j{number}", number, json.dumps(record), json.dumps(entry))
            store.execute("INSERT INTO jobs (id, seq, record, entry) VALUES (?, ?, ?, ?)", values)
    world = recorded(tmp_path)
    assert [(job.name, job.at, job.work, job.client) for job in world.jobs] == [
        ("j1", 0.0, 7.0, "me"),
        ("j3", 2.0, 7.0, "me"),
    ]
    assert world.jobs[0].workflow.models == {"x.safetensors"}
    with pytest.raises(sqlite3.OperationalError):
        recorded(tmp_path / "nothing")
