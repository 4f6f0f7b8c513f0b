"""Which job to take back from its lane: it waits behind what lasts longer than expected, and another lane idles.

Pure. Owns which jobs have been named: each is once. Whoever asks takes the job out of the lane's queue, if it has not
started there, and adds it to the line again. Must never choose where a job goes.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from gateway.schedule.lanes import Lane, Placed, State
from gateway.schedule.scheduler import Scheduler

_WORTH: Final = 0.5
"""Seconds by which a job must end sooner elsewhere: to take it back costs some exchanges with its backend."""
_REMEMBERED: Final = 2000
"""Jobs of which it is known that they have been named."""


class Recalls:
    """Looks at this scheduler's lanes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._named: OrderedDict[str, None] = OrderedDict()

    def next(self, now: float) -> str | None:
        """The next such job, of those that the scheduler chose a lane for; ``None``: there is none."""
        scheduler = self._scheduler
        lanes = scheduler.lanes.values()
        idle = [lane for lane in lanes if lane.state is State.READY and not lane.load]
        if scheduler.paused or len(scheduler.line) or not idle:
            return None
        for lane in lanes:
            late = lane.overdue(now) or 0.0
            for place in scheduler.on_lane(lane.index, now):
                if not place.position or place.job in self._named or scheduler.chosen(place.job) is None:
                    continue
                placed = lane.jobs[place.job]
                # What has lasted for so long may well last for as long again.
                if max(place.start, late) + placed.expected > self._elsewhere(placed, idle) + _WORTH:
                    self._named[place.job] = None
                    if len(self._named) > _REMEMBERED:
                        self._named.popitem(last=False)
                    return place.job
        return None

    def _elsewhere(self, placed: Placed, idle: Iterable[Lane]) -> float:
        """Seconds in which the job would end on the best of these lanes."""
        estimates, workflow = self._scheduler.estimates, placed.workflow
        return min(
            (
                estimates.load([model for model in workflow.models if model not in lane.held])
                + estimates.run(workflow, lane.index, lane.weight)
                for lane in idle
                if placed.pins is None or lane.index in placed.pins
            ),
            default=math.inf,
        )
