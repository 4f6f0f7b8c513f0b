"""The scheduler in the gateway: told of every job's changes, asked where each stands and why.

Owns the one ``Scheduler`` and its clock, and what its answers look like to users. It never sends anything: that is
``dispatch.py``. Must never know HTTP.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from gateway.config import Config
from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.jobs.foretold import Foretold
from gateway.jobs.record import Record, State
from gateway.schedule.lanes import Lane
from gateway.schedule.lanes import State as LaneState
from gateway.schedule.line import Waiting
from gateway.schedule.scheduler import Scheduler
from gateway.schedule.settings import pinned, read_pins
from gateway.schedule.terms import Choice, Place
from gateway.schedule.workflow import Workflow

FRONT: Final = "front"
_FORETOLD: Final = 50
"""Waiting jobs up to which a new one's end is foretold, to see afterwards how wrong that was."""
_PLAN_SHARE: Final = 20
"""A plan of the whole line holds for so many times as long as it took to make, and half a second at least."""


class Schedule:
    """Where every job is to go, stands and will end. Times in its answers are seconds from now."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = config.schedule
        self.enabled: Final = settings.enabled
        self.on_change: Callable[[], None] = _nothing
        """Called when the next job might go somewhere now."""
        self.on_choice: Callable[[Choice], None] = _nobody
        """Called with each job that is to be sent now."""
        self.foretold: Final = Foretold()
        self.held: Collection[Member] = ()
        """Backends to which nothing may go now."""
        self.here: dict[str, str] = {}
        """Client ids of the jobs that their clients believe to wait in a queue, and that no backend has yet."""
        self._fleet = fleet
        self._wall = wall
        self.clock: Final = clock
        self._pins = read_pins(settings.pins, config.gpus)
        lanes = [Lane(gpu, fleet.member(gpu).weight) for gpu in range(config.gpus)]
        self.scheduler = Scheduler(lanes, settings.rules())
        self._boots: dict[int, str] = {}
        self._plan: tuple[float, dict[str, Place]] = (-math.inf, {})

    # Told

    def kept(self, record: Record) -> None:
        """A record has been read from the journal or has changed."""
        now = self.clock()
        if record.ended or record.attempts:
            self.here.pop(record.id, None)
        if record.ended:
            self._ended(record, now)
        elif record.gpu is not None and record.gpu in self.scheduler.lanes:
            member = self._fleet.member(record.gpu)
            self._meet(record.gpu)
            if record.boot and record.boot == member.boot:
                if self.scheduler.lane_of(record.id) != record.gpu:
                    self.scheduler.take_back(record.id)
                    self.scheduler.placed(self.waiting(record), record.gpu, now)
                if record.state is State.RUNNING:
                    self.scheduler.started(record.id, now)

    def at_once(self, record: Record) -> int | None:
        """The lane to which a new job goes now, its place reserved; ``None``: it has to wait, and is in no line yet."""
        self.scheduler.add(self.waiting(record))
        gpu = self.decide(record.id)
        if gpu is None:
            self.scheduler.ended(record.id, self.clock())
        else:
            self.foretell(record.id)
        return gpu

    def join(self, record: Record) -> None:
        """The job waits from now on."""
        self.scheduler.add(self.waiting(record))
        self.here[record.id] = record.client_id
        self.foretell(record.id)
        self.on_change()

    def withdraw(self, job: str) -> None:
        """The job is neither in the line nor on a lane: it never was one, or it did not come there."""
        self.foretold.forget(job)
        self.here.pop(job, None)
        self.scheduler.take_back(job)
        self.scheduler.ended(job, self.clock())
        self.on_change()

    def restore(self, records: Iterable[Record]) -> None:
        """After a restart: those that waited come back to the line, as they were."""
        for record in records:
            if self.waits_here(record):
                self.here[record.id] = record.client_id
                self.scheduler.add(self.waiting(record))

    def decide(self, job: str = "") -> int | None:
        """Send what is to go somewhere now; the lane of ``job``, if it is among that, for its own way there."""
        for gpu in self.scheduler.lanes:
            self._meet(gpu)
            self.scheduler.lane_state(gpu, self._state_of(gpu))
        found: int | None = None
        while (choice := self.scheduler.next(self.clock())) is not None:
            if choice.job == job:
                found = choice.gpu
            else:
                self.on_choice(choice)
        return found

    def wake_in(self) -> float | None:
        """Seconds until ``decide`` may do something though nothing has happened."""
        now = self.clock()
        wake = self.scheduler.wake_at(now)
        return None if wake is None else wake - now

    def check(self, client: str) -> None:
        """Whether one more job of this client may wait; raises ``FullError``."""
        self.scheduler.check(client, self.clock())

    def check_lane(self, gpu: int) -> None:
        """Whether one more job may go straight to this GPU; raises ``FullError``."""
        if self.enabled and gpu in self.scheduler.lanes:
            self.scheduler.check_lane(gpu, self.clock())

    def foretell(self, job: str) -> None:
        """Remember when the job is expected to end."""
        if len(self.scheduler.line) <= _FORETOLD and (eta := self.eta(job, fresh=True)) is not None:
            self.foretold.remember(job, self.clock() + eta)

    # Asked

    def waits_here(self, record: Record) -> bool:
        """Whether the job is the line's: it came in at the front door, and no lane has been chosen for it."""
        return self.enabled and not record.ended and record.gpu is None and record.port == FRONT

    def share_of(self, record: Record) -> str:
        """Whose GPU seconds the job's are: its key's, else its client's."""
        return record.owner or record.client_id or record.client

    def waiting(self, record: Record) -> Waiting:
        """The job as the scheduler sees it."""
        workflow = Workflow(record.kind or "unknown", frozenset(record.models))
        # Who waited before a restart has not waited less.
        since = self.clock() - max(0.0, self._wall() - (record.times[0][1] if record.times else 0.0))
        near = self._fleet.near(record.client)
        pins = pinned(self._pins, workflow)
        if near is not None:
            pins = frozenset(near) if pins is None else (pins & frozenset(near) or pins)
        return Waiting(
            record.id,
            self.share_of(record),
            workflow,
            record.seq,
            since,
            record.priority,
            float(record.seq) if record.number is None else record.number,
            pins,
        )

    def position(self, job: str) -> int | None:
        """The job's place in the line, from 1; ``None`` when it does not wait there."""
        place = self._place(job)
        return None if place is None else place.position

    def eta(self, job: str, *, fresh: bool = False) -> float | None:
        """Seconds until the job is expected to end; ``None`` when nobody can say. ``fresh``: as of this moment."""
        now = self.clock()
        if (left := self.scheduler.left(job, now)) is not None:
            return left
        place = self._place(job, fresh=fresh)
        return None if place is None or math.isinf(place.finish) else place.finish

    def line(self) -> list[str]:
        """All waiting jobs, the next one first."""
        return [place.job for place in self.scheduler.plan(self.clock())]

    def explain(self, job: str) -> dict[str, Any]:
        """Why the job is where it is: every lane's score when it was chosen, and for one that waits, as of now."""
        now, scheduler = self.clock(), self.scheduler
        waiting = scheduler.line.get(job)
        choice = scheduler.chosen(job)
        told: dict[str, Any] = {
            "waiting": waiting is not None,
            "position": self.position(job),
            "eta_seconds": self.eta(job),
            "choice": None if choice is None else choice.told(self._wall() - (now - choice.at)),
        }
        if waiting is not None:
            told |= {
                "class": waiting.workflow.kind,
                "models": sorted(waiting.workflow.models),
                "priority": waiting.priority,
                "share_of": waiting.client,
                "gpus": None if waiting.pins is None else sorted(waiting.pins),
                "deferred_seconds": 0.0 if waiting.passed is None else round(now - waiting.passed, 3),
                "lanes": [score.told() for score in scheduler.scores(waiting, now)],
            }
        return told

    @property
    def paused(self) -> bool:
        """Whether nothing of the line is sent until somebody says otherwise."""
        return self.scheduler.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.scheduler.paused = paused
        self._plan = (-math.inf, {})
        self.on_change()

    # For metrics

    @property
    def waiting_count(self) -> int:
        """Jobs in the line."""
        return len(self.scheduler.line)

    @property
    def tight(self) -> bool:
        """Whether it matters at once that a job ends: others wait, or would have to."""
        lanes = self.scheduler.lanes.values()
        depth = self.scheduler.rules.depth
        return self.enabled and (self.waiting_count > 0 or any(lane.load >= depth for lane in lanes))

    # Within

    def _place(self, job: str, *, fresh: bool = False) -> Place | None:
        if self.scheduler.line.get(job) is None:
            return None
        until, places = self._plan
        if fresh or self.clock() >= until or job not in places:
            began = self.clock()
            places = {place.job: place for place in self.scheduler.plan(began)}
            took = self.clock() - began
            self._plan = (began + took + max(0.5, _PLAN_SHARE * took), places)
        return places.get(job)

    def _ended(self, record: Record, now: float) -> None:
        scheduler = self.scheduler
        began = record.since(State.RUNNING)
        took = record.at - began if began is not None and record.state is State.SUCCEEDED else None
        took = None if took is None else max(0.0, took)
        known = scheduler.lane_of(record.id) is not None
        waited = scheduler.line.get(record.id) is not None
        if took is not None:
            self.foretold.came(record.id, now)
        self.foretold.forget(record.id)
        scheduler.ended(record.id, now, took=took)
        if known or waited:
            self.on_change()
        elif took is not None and record.gpu in scheduler.lanes and record.kind:
            # From before a restart: what was learned then.
            lane = scheduler.lanes[record.gpu]
            workflow = Workflow(record.kind, frozenset(record.models))
            scheduler.estimates.learn(workflow, lane.index, lane.weight, took)

    def _meet(self, gpu: int) -> None:
        """What was on a lane is gone when another life of its backend is there."""
        boot = self._fleet.member(gpu).boot
        if self._boots.setdefault(gpu, boot) != boot:
            self._boots[gpu] = boot
            self.scheduler.lane_lost(gpu)

    def _state_of(self, gpu: int) -> LaneState:
        member = self._fleet.member(gpu)
        if not member.up or member.out or gpu >= member.first + member.width:
            return LaneState.DOWN
        if member.fault(gpu):
            return LaneState.FAULTED
        drains = member.drain or gpu in member.drained or member in self.held
        return LaneState.DRAINING if drains else LaneState.READY


def _nothing() -> None:
    """Nobody decides."""


def _nobody(choice: Choice) -> None:
    """Nobody sends."""
