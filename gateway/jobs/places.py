"""Where every unfinished job stands and when it will end: in the line of the front door, or in its GPU's queue.

Owns how long an answer is good for: laying a long line out is not done anew for each job of a list. Must never change
where anything stands.
"""

import math
from collections.abc import Callable, Hashable, Iterable
from typing import Final

from gateway.schedule.scheduler import Scheduler
from gateway.schedule.terms import Place

_SHARE: Final = 20
"""What was laid out holds for so many times as long as that took, and half a second at least."""
_LEAST: Final = 0.5


class Places:
    """``clock`` is the scheduler's."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, dict[str, Place]]] = {}
        """By GPU, and the line's by ``None``: until when it holds, and every job's place."""

    def of(self, job: str, *, fresh: bool = False) -> Place | None:
        """The job's place; ``None`` when it is not there. ``fresh``: as of this moment."""
        scheduler = self._scheduler
        gpu = scheduler.lane_of(job)
        if gpu is None and scheduler.line.get(job) is None:
            return None
        until, places = self._kept.get(gpu, (-math.inf, {}))
        if fresh or self._clock() >= until or job not in places:
            began = self._clock()
            laid: Iterable[Place] = scheduler.plan(began) if gpu is None else scheduler.on_lane(gpu, began)
            places = {place.job: place for place in laid}
            took = self._clock() - began
            self._kept[gpu] = (began + took + max(_LEAST, _SHARE * took), places)
        return places.get(job)

    def forget(self) -> None:
        """Everything may stand elsewhere now."""
        self._kept.clear()
