"""How long things take, learned from what they took: a workflow class on a lane, and the load of a model.

Pure. Owns the windows of samples, and which less exact knowledge stands in for what is not known yet. All times are
seconds. Must never know queues.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from statistics import median
from typing import Final

from gateway.schedule.workflow import Workflow

PRIOR: Final = 20.0
"""A job's seconds before anything is known, on a lane of weight 1."""
LOAD_PRIOR: Final = 8.0
"""A model's load before one has been seen: a 7 GB checkpoint from a fast disk."""
_WINDOW: Final = 33
"""Samples of one thing that count; what changes is learned within half as many."""
_THINGS: Final = 5000
"""Things remembered; the longest unused is forgotten first."""
_SURE: Final = 3
"""Samples of something particular from which on they alone count."""
_SURE_LOADS: Final = 5
"""The same for loads, which are the small difference of two large numbers."""
_CLEAR: Final = 2.5
"""A load is read off jobs that take at most so many times as long as the prior one: differences of others hide it."""
_SHORTEST: Final = 1.0
"""Seconds: no load is thought shorter, or it would be thought to cost nothing."""
_LONGEST: Final = 4.0
"""So many times longer than believed one load can show itself: the rest was the job."""
_TELLING: Final = 1.0
"""Seconds from which on a job says how fast its lane is: shorter ones say how busy the machine was."""
_FACTORS: Final = (0.05, 20.0)
"""Bounds of how far a lane may be from what its weight says."""


class Window:
    """The newest samples of one thing, and their median."""

    __slots__ = ("_median", "_samples")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_WINDOW)
        self._median: float | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, value: float) -> None:
        """Take a sample."""
        self._samples.append(value)
        self._median = None

    @property
    def median(self) -> float:
        """The middle of them; there must be one."""
        if self._median is None:
            self._median = median(self._samples)
        return self._median


class Estimates:
    """What is known about durations. Lanes are numbers; ``weight`` is how fast one is said to be, 1 as the others."""

    def __init__(self, prior: float = PRIOR, load_prior: float = LOAD_PRIOR) -> None:
        self._prior = prior
        self._load_prior = load_prior
        self._windows: OrderedDict[Hashable, Window] = OrderedDict()
        """By ``(kind, lane)`` in seconds; by ``(kind,)`` and ``()`` in seconds of a lane of weight 1; and the like."""

    def run(self, workflow: Workflow, lane: int, weight: float) -> float:
        """Seconds that such a job takes there, its models loaded."""
        kind = workflow.kind
        if (own := self._known("on", kind, lane)) is not None:
            return own.median
        speed = weight * self._factor(lane)
        for key in (("warm", kind), ("cold", kind), ("all",)):
            if (window := self._window(*key)) is not None:
                return window.median / speed
        return self._prior / speed

    def load(self, models: Collection[str]) -> float:
        """Seconds to load these models, one after the other."""
        seconds = 0.0
        for model in models:
            window = self._known("load", model, least=_SURE_LOADS) or self._known("loads", least=_SURE_LOADS)
            seconds += max(_SHORTEST, window.median) if window is not None else self._load_prior
        return seconds

    def typical(self) -> float:
        """Seconds of any job on a lane of weight 1."""
        window = self._window("all")
        return window.median if window is not None else self._prior

    def learn(
        self, workflow: Workflow, lane: int, weight: float, seconds: float, missing: Collection[str] = ()
    ) -> None:
        """A job took so long; ``missing`` are the models that it had to load for that."""
        kind = workflow.kind
        if missing:
            self._learn_load(workflow, lane, weight, seconds, missing)
            return
        work = seconds * weight
        if (known := self._window("warm", kind)) is not None and seconds >= _TELLING:
            low, high = _FACTORS
            factor = known.median / work
            self._add(min(max(factor, low), high), "factor", lane)
        self._add(seconds, "on", kind, lane)
        self._add(work, "warm", kind)
        self._add(work, "all")

    def _learn_load(
        self, workflow: Workflow, lane: int, weight: float, seconds: float, missing: Collection[str]
    ) -> None:
        kind = workflow.kind
        believed = self.load(missing)
        if self._window("warm", kind) is None:
            # Nothing tells the load from the work yet: what is believed of loads stands.
            work = max(seconds - believed, seconds / 10) * weight
            self._add(work, "cold", kind)
            self._add(work, "all")
            return
        run = self.run(workflow, lane, weight)
        if run > _CLEAR * self._load_prior:
            return  # jobs of one class differ by more than a load takes
        # Below zero, too: what were cut off there would make loads longer than they are.
        most = _LONGEST * believed
        share = min(max(-most, seconds - run), most) / len(missing)
        for model in missing:
            self._add(share, "load", model)
        self._add(share, "loads")

    def _factor(self, lane: int) -> float:
        """How much faster than its weight says the lane has been; 1 while that is not known."""
        window = self._known("factor", lane)
        return window.median if window is not None else 1.0

    def _window(self, *key: Hashable) -> Window | None:
        window = self._windows.get(key)
        if window is not None:
            self._windows.move_to_end(key)
        return window

    def _known(self, *key: Hashable, least: int = _SURE) -> Window | None:
        window = self._window(*key)
        return window if window is not None and len(window) >= least else None

    def _add(self, value: float, *key: Hashable) -> None:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window()
            if len(self._windows) > _THINGS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        window.add(value)
