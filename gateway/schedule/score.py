"""What it would cost to run a job on a lane: the seconds until it is finished there, and what others pay for it.

Pure, and one function: the same numbers choose the lane, tell the waiting how long it takes, and explain the choice.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.schedule.estimates import Estimates
from gateway.schedule.lanes import Lane, State, use
from gateway.schedule.line import Waiting

CROWD: Final = (1.0, 10.0)
"""How many others' time an avoidable model load counts for, at least and at most."""


@dataclass(slots=True)
class Outlook:
    """A lane as it will be when what is there, and what was laid on it in thought, has run."""

    lane: Lane
    free: float
    """Seconds until then."""
    room: int
    """Jobs that it takes now."""
    held: OrderedDict[str, None]
    """Models that it will hold then."""
    overdue: bool = False
    """Whether what runs there may run for any time: ``free`` is a guess."""

    def lay(self, score: "Score", waiting: Waiting) -> None:
        """Think of the job as running there."""
        self.free = score.finish
        use(self.held, waiting.workflow.models, self.lane.room_for)


@dataclass(frozen=True, slots=True)
class Score:
    """One lane for one job. Seconds from now; the lane with the least ``total`` is chosen."""

    gpu: int
    wait: float
    """Until what is there has run."""
    load: float
    """To load what the lane does not hold."""
    run: float
    swap: float
    """What the load costs those who wait, as far as it could be avoided; not a part of ``finish``."""
    missing: frozenset[str] = field(default=frozenset())
    why_not: str = ""
    """Why the lane is out of the question; empty: it is not."""

    @property
    def finish(self) -> float:
        """Until the job has ended there."""
        return self.wait + self.load + self.run

    @property
    def total(self) -> float:
        """What lanes are compared by."""
        return self.finish + self.swap

    def told(self) -> Mapping[str, Any]:
        """For people."""
        if self.why_not:
            return {"gpu_id": self.gpu, "eligible": False, "reason": self.why_not}
        return {
            "gpu_id": self.gpu,
            "eligible": True,
            "score": round(self.total, 3),
            "finish": round(self.finish, 3),
            "wait": round(self.wait, 3),
            "load": round(self.load, 3),
            "run": round(self.run, 3),
            "swap": round(self.swap, 3),
            "missing_models": sorted(self.missing),
        }


def why_not(lane: Lane, waiting: Waiting) -> str:
    """Why the job cannot go to the lane at all; empty when it can."""
    if lane.state is not State.READY:
        return str(lane.state.value)
    if waiting.pins is not None and lane.index not in waiting.pins:
        return "pinned elsewhere"
    return ""


@dataclass(frozen=True, slots=True)
class Market:
    """What else is wanted and held at the moment of one choice: what a model load takes from others."""

    wanted: Mapping[str, int]
    """How many waiting jobs need each model."""
    holders: Mapping[str, int]
    """How many lanes hold it."""
    crowd: float
    """Waiting jobs per lane: so many wait longer for each second that a lane loses."""

    @classmethod
    def of(cls, window: Sequence[Waiting], looks: Sequence[Outlook]) -> "Market":
        """As things stand."""
        wanted = Counter(model for waiting in window for model in waiting.workflow.models)
        usable = [look for look in looks if look.lane.state is State.READY]
        holders = Counter(model for look in usable for model in look.held)
        low, high = CROWD
        return cls(wanted, holders, max(low, min(high, len(window) / max(1, len(usable)))))

    def swap(self, waiting: Waiting, look: Outlook, missing: frozenset[str], estimates: Estimates) -> float:
        """Seconds that others lose when this job loads ``missing`` on this lane."""
        # The load itself, where some other lane would not have to do it; and what it drives out of the last lane that
        # holds it, which somebody will have to load again.
        avoidable = [model for model in missing if self.holders.get(model)]
        after = look.held.copy()
        use(after, waiting.workflow.models, look.lane.room_for)
        gone = [m for m in look.held if m not in after and self.wanted.get(m) and self.holders.get(m, 0) < 2]
        return estimates.load([*avoidable, *gone]) * self.crowd
