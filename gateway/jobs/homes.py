"""To which GPUs a waiting job may go: those that the rules name, of the backend that its client stays with.

Owns when that is looked at anew: a client's home moves when a backend goes or comes back, and its waiting jobs move
with it, as its new ones do. What the other backend will not have waits for the one that it came for. Must never send.
"""

from collections.abc import Iterable, Sequence

from gateway.fleet.lanes import Fleet
from gateway.jobs.record import Record
from gateway.schedule.line import Waiting
from gateway.schedule.settings import Pin, pinned
from gateway.schedule.workflow import Workflow


class Homes:
    """``pins``: the rules, as they stand."""

    def __init__(self, fleet: Fleet, pins: Sequence[Pin]) -> None:
        self.pins = pins
        self.here: dict[str, str] = {}
        """Client ids of the jobs that their clients believe to wait in a queue, and that no backend has yet."""
        self._fleet = fleet
        self._seen = self._standing()
        self._first: dict[str, frozenset[int] | None] = {}
        """The GPUs of each waiting job's home as it came, where its client's files are; ``None``: any."""
        self._bound: dict[str, frozenset[int]] = {}
        """The same, of jobs that another backend has refused."""

    def of(self, job: str, client: str, workflow: Workflow) -> frozenset[int] | None:
        """The GPUs that the job of this client's address may go to now; ``None``: any."""
        near = self._bound.get(job) or self._near(client)
        pins = pinned(self.pins, workflow)
        if near is None:
            return pins
        return near if pins is None else (pins & near or pins)

    def joins(self, record: Record) -> None:
        """The job waits from now on."""
        self.here[record.id] = record.client_id
        self._first.setdefault(record.id, self._bound.get(record.id) or self._near(record.client))

    def leaves(self, job: str) -> None:
        """It does no more."""
        self.here.pop(job, None)
        self._first.pop(job, None)
        self._bound.pop(job, None)

    def abroad(self, job: str, gpu: int) -> bool:
        """Whether this GPU is not of the home that the job came for."""
        first = self._first.get(job)
        return first is not None and gpu not in first

    def bind(self, job: str) -> None:
        """Another backend would not have it: it waits for the one that it came for until any comes or goes."""
        if (home := self._first.get(job)) is not None:
            self._bound[job] = home

    def look(self, line: Iterable[Waiting], *, anew: bool = False) -> bool:
        """Say anew of all who wait where they may go, if a backend came or went, or ``anew``; whether that was so."""
        seen = self._standing()
        if seen != self._seen:
            self._seen = seen
            self._bound.clear()
        elif not anew:
            return False
        for waiting in line:
            waiting.pins = self.of(waiting.job, waiting.address, waiting.workflow)
        return True

    def _near(self, client: str) -> frozenset[int] | None:
        near = self._fleet.near(client)
        return None if near is None else frozenset(near)

    def _standing(self) -> list[tuple[object, ...]]:
        """Everything that a client's home goes by."""
        return [(each.up, each.out, each.drain, each.width, each.weight) for each in self._fleet.members]
