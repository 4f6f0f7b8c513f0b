"""What the scheduler is set to and what it answers: values, without a decision in them.

Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.schedule.score import Score


class FullError(Exception):
    """The line takes no more: ``str()`` says which bound is met, ``retry_after`` when there may be room, in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Rules:
    """What can be set."""

    depth: int = 2
    """Jobs on a lane, the running one included."""
    patience: float = 120.0
    """Seconds for which others may be let past the first of the line, so that fewer models are loaded."""
    ageing: float = 60.0
    """Seconds of waiting that count as one step of priority."""
    most: int = 10_000
    """Jobs that may wait in all."""
    most_of_client: int = 2_000
    most_of_lane: int = 2_001
    """Jobs that may be on one lane, whoever put them there."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Weight of a client's share of GPU seconds; 1 where not named."""


@dataclass(frozen=True)
class Choice:
    """A job that goes to a lane now, and why there; ``scores`` has every lane."""

    job: str
    gpu: int
    at: float
    expected: float
    """Seconds until it ends."""
    scores: tuple[Score, ...]
    deferred: float = 0.0
    """Seconds for which others were let past it before."""

    def told(self, at: float) -> Mapping[str, Any]:
        """For people; ``at`` as they tell the time."""
        return {
            "gpu_id": self.gpu,
            "at": round(at, 3),
            "expected_seconds": round(self.expected, 3),
            "deferred_seconds": round(self.deferred, 3),
            "lanes": [score.told() for score in self.scores],
        }


@dataclass(frozen=True)
class Place:
    """Where a job stands: ``position`` counts from 1, 0 is what runs; seconds from now until it starts and ends."""

    job: str
    position: int
    gpu: int | None
    start: float
    finish: float
