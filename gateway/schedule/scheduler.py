"""The scheduler: told what happens, asked what to do. The same object works in the gateway and in the simulator.

Pure. Owns the line, the lanes, and the choice. A lane gets a job when it has fewer than ``depth``; until then jobs wait
here, so that a slow lane never holds what a fast one could run. Every call brings its time, in seconds on a clock that
never goes back. Must never know what a prompt looks like on the wire, nor who sends anything.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from gateway.schedule.estimates import Estimates
from gateway.schedule.lanes import Lane, Placed, State
from gateway.schedule.line import Line, Waiting
from gateway.schedule.score import Market, Outlook, Score, why_not
from gateway.schedule.terms import Choice, FullError, Place, Rules

WINDOW: Final = 64
"""Waiting jobs that are looked at for one choice; those behind them wait for their turn."""
_AT_LAST: Final = 4
"""Patiences after which a job goes to the best lane that has room, though another would finish it sooner."""
_REMEMBERED: Final = 2000
"""Choices that can still be explained."""
_EQUAL: Final = 0.1
"""Seconds by which two ends may differ and be the same: no estimate is better than that."""

Scored = tuple[Score, Outlook]


class Scheduler:
    """Lanes, line and estimates. A job is in the line, on a lane, or unknown."""

    def __init__(self, lanes: Iterable[Lane], rules: Rules | None = None, estimates: Estimates | None = None) -> None:
        self.rules = rules or Rules()
        self.lanes = {lane.index: lane for lane in lanes}
        self.estimates = estimates or Estimates()
        self.line = Line(self.rules.ageing, self.rules.shares)
        self.paused = False
        """Whether nothing of the line goes anywhere until somebody says otherwise."""
        self._on: dict[str, int] = {}
        """The lane of each job that is on one."""
        self._chosen: OrderedDict[str, Choice] = OrderedDict()

    def apply(self, rules: Rules) -> None:
        """Go by these from now on; what has been chosen stays."""
        self.rules = rules
        self.line.apply(rules.ageing, rules.shares)

    # Told

    def add(self, waiting: Waiting) -> None:
        """A job joins the line; one that is known is passed over. Bounds are ``check``'s: what is promised, is in."""
        if waiting.job not in self._on and self.line.get(waiting.job) is None:
            self.line.add(waiting, self._busy())

    def check_lane(self, gpu: int, now: float) -> None:
        """Whether one more job may go straight to this lane; raises ``FullError``."""
        lane, most = self.lanes[gpu], self.rules.most_of_lane
        if lane.load >= most:
            soonest = next((placed.left(now) for placed in lane.jobs.values()), self.estimates.typical())
            raise FullError(f"{lane.load} jobs are on GPU {gpu} already, {most} is the most.", soonest)

    def check(self, client: str, now: float) -> None:
        """Whether one more job of this client may join the line; raises ``FullError``."""
        rules = self.rules
        if len(self.line) >= rules.most:
            raise FullError(f"{rules.most} jobs wait already, which is the most.", self.room_in(now))
        if self.line.waiting_of(client) >= rules.most_of_client:
            text = f"{rules.most_of_client} jobs of this client wait already, which is the most."
            theirs = (
                place.start
                for place in self.plan(now)
                if self._waits_for(place.job, client) and not math.isinf(place.start)
            )
            raise FullError(text, next(theirs, self.room_in(now)))

    def placed(self, waiting: Waiting, gpu: int, now: float) -> None:
        """A job goes to this lane, whoever chose it: its client asked for that GPU, or it was found there."""
        self.line.remove(waiting.job)
        if waiting.job not in self._on and gpu in self.lanes:
            lane = self.lanes[gpu]
            missing = frozenset(model for model in waiting.workflow.models if model not in lane.held)
            run = self.estimates.run(waiting.workflow, gpu, lane.weight)
            self._place(waiting, gpu, self.estimates.load(missing) + run, missing, now)

    def started(self, job: str, now: float) -> None:
        """A job was seen running."""
        placed = self._placed(job)
        if placed is not None and placed.started is None:
            placed.started = now
            self.lanes[self._on[job]].ran = placed.workflow.models

    def numbered(self, job: str, number: float) -> None:
        """The backend has given the job a place in its lane's queue, lower is sooner."""
        placed = self._placed(job)
        if placed is not None:
            placed.number = number

    def ended(self, job: str, now: float, *, took: float | None = None) -> None:
        """A job is over, wherever it was. ``took``: seconds from its start to its success; ``None``: no measure."""
        self.line.remove(job)
        gpu = self._on.pop(job, None)
        if gpu is None:
            return
        lane = self.lanes[gpu]
        placed = lane.jobs.pop(job)
        if took is not None:
            lane.ran = placed.workflow.models
            self.estimates.learn(placed.workflow, gpu, lane.weight, took, placed.missing)
            self.line.charge(placed.client, took - placed.charged)
        elif placed.started is None:
            self.line.charge(placed.client, -placed.charged)

    def take_back(self, job: str) -> None:
        """A job did not come to its lane after all; it is in no line, either."""
        gpu = self._on.pop(job, None)
        if gpu is not None:
            placed = self.lanes[gpu].jobs.pop(job)
            self.line.charge(placed.client, -placed.charged)

    def lane_state(self, gpu: int, state: State) -> None:
        """A lane takes jobs, or does not."""
        self.lanes[gpu].state = state

    def lane_lost(self, gpu: int) -> None:
        """Everything on the lane is gone with its process; its jobs are in no line."""
        for job in list(self.lanes[gpu].jobs):
            self.take_back(job)
        self.lanes[gpu].clear()

    # Asked

    def next(self, now: float) -> Choice | None:
        """The next job to send, its place on the lane reserved; ``None`` when none is to go now."""
        if self.paused or not len(self.line) or not any(self._room(lane) > 0 for lane in self.lanes.values()):
            return None
        looks = self._outlooks(now)
        window = list(islice(self.line.order(now, self._cost), WINDOW))
        market = Market.of(window, looks)
        first = True
        for waiting in window:
            scores = [self._score(waiting, look, market) for look in looks]
            usable = [each for each in zip(scores, looks, strict=True) if not each[0].why_not]
            if not usable:
                continue
            best, at = _best(usable, _total)
            roomy = [each for each in usable if each[1].room > 0]
            deferred = 0.0 if waiting.passed is None else now - waiting.passed
            if roomy and deferred >= self.rules.patience:
                # From here on only its own end counts; and then, any lane will do.
                among = usable if deferred < _AT_LAST * self.rules.patience else roomy
                best, at = _best(among, _finish)
            # Not behind what may run for any time, while there is a lane of which more is known.
            doubtful = at.overdue and deferred < _AT_LAST * self.rules.patience
            if at.room > 0 and not (doubtful and any(not look.overdue for _, look in usable)):
                return self._choose(waiting, best, scores, now, deferred)
            if roomy and first and waiting.passed is None:
                waiting.passed = now
            first = first and not roomy
            at.lay(best, waiting)
        return None

    def wake_at(self, now: float) -> float | None:
        """When ``next`` may say something else though nothing has happened: somebody's patience ends."""
        patience = self.rules.patience
        passed = [waiting.passed for waiting in self.line if waiting.passed is not None]
        ends = [since + wait for since in passed for wait in (patience, _AT_LAST * patience) if since + wait > now]
        return min(ends, default=None)

    def plan(self, now: float) -> Iterator[Place]:
        """All waiting jobs in the order of the line, each laid on the lane where it would finish first."""
        looks = self._outlooks(now)
        market = Market.of([], looks)
        for position, waiting in enumerate(self.line.order(now, self._cost), 1):
            scores = ((self._score(waiting, look, market), look) for look in looks)
            usable = [each for each in scores if not each[0].why_not]
            if self.paused or not usable:
                yield Place(waiting.job, position, None, math.inf, math.inf)
                continue
            best, at = _best(usable, _total)
            yield Place(waiting.job, position, best.gpu, best.wait, best.finish)
            at.lay(best, waiting)

    def chosen(self, job: str) -> Choice | None:
        """How the job came to its lane, if the scheduler chose it, and not too long ago."""
        return self._chosen.get(job)

    def scores(self, waiting: Waiting, now: float) -> list[Score]:
        """Every lane for this job, as things stand, were it its turn."""
        looks = self._outlooks(now)
        market = Market.of(list(islice(self.line.order(now, self._cost), WINDOW)), looks)
        return [self._score(waiting, look, market) for look in looks]

    def lane_of(self, job: str) -> int | None:
        """The lane that the job is on."""
        return self._on.get(job)

    def left(self, job: str, now: float) -> float | None:
        """Seconds until a job on a lane ends, what is before it included."""
        gpu = self._on.get(job)
        places = () if gpu is None else self.on_lane(gpu, now)
        return next((place.finish for place in places if place.job == job), None)

    def on_lane(self, gpu: int, now: float) -> Iterator[Place]:
        """The lane's jobs in the order in which they end; what runs has no position, the next one has 1."""
        seconds, position = 0.0, 0
        for placed in self.lanes[gpu].in_order():
            start, seconds = seconds, seconds + placed.left(now)
            position += placed.started is None
            yield Place(placed.job, position, gpu, start, seconds)

    def room_in(self, now: float) -> float:
        """Seconds until the next job of the line is expected to go to a lane; 0 when one has room."""
        usable = [lane for lane in self.lanes.values() if lane.state is State.READY]
        if any(self._room(lane) > 0 for lane in usable):
            return 0.0
        ends = (next(iter(lane.jobs.values())).left(now) for lane in usable if lane.jobs)
        return min(ends, default=self.estimates.typical())

    # Within

    def _choose(self, waiting: Waiting, score: Score, scores: list[Score], now: float, deferred: float) -> Choice:
        self.line.remove(waiting.job)
        self._place(waiting, score.gpu, score.load + score.run, score.missing, now)
        choice = Choice(waiting.job, score.gpu, now, score.finish, tuple(scores), deferred)
        self._chosen[waiting.job] = choice
        if len(self._chosen) > _REMEMBERED:
            self._chosen.popitem(last=False)
        return choice

    def _place(self, waiting: Waiting, gpu: int, expected: float, missing: frozenset[str], now: float) -> None:
        placed = Placed(waiting.job, waiting.client, waiting.workflow, expected, missing, now, charged=expected)
        placed.pins = waiting.pins
        self.lanes[gpu].put(placed)
        self._on[waiting.job] = gpu
        self.line.charge(waiting.client, expected)

    def _score(self, waiting: Waiting, look: Outlook, market: "Market") -> Score:
        lane = look.lane
        if reason := why_not(lane, waiting):
            return Score(lane.index, 0.0, 0.0, 0.0, 0.0, why_not=reason)
        missing = frozenset(model for model in waiting.workflow.models if model not in look.held)
        load = self.estimates.load(missing)
        run = self.estimates.run(waiting.workflow, lane.index, lane.weight)
        swap = min(market.swap(waiting, look, missing, self.estimates), self.rules.patience) if missing else 0.0
        return Score(lane.index, look.free, load, run, swap, missing)

    def _cost(self, waiting: Waiting) -> float:
        return self.estimates.run(waiting.workflow, -1, 1.0)

    def _outlooks(self, now: float) -> list[Outlook]:
        typical = self.estimates.typical()
        return [
            Outlook(lane, lane.free_in(now, typical), self._room(lane), lane.held.copy(), lane.overdue(now) is not None)
            for lane in self.lanes.values()
        ]

    def _room(self, lane: Lane) -> int:
        return self.rules.depth - lane.load if lane.state is State.READY else 0

    def _busy(self) -> set[str]:
        return {placed.client for lane in self.lanes.values() for placed in lane.jobs.values()}

    def _waits_for(self, job: str, client: str) -> bool:
        waiting = self.line.get(job)
        return waiting is not None and waiting.client == client

    def _placed(self, job: str) -> Placed | None:
        gpu = self._on.get(job)
        return None if gpu is None else self.lanes[gpu].jobs[job]


def _finish(each: Scored) -> float:
    return each[0].finish


def _total(each: Scored) -> float:
    return each[0].total


def _best(among: Iterable[Scored], seconds: Callable[[Scored], float]) -> Scored:
    """The one with the least of these seconds; of those that are all but equal, the one that begins first."""
    every = list(among)
    bound = min(map(seconds, every)) + _EQUAL
    return min((each for each in every if seconds(each) <= bound), key=lambda each: (each[0].wait, seconds(each)))
