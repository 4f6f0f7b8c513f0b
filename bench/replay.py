"""Replays arrivals against a policy: GPUs that load models and run jobs one after the other, on a clock of their own.

Deterministic: the same world and policy always give the same result, on any machine. ``Ours`` drives the very
``gateway.schedule`` object that the gateway drives.
"""

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from bench.arrivals import Job, World
from gateway.schedule.lanes import Lane
from gateway.schedule.line import Waiting
from gateway.schedule.scheduler import Scheduler
from gateway.schedule.terms import Rules


@dataclass(frozen=True)
class Result:
    """One replay; times in seconds."""

    makespan: float
    waits: tuple[float, ...]
    """Of each job, from its arrival to its start, in the order of their ends."""
    loads: int
    """Models loaded."""
    eta_errors: tuple[float, ...] = ()
    """Of each job, how far off its expected end was when it came; empty where nothing is expected."""

    @property
    def mean(self) -> float:
        """Mean wait."""
        return sum(self.waits) / len(self.waits)

    @property
    def p95(self) -> float:
        """The wait that one job in twenty exceeds."""
        return sorted(self.waits)[int(len(self.waits) * 0.95)]


class Policy(Protocol):
    """Decides; told of what it could see in reality."""

    promised: Mapping[str, float]
    """When each job was expected to end, as it came; empty for those who expect nothing."""

    def begin(self, replay: "Replay") -> None:
        """Before anything happens."""

    def arrives(self, job: Job) -> None:
        """A job is submitted."""

    def starts(self, job: Job, gpu: int) -> None:
        """A GPU began with it."""

    def ends(self, job: Job, gpu: int, took: float) -> None:
        """A GPU is done with it, ``took`` seconds after its start."""


class Gpu:
    """Runs what it is sent, in order."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.queue: deque[Job] = deque()
        self.running: Job | None = None
        self.held: OrderedDict[str, None] = OrderedDict()

    @property
    def load(self) -> int:
        """Jobs running and waiting there."""
        return len(self.queue) + (self.running is not None)


class Replay:
    """One run; ``now`` is the only clock."""

    def __init__(self, world: World, policy: Policy) -> None:
        self.world = world
        self.gpus = [Gpu(speed) for speed in world.speeds]
        self.now = 0.0
        self.left = len(world.jobs)
        self.ends: dict[str, float] = {}
        self._policy = policy
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waits: list[float] = []
        self._loads = 0

    def run(self) -> Result:
        """Everything that comes, until it has ended."""
        self._policy.begin(self)
        for job in self.world.jobs:
            self.at(job.at, lambda job=job: self._policy.arrives(job))  # type: ignore[misc]  # bound now
        while self.left:
            self.now, _, event = heapq.heappop(self._events)
            event()
        errors = (abs(self.ends[job] - at) for job, at in self._policy.promised.items())
        return Result(self.now, tuple(self._waits), self._loads, tuple(errors))

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Call this then."""
        heapq.heappush(self._events, (when, next(self._order), event))

    def send(self, job: Job, gpu: int) -> None:
        """Put a job into a GPU's queue, for good."""
        self.gpus[gpu].queue.append(job)
        self._start(gpu)

    def _start(self, index: int) -> None:
        gpu = self.gpus[index]
        if gpu.running is not None or not gpu.queue:
            return
        job = gpu.running = gpu.queue.popleft()
        self._waits.append(self.now - job.at)
        took = job.work / gpu.speed
        for model in sorted(job.workflow.models):
            if model not in gpu.held:
                self._loads += 1
                took += self.world.load(model)
            gpu.held[model] = None
            gpu.held.move_to_end(model)
        while len(gpu.held) > max(self.world.room, len(job.workflow.models)):
            gpu.held.popitem(last=False)
        self._policy.starts(job, index)
        self.at(self.now + took, lambda: self._end(job, index, took))

    def _end(self, job: Job, index: int, took: float) -> None:
        self.gpus[index].running = None
        self.left -= 1
        self.ends[job.name] = self.now
        # The next one starts at once, whatever the policy does.
        self._start(index)
        self._policy.ends(job, index, took)


class _Immediate:
    """Sends each job on as it comes."""

    replay: Replay
    promised: Mapping[str, float] = MappingProxyType({})

    def begin(self, replay: Replay) -> None:
        self.replay = replay

    def arrives(self, job: Job) -> None:
        self.replay.send(job, self.pick())

    def pick(self) -> int:
        raise NotImplementedError

    def starts(self, job: Job, gpu: int) -> None:
        """Not looked at."""

    def ends(self, job: Job, gpu: int, took: float) -> None:
        """Not looked at."""


class RoundRobin(_Immediate):
    """nginx's smooth weighted round-robin, its weights set to the true speeds."""

    def begin(self, replay: Replay) -> None:
        super().begin(replay)
        self._credit = [0.0] * len(replay.gpus)

    def pick(self) -> int:
        for index, gpu in enumerate(self.replay.gpus):
            self._credit[index] += gpu.speed
        best = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[best] -= sum(gpu.speed for gpu in self.replay.gpus)
        return best


class LeastConn(RoundRobin):
    """nginx's least_conn as if a connection lasted as long as its job: fewest by weight, among equals in turn."""

    def pick(self) -> int:
        gpus = self.replay.gpus
        least = min(gpu.load / gpu.speed for gpu in gpus)
        among = [index for index, gpu in enumerate(gpus) if gpu.load / gpu.speed == least]
        for index in among:
            self._credit[index] += gpus[index].speed
        best = max(among, key=self._credit.__getitem__)
        self._credit[best] -= sum(gpus[index].speed for index in among)
        return best


class PollAndPick(_Immediate):
    """Looks at every queue each half second; the first idle GPU, else the least (running + pending) / weight."""

    def __init__(self, every: float = 0.5) -> None:
        self._every = every
        self._seen: list[int] = []

    def begin(self, replay: Replay) -> None:
        super().begin(replay)
        self._poll()

    def _poll(self) -> None:
        replay = self.replay
        self._seen = [gpu.load for gpu in replay.gpus]
        if replay.left:
            replay.at(replay.now + self._every, self._poll)

    def pick(self) -> int:
        gpus = self.replay.gpus
        idle = [index for index, load in enumerate(self._seen) if not load]
        return idle[0] if idle else min(range(len(gpus)), key=lambda index: self._seen[index] / gpus[index].speed)


class Ours:
    """The gateway's scheduler; ``told``: whether it is told the GPUs' speeds as weights, or has to find out."""

    def __init__(self, *, told: bool = True, rules: Rules | None = None) -> None:
        self._told = told
        self._rules = rules or Rules()
        self._seq = itertools.count(1)
        self.promised: dict[str, float] = {}
        self._jobs: dict[str, Job] = {}

    def begin(self, replay: Replay) -> None:
        """One lane per GPU; nothing is known yet."""
        self.replay = replay
        self._jobs = {job.name: job for job in replay.world.jobs}
        self.scheduler = Scheduler(
            (Lane(index, gpu.speed if self._told else 1.0) for index, gpu in enumerate(replay.gpus)), self._rules
        )

    def arrives(self, job: Job) -> None:
        """Into the line."""
        seq = next(self._seq)
        now = self.replay.now
        self.scheduler.add(Waiting(job.name, job.client, job.workflow, seq, now, number=seq))
        self._decide()
        expected = self.scheduler.left(job.name, now)
        if expected is None:
            expected = next(place.finish for place in self.scheduler.plan(now) if place.job == job.name)
        self.promised[job.name] = now + expected

    def starts(self, job: Job, gpu: int) -> None:
        """It sees that in the queues."""
        self.scheduler.started(job.name, self.replay.now)

    def ends(self, job: Job, gpu: int, took: float) -> None:
        """It sees that in the history."""
        self.scheduler.ended(job.name, self.replay.now, took=took)
        self._decide()

    def _decide(self) -> None:
        while (choice := self.scheduler.next(self.replay.now)) is not None:
            self.replay.send(self._jobs[choice.job], choice.gpu)
        wake = self.scheduler.wake_at(self.replay.now)
        if wake is not None:
            self.replay.at(wake, self._decide)
