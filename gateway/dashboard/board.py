"""What the dashboard shows: every GPU, the newest jobs and the gateway itself, as plain values.

Owns their names and words, and that nothing is worked out twice between two looks. Must never know who is looking, nor
how it gets there.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.dashboard.meter import Meter
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.jobs.live import Progress
from gateway.jobs.record import Record, State, in_order
from gateway.observe.metrics import FRONT, Metrics

MOST_JOBS: Final = 200
"""The newest jobs, which the table shows."""
_QUEUE: Final = 8
"""Waiting jobs that are named for each GPU."""
_RECENT: Final = 60.0
"""Seconds over which a rate is counted."""
_COUNTED: Final = 2000
"""Newest jobs among which the ended ones are counted."""
_SELDOM: Final = 1.0
"""Seconds for which a rate and the queues' order are good."""

Shown = dict[str, Any]
JobShown = tuple[Record, Shown]


@dataclass(frozen=True)
class Look:
    """Everything at one moment."""

    gateway: Shown
    gpus: Sequence[Shown]
    """``running`` and ``queue`` hold records; ``stream`` says what of them a viewer sees."""
    jobs: Mapping[str, JobShown]
    """The newest jobs by id; the same object as long as nothing has changed."""


class Board:
    """Looks at everything, at most once for all viewers in each ``pace`` seconds."""

    def __init__(
        self,
        fleet: Fleet,
        desk: Desk,
        metrics: Metrics,
        meter: Meter,
        show: Callable[[Record], dict[str, Any]],
        *,
        pace: float = 0.25,
    ) -> None:
        """``show`` is a job as the API shows it."""
        self._fleet = fleet
        self._desk = desk
        self._metrics = metrics
        self._meter = meter
        self._show = show
        self._pace = pace
        self._newest: Look | None = None
        self._at = 0.0
        self._jobs: dict[str, JobShown] = {}
        self._seldom_at = float("-inf")
        self._moves = -1
        self._queues: dict[int | None, list[Record]] = {}
        self._rates: dict[int | None, int] = {}

    def look(self) -> Look:
        """How it all is."""
        now = time.monotonic()
        if self._newest is None or now - self._at >= self._pace * 0.9:
            self._at = now
            self._sort(now)
            self._jobs = self._all_jobs()
            gpus = [self._gpu(gpu) for gpu in range(self._fleet.gpus)]
            self._newest = Look(self._gateway(), gpus, self._jobs)
        return self._newest

    def _sort(self, now: float) -> None:
        """Who waits where, and how much has been done of late."""
        moves = sum(self._desk.journal.moves.values())
        if moves == self._moves and now - self._seldom_at < _SELDOM:
            return
        self._moves, self._seldom_at = moves, now
        self._queues = {}
        for record in in_order(self._desk.journal.unfinished()):
            self._queues.setdefault(record.gpu, []).append(record)
        since = self._desk.journal.clock() - _RECENT
        self._rates = {}
        for place, record in enumerate(self._desk.journal.newest_first()):
            if place >= _COUNTED:
                break
            if record.state is State.SUCCEEDED and record.at >= since:
                self._rates[record.gpu] = self._rates.get(record.gpu, 0) + 1

    def _all_jobs(self) -> dict[str, JobShown]:
        found: dict[str, JobShown] = {}
        for record in self._desk.journal.newest_first():
            if len(found) >= MOST_JOBS:
                break
            before = self._jobs.get(record.id)
            if before is not None and before[0] is record and record.ended:
                found[record.id] = before
                continue
            shown = self._job(record)
            found[record.id] = before if before is not None and before[1] == shown else (record, shown)
        return found

    def _job(self, record: Record) -> Shown:
        left_out = {"times", "links", "webhook", "port", "progress"}
        told = {name: value for name, value in self._show(record).items() if name not in left_out}
        return {**told, "seq": record.seq, "progress": self._progress(record)}

    def _progress(self, record: Record) -> Shown | None:
        progress = None if record.ended else self._desk.live.of(record.id)
        return None if progress is None else shown_progress(progress)

    def _gpu(self, gpu: int) -> Shown:
        member, lane = self._fleet.member(gpu), self._fleet.lane(gpu)
        state, reason = state_of(self._fleet, gpu)
        here = self._queues.get(gpu, [])
        running = [record for record in here if record.state is State.RUNNING]
        waiting = [record for record in here if record.state is State.QUEUED]
        return {
            "gpu": gpu,
            "backend": member.index,
            "state": state,
            "reason": reason,
            "drained": gpu in member.drained,
            "load": lane.load,
            "running": running,
            "waiting": len(waiting),
            "queue": waiting[:_QUEUE],
            "jobs_per_minute": self._rates.get(gpu, 0),
            "denied": self._metrics.denied_on(str(gpu)),
            **self._meter.of(gpu),
        }

    def _gateway(self) -> Shown:
        fleet, healthy, faults = self._fleet, self._fleet.healthy, self._fleet.faults
        return {
            "status": "unhealthy" if not healthy else "degraded" if faults else "healthy",
            "reason": " ".join(faults) if fleet.up else fleet.reason,
            "denied": self._metrics.denied_on(FRONT),
            "line": {
                "waiting": len(self._queues.get(None, ())),
                "enabled": self._desk.schedule.enabled,
                "paused": self._desk.schedule.paused,
                "queue": self._queues.get(None, [])[:_QUEUE],
            },
            "counts": self._desk.job_counts(),
            "backends": [
                {
                    "backend": member.index,
                    "body": member.body,
                    "state": member.state,
                    "reason": member.reason,
                    "gpus": [member.first, member.first + member.gpus - 1],
                    "verdict": self._meter.verdict(member.index),
                }
                for member in fleet.members
            ],
        }


def shown_progress(progress: Progress) -> Shown:
    """How far a job is; ``picture`` is the number of its newest preview, 0 when there is none."""
    return {
        **progress.shown(),
        "node_class": progress.classes.get(progress.node or "", ""),
        "picture": progress.pictures,
    }


def state_of(fleet: Fleet, gpu: int) -> tuple[str, str]:
    """A GPU's state in one word, and in one sentence why it does not take jobs as usual."""
    member, load = fleet.member(gpu), fleet.load(gpu)
    if not member.up:
        return "down", member.reason
    if fault := fleet.fault(gpu):
        return "faulted", fault
    if gpu - member.first >= member.width:
        return "absent", "The backend has no lane for this port; its jobs run on the backend's other lanes."
    if member.drain or gpu in member.drained:
        left = f"{load} job(s) left" if load else "nothing left on it"
        return "draining", f"The front door gives it no new jobs; {left}."
    if member.out:
        return "faulted", "Looks at it fail; the front door passes it over."
    return ("busy" if load else "ready"), ""
