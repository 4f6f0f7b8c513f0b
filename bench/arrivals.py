"""Arrivals for the scheduler's replay: generated from a seed, or read out of a gateway's journal."""

import json
import random
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from gateway.schedule.workflow import UNKNOWN, Workflow, read


@dataclass(frozen=True)
class Job:
    """One job: it comes at ``at`` and takes ``work`` seconds on a GPU of speed 1 that holds its models."""

    name: str
    at: float
    workflow: Workflow
    work: float
    client: str = ""


@dataclass(frozen=True)
class World:
    """What the policies have to deal with."""

    jobs: tuple[Job, ...]
    speeds: tuple[float, ...] = (1.0, 1.0, 1.0, 0.5)
    loads: tuple[tuple[str, float], ...] = ()
    """Seconds to load each model, whatever the GPU's speed: it comes from the disk."""
    room: int = 1
    """Models that a GPU holds."""

    def load(self, model: str) -> float:
        """Seconds; 8 where nothing is said."""
        return dict(self.loads).get(model, 8.0)

    def lower_bound(self) -> float:
        """No order of the jobs ends sooner.

        What comes from some moment on needs its work, at all GPUs' speed together; and a job needs the fastest GPU.
        Loads are left out, so that the bound holds whatever a GPU may have held before.
        """
        together, fastest = sum(self.speeds), max(self.speeds)
        bound, work = 0.0, 0.0
        for job in sorted(self.jobs, key=lambda each: -each.at):
            work += job.work
            bound = max(bound, job.at + work / together, job.at + job.work / fastest)
        return bound


CHECKPOINTS = (("sdxl.safetensors", 0.5, 7.0), ("flux.safetensors", 0.3, 14.0), ("sd15.safetensors", 0.2, 4.0))
"""Name, share of the workflow classes' jobs, seconds to load."""


def generated(seed: int, jobs: int = 400, busy: float = 0.9) -> World:
    """Bursts of like jobs of six clients, on three checkpoints, with durations that have a long tail.

    ``busy``: the work that comes, as a share of what the GPUs can do together, model loads not counted; a large number
    lets everything come nearly at once.
    """
    chance = random.Random(seed)
    speeds = World(()).speeds
    kinds = [
        (Workflow(f"{model}-{number}", frozenset({model})), share / 4, chance.lognormvariate(2.3, 0.9))
        for model, share, _ in CHECKPOINTS
        for number in range(4)
    ]
    shares = [share for _, share, _ in kinds]
    made: list[tuple[float, Workflow, float, str]] = []
    at = 0.0
    while len(made) < jobs:
        workflow, _, typical = chance.choices(kinds, shares)[0]
        client = f"client-{chance.randrange(6)}"
        burst = min(1 + int(chance.expovariate(1 / 4)), jobs - len(made))
        works = [typical * chance.lognormvariate(0.0, 0.4) for _ in range(burst)]
        at += chance.expovariate(1.0) * sum(works) / (busy * sum(speeds))
        made += [(at + 0.05 * number, workflow, work, client) for number, work in enumerate(works)]
    made.sort(key=lambda each: each[0])
    return World(
        tuple(
            Job(f"job-{number}", at, workflow, work, client) for number, (at, workflow, work, client) in enumerate(made)
        ),
        speeds,
        tuple((name, load) for name, _, load in CHECKPOINTS),
    )


def recorded(folder: Path) -> World:
    """What a gateway's journal has seen succeed: when it came, how long it ran, and its workflow."""
    with sqlite3.connect(f"file:{folder / 'jobs.sqlite3'}?mode=ro", uri=True) as store:
        rows = store.execute("SELECT record, entry FROM jobs WHERE entry IS NOT NULL ORDER BY seq").fetchall()
    found = []
    for record, entry in ((json.loads(record), json.loads(entry)) for record, entry in rows):
        times = dict(record["times"])
        if "running" not in times or "succeeded" not in times:
            continue
        item = entry.get("prompt")
        workflow = read(item[2]) if isinstance(item, list) and len(item) > 2 else UNKNOWN
        work = max(0.01, times["succeeded"] - times["running"])
        found.append((times["queued"], workflow, work, record["client_id"] or record["client"], record["id"]))
    if not found:
        raise ValueError(f"the journal in {folder} has no job that succeeded")
    first = min(at for at, *_ in found)
    return World(tuple(Job(name, at - first, workflow, work, client) for at, workflow, work, client, name in found))
