"""Values counted into fixed buckets, as Prometheus shows them. Pure; knows nothing of what is measured."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class HistogramView:
    """Upper bounds, how many values lie at or below each (the last entry counts all), and their sum."""

    bounds: tuple[float, ...]
    cumulative: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return self.cumulative[-1]


class Histogram:
    """Counts values into fixed buckets; guarded by its owner's lock."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Add one value; a negative one (a clock that stepped) counts as zero."""
        value = max(value, 0.0)
        self._counts[bisect_left(self.bounds, value)] += 1
        self._total += value

    def view(self) -> HistogramView:
        return HistogramView(self.bounds, tuple(accumulate(self._counts)), self._total)
