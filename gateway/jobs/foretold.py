"""When jobs were expected to end, and by how much that was wrong.

Pure. Owns the sums. Must never expect anything itself.
"""

from typing import Final

_MOST: Final = 10_000
"""Jobs whose end is awaited; the oldest are forgotten first."""


class Foretold:
    """Ends as foretold when the jobs came, in seconds on the caller's clock."""

    def __init__(self) -> None:
        self.count = 0
        """Jobs that have succeeded and whose end had been foretold."""
        self.error = 0.0
        """Seconds by which their ends were off, in all."""
        self._ends: dict[str, float] = {}

    def remember(self, job: str, end: float) -> None:
        """A job is expected to end then."""
        self._ends[job] = end
        if len(self._ends) > _MOST:
            del self._ends[next(iter(self._ends))]

    def forget(self, job: str) -> None:
        """It ended otherwise, or never was one."""
        self._ends.pop(job, None)

    def came(self, job: str, now: float) -> None:
        """It has succeeded now."""
        end = self._ends.pop(job, None)
        if end is not None:
            self.count += 1
            self.error += abs(now - end)
