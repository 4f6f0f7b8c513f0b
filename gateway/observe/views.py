"""What metrics read off others at each scrape, and the families that are nothing else.

Pure. Must never know who the others are.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import Metric

from gateway.observe.families import counter, gauge


class PoolView(Protocol):
    """What metrics read off a pool of backend connections."""

    @property
    def busy(self) -> int: ...

    @property
    def idle(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def opened_total(self) -> int: ...


class FleetView(Protocol):
    """What metrics read off the fleet."""

    up: bool

    @property
    def gpus(self) -> int: ...

    def load(self, gpu: int) -> int: ...


class CacheView(Protocol):
    """What metrics read off the cache."""

    @property
    def outcomes(self) -> Mapping[str, int]: ...

    @property
    def used(self) -> int: ...

    @property
    def entries(self) -> int: ...


class JobsView(Protocol):
    """What metrics read off the journal of jobs."""

    def job_counts(self) -> Mapping[str, int]: ...

    def job_moves(self) -> Mapping[str, int]: ...

    @property
    def recovered(self) -> int: ...

    @property
    def written(self) -> tuple[int, int, float, int]: ...

    @property
    def line(self) -> tuple[int, int, float]: ...


def job_families(jobs: JobsView) -> Iterator[Metric]:
    """What was promised, and what the journal costs."""
    counts = {(state,): count for state, count in jobs.job_counts().items()}
    moves = {(state,): count for state, count in jobs.job_moves().items()}
    written, commits, seconds, errors = jobs.written
    yield gauge("jobs", "Jobs that the journal remembers, by the state they are in.", counts, "state")
    yield counter("job_moves", "Jobs that have entered a state since the gateway started.", moves, "state")
    yield counter("jobs_recovered", "Jobs put into a queue again after a backend's death.", {(): jobs.recovered})
    waiting, foretold, error = jobs.line
    yield gauge("line_jobs", "Jobs that wait at the front door for a GPU.", {(): waiting})
    yield counter("eta_foretold", "Jobs that have succeeded and whose end had been foretold.", {(): foretold})
    yield counter("eta_error_seconds", "Seconds by which ends were off, as foretold when jobs came.", {(): error})
    yield counter("journal_writes", "Changes written to the journal.", {(): written})
    yield counter("journal_commits", "Commits of the journal: one fsync each, for many changes.", {(): commits})
    yield counter("journal_commit_seconds", "Seconds spent in commits of the journal.", {(): seconds})
    yield counter("journal_errors", "Changes to and reads of the journal that failed.", {(): errors})


def cache_families(cache: CacheView) -> Iterator[Metric]:
    """What is kept, and how often it served."""
    outcomes = {(outcome,): count for outcome, count in cache.outcomes.items()}
    yield counter("cache_requests", "Requests whose answer may be shared, by where it came from.", outcomes, "outcome")
    yield gauge("cache_bytes", "Memory that kept answers take.", {(): cache.used})
    yield gauge("cache_entries", "Answers that are kept.", {(): cache.entries})
