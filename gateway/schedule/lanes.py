"""What is known of one lane: what has been sent there and not yet seen finished, and which models it holds.

Pure. Owns the reservations: a job is on its lane from the moment it is chosen until it is seen ended or is taken back.
Must never choose.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from gateway.schedule.workflow import Workflow

_TAIL: Final = 0.25
"""A job that runs longer than expected is expected to run on for this share of what it has taken."""
_OVERDUE: Final = (1.5, 0.2)
"""A job that has run for so many times what was expected, and so many seconds longer, may run for any time."""


class State(Enum):
    """Whether a lane takes jobs."""

    READY = "ready"
    DRAINING = "draining"
    """It finishes what it has."""
    FAULTED = "faulted"
    """Its device is broken, or it is not known to be whole."""
    DOWN = "down"
    """Its backend is away."""


@dataclass(slots=True)
class Placed:
    """A job on a lane."""

    job: str
    client: str
    workflow: Workflow
    expected: float
    """Seconds from its start to its end, loads included."""
    missing: frozenset[str]
    """Models that it has to load."""
    since: float
    """When it was put there."""
    started: float | None = None
    charged: float = 0.0
    """GPU seconds that its client has been charged with."""
    pins: frozenset[int] | None = None
    """Lanes that it may run on; ``None``: any."""
    number: float = math.inf
    """ComfyUI's, by which the lane's queue is sorted; infinite until the backend has given one."""

    def left(self, now: float) -> float:
        """Seconds until it ends, when nothing is before it."""
        if self.started is None:
            return self.expected
        took = now - self.started
        return max(self.expected - took, took * _TAIL)

    def overdue(self, now: float) -> bool:
        """Whether it runs for so much longer than expected that nobody can say when it ends."""
        times, seconds = _OVERDUE
        return self.started is not None and now - self.started > max(times * self.expected, self.expected + seconds)


@dataclass(slots=True)
class Lane:
    """One GPU as the scheduler sees it."""

    index: int
    weight: float = 1.0
    """How fast it is said to be; 1: as the others."""
    state: State = State.READY
    jobs: dict[str, Placed] = field(default_factory=dict)
    """In the order in which they were sent."""
    others: int = 0
    """Jobs there that nobody told the scheduler of."""
    room_for: int = 1
    """Models that it is believed to keep, if those of one job are not more."""
    held: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Models, the longest unused first; from what has been sent there, and as the backend says."""
    ran: frozenset[str] = frozenset()
    """Models of the job that it ran last."""
    told: set[str] = field(default_factory=set)
    """Models of which the backend has ever said that they are there: it will say when they are not."""

    @property
    def load(self) -> int:
        """Jobs there."""
        return len(self.jobs) + self.others

    def free_in(self, now: float, typical: float) -> float:
        """Seconds until it has finished what it has."""
        return sum(placed.left(now) for placed in self.jobs.values()) + self.others * typical / self.weight

    def overdue(self, now: float) -> float | None:
        """Seconds for which a job has run there that is overdue; ``None``: none is."""
        jobs = self.jobs.values()
        late = (now - each.started for each in jobs if each.started is not None and each.overdue(now))
        return max(late, default=None)

    def in_order(self) -> list[Placed]:
        """Jobs there in the order in which they end."""
        return sorted(self.jobs.values(), key=lambda placed: (placed.started is None, placed.number))

    def put(self, placed: Placed) -> None:
        """Reserve a place; its models will be held."""
        self.jobs[placed.job] = placed
        use(self.held, placed.workflow.models, self.room_for)

    def tell(self, models: Collection[str]) -> None:
        """The backend says what is loaded; what waits there will be, in place of what there is no room for then.

        Of a model that it has never named it may not know: that is held as long as what has been sent there says so.
        """
        self.told |= set(models)
        kept = [model for model in self.held if model in models or model not in self.told]
        new = sorted(set(models) - set(kept))
        self.held = OrderedDict.fromkeys([*new, *kept])
        # More than what it ran last needs: it keeps so many. Else the next job's models take the place of these.
        self.room_for = max(1, len(models)) if set(models) - self.ran else 1
        for placed in self.in_order():
            use(self.held, placed.workflow.models, self.room_for)

    def clear(self) -> None:
        """Its process is gone, and everything with it."""
        self.jobs.clear()
        self.held.clear()
        self.told.clear()
        self.ran, self.room_for = frozenset(), 1
        self.others = 0


def use(held: "OrderedDict[str, None]", models: Collection[str], room_for: int) -> None:
    """A job with these models runs: they are held, and of the others the newest used that still have room."""
    for model in sorted(models):
        held[model] = None
        held.move_to_end(model)
    if models:
        while len(held) > max(room_for, len(models)):
            held.popitem(last=False)
