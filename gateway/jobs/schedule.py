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
from gateway.jobs.homes import Homes
from gateway.jobs.places import Places
from gateway.jobs.record import UNNAMED, Record, State
from gateway.jobs.standing import standing
from gateway.schedule.lanes import Lane
from gateway.schedule.line import Waiting
from gateway.schedule.scheduler import Scheduler
from gateway.schedule.settings import read_pins
from gateway.schedule.terms import Choice
from gateway.schedule.workflow import Workflow

FRONT: Final = "front"
_FORETOLD: Final = 50
"""Waiting jobs up to which a new one's end is foretold, to see afterwards how wrong that was."""


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
        self._fleet = fleet
        self._wall = wall
        self.clock: Final = clock
        self.homes: Final = Homes(fleet, read_pins(settings.pins, config.gpus))
        lanes = [Lane(gpu, fleet.member(gpu).weight) for gpu in range(config.gpus)]
        self.scheduler = Scheduler(lanes, settings.rules())
        self._boots: dict[int, str] = {}
        self._heard: dict[int, object] = {}
        self._places = Places(self.scheduler, clock)

    def apply(self, config: Config) -> None:
        """Go by other rules, pins and weights from now on, for those that wait, too."""
        self.homes.pins = read_pins(config.schedule.pins, config.gpus)
        self.scheduler.apply(config.schedule.rules())
        for lane in self.scheduler.lanes.values():
            lane.weight = self._fleet.member(lane.index).weight
        self.homes.look(self.scheduler.line, anew=True)
        self._places.forget()
        self.on_change()

    # Told

    def kept(self, record: Record) -> None:
        """A record has been read from the journal or has changed."""
        now = self.clock()
        if record.ended or record.attempts:
            self.homes.leaves(record.id)
        if record.ended:
            self._ended(record, now)
        elif record.gpu is not None and record.gpu in self.scheduler.lanes:
            member = self._fleet.member(record.gpu)
            self._meet(record.gpu)
            if record.boot and record.boot == member.boot:
                if self.scheduler.lane_of(record.id) != record.gpu:
                    self.scheduler.take_back(record.id)
                    self.scheduler.placed(self.waiting(record), record.gpu, now)
                if record.attempts:
                    self.scheduler.numbered(record.id, record.place)
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
        self._joins(record)
        self.foretell(record.id)
        self.on_change()

    def withdraw(self, job: str) -> None:
        """The job is neither in the line nor on a lane: it never was one, or it did not come there."""
        self.foretold.forget(job)
        self.homes.leaves(job)
        self.scheduler.take_back(job)
        self.scheduler.ended(job, self.clock())
        self.on_change()

    def refused(self, record: Record) -> None:
        """A backend that is not its client's own would not have the job: it waits for the one that it came for."""
        self.homes.bind(record.id)
        self.scheduler.take_back(record.id)
        self.join(record)

    def restore(self, records: Iterable[Record]) -> None:
        """After a restart: those that waited come back to the line, as they were."""
        for record in records:
            if self.waits_here(record):
                self._joins(record)

    def decide(self, job: str = "") -> int | None:
        """Send what is to go somewhere now; the lane of ``job``, if it is among that, for its own way there."""
        if self.homes.look(self.scheduler.line):
            self._places.forget()
        for gpu in self.scheduler.lanes:
            self._meet(gpu)
            self._hear(gpu)
            self.scheduler.lane_state(gpu, standing(self._fleet.member(gpu), gpu, self.held))
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
        """Whose GPU seconds the job's are: its key's, else its client's; who chose no client id goes by address."""
        return record.owner or ("" if record.client_id == UNNAMED else record.client_id) or record.client

    def waiting(self, record: Record) -> Waiting:
        """The job as the scheduler sees it."""
        workflow = Workflow(record.kind or "unknown", frozenset(record.models))
        # Who waited before a restart has not waited less.
        since = self.clock() - max(0.0, self._wall() - (record.times[0][1] if record.times else 0.0))
        return Waiting(
            record.id,
            self.share_of(record),
            workflow,
            record.seq,
            since,
            record.priority,
            float(record.seq) if record.number is None else record.number,
            self.homes.of(record.id, record.client, workflow),
            address=record.client,
        )

    def position(self, job: str) -> int | None:
        """The job's place in the line, or in the queue of the GPU that has it, from 1; ``None``: it does not wait."""
        place = self._places.of(job)
        return None if place is None else place.position or None

    def eta(self, job: str, *, fresh: bool = False) -> float | None:
        """Seconds until the job is expected to end; ``None`` when nobody can say. ``fresh``: as of this moment."""
        place = self._places.of(job, fresh=fresh)
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
        self._places.forget()
        self.on_change()

    # For metrics

    @property
    def waiting_count(self) -> int:
        """Jobs in the line."""
        return len(self.scheduler.line)

    def has(self, job: str) -> bool:
        """Whether it matters at once that this job ends: it makes room on its lane."""
        return self.enabled and self.scheduler.lane_of(job) is not None

    # Within

    def _joins(self, record: Record) -> None:
        self.scheduler.add(self.waiting(record))
        self.homes.joins(record)

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

    def _hear(self, gpu: int) -> None:
        """What the backend says of a lane's models holds from then on, once for each time that it says so."""
        member = self._fleet.member(gpu)
        told = member.lane(gpu - member.first).models
        if told is not self._heard.get(gpu):
            self._heard[gpu] = told
            if told is not None:
                self.scheduler.lanes[gpu].tell(told)


def _nothing() -> None:
    """Nobody decides."""


def _nobody(choice: Choice) -> None:
    """Nobody sends."""
