"""The waiting line: who is next, by priority with ageing, then by what each client has had, then by arrival.

Pure. Owns the order and nothing else: where a job goes is ``scheduler.py``. Times are seconds on a clock that never
goes back. Must never know lanes.
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from gateway.schedule.workflow import Workflow


@dataclass(slots=True, eq=False)
class Waiting:
    """One job in the line."""

    job: str
    client: str
    """Whose share of GPU seconds it comes out of."""
    workflow: Workflow
    seq: int
    """Order of arrival; no two jobs share one."""
    since: float
    priority: int = 0
    """Higher goes first."""
    number: float = 0.0
    """ComfyUI's number: among one client's own jobs of one priority, lower goes first."""
    pins: frozenset[int] | None = None
    """Lanes that it may run on; ``None``: any."""
    address: str = ""
    """Where it came from, for those who say ``pins`` anew; nothing here goes by it."""
    passed: float | None = None
    """Since when others are let past it, for the sake of a lane that suits it better."""


class Line:
    """All waiting jobs. ``ageing``: seconds of waiting that count as one step of priority."""

    def __init__(self, ageing: float, shares: Mapping[str, float] | None = None) -> None:
        """``shares``: what a client's GPU seconds are divided by; 1 where it names none."""
        self._ageing = ageing
        self._shares = dict(shares or {})
        self._jobs: dict[str, Waiting] = {}
        self._of_client: dict[str, int] = {}
        self._had: dict[str, float] = {}
        """GPU seconds that each client has had, by its share; only differences mean anything."""

    def apply(self, ageing: float, shares: Mapping[str, float]) -> None:
        """Go by these from now on; what everybody has had stays."""
        self._ageing, self._shares = ageing, dict(shares)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._jobs.values())

    def get(self, job: str) -> Waiting | None:
        """The job, if it waits."""
        return self._jobs.get(job)

    def waiting_of(self, client: str) -> int:
        """How many jobs of this client wait."""
        return self._of_client.get(client, 0)

    def add(self, waiting: Waiting, busy: Collection[str] = ()) -> None:
        """Take a job in. ``busy``: clients that have jobs on lanes.

        A client that was away begins where the least served one is: it has saved nothing up.
        """
        client = waiting.client
        if client not in self._of_client and client not in busy:
            here = [self._had.get(name, 0.0) for name in {*self._of_client, *busy}]
            least = min(here, default=max(self._had.values(), default=0.0))
            self._had[client] = max(self._had.get(client, 0.0), least)
        self._jobs[waiting.job] = waiting
        self._of_client[client] = self._of_client.get(client, 0) + 1

    def remove(self, job: str) -> Waiting | None:
        """Take a job out."""
        waiting = self._jobs.pop(job, None)
        if waiting is not None:
            left = self._of_client[waiting.client] - 1
            if left:
                self._of_client[waiting.client] = left
            else:
                del self._of_client[waiting.client]
        return waiting

    def charge(self, client: str, seconds: float) -> None:
        """The client has had so many GPU seconds more (less: what it was charged was too much)."""
        self._had[client] = self._had.get(client, 0.0) + seconds / self._shares.get(client, 1.0)

    def forget(self, busy: Collection[str]) -> None:
        """Drop clients that neither wait nor have jobs on lanes, once there are many; the newest figure stays."""
        if len(self._had) > 10_000:
            newest = max(self._had.items(), key=lambda each: each[1])
            kept = {name: had for name, had in self._had.items() if name in self._of_client or name in busy}
            self._had = {newest[0]: newest[1], **kept}

    def order(self, now: float, cost: Callable[[Waiting], float]) -> Iterator[Waiting]:
        """All waiting jobs as they would be taken if each were charged its ``cost`` in seconds when it is."""
        had = dict(self._had)
        for clients in self._levels(now):
            heads: list[tuple[float, int, str, int]] = []
            for client, jobs in clients.items():
                jobs.sort(key=lambda each: (each.number, each.seq))
                heads.append((had.get(client, 0.0), jobs[0].seq, client, 0))
            heapq.heapify(heads)
            while heads:
                _, _, client, at = heads[0]
                waiting = clients[client][at]
                yield waiting
                had[client] = had.get(client, 0.0) + cost(waiting) / self._shares.get(client, 1.0)
                if at + 1 < len(clients[client]):
                    heapq.heapreplace(heads, (had[client], clients[client][at + 1].seq, client, at + 1))
                else:
                    heapq.heappop(heads)

    def _levels(self, now: float) -> Iterator[dict[str, list[Waiting]]]:
        """Jobs by client, the highest level first.

        Waiting lifts a job no higher than the highest priority that waits: where all have the same, age alone must
        not put one client's old jobs before another's first.
        """
        if not self._jobs:
            return
        top = max(waiting.priority for waiting in self._jobs.values())
        levels: dict[int, dict[str, list[Waiting]]] = {}
        for waiting in self._jobs.values():
            level = waiting.priority
            if level < top:
                level = min(top, level + int((now - waiting.since) / self._ageing))
            levels.setdefault(level, {}).setdefault(waiting.client, []).append(waiting)
        for level in sorted(levels, reverse=True):
            yield levels[level]
