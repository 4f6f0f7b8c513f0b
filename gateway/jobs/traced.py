"""Jobs as spans: the time in line, the time on a lane, and in that each node.

Owns which moments of a job make a span, and when all of them are known. Told by the journal and by the backends'
events; must never know who collects spans.
"""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gateway.jobs.journal import Journal
from gateway.jobs.live import Live, Step
from gateway.jobs.record import Record, State

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracing  # loads the SDK

_GRACE: Final = 1.0
"""Seconds after a job's end in which the backend's last events of it may still come."""
_MOST: Final = 1000
"""Jobs whose nodes are remembered at most; of more, the oldest are told without."""


@dataclass
class _Ran:
    steps: list[Step] = field(default_factory=list)


class TracedJobs:
    """Tells of each job when it has ended; to be made when the journal is open, which holds jobs told of before."""

    def __init__(self, tracing: "Tracing", journal: Journal, live: Live) -> None:
        self._tracing = tracing
        self._ran: dict[str, _Ran] = {}
        self._ended: dict[str, tuple[Record, asyncio.TimerHandle]] = {}
        journal.watchers.append(self._moved)
        live.on_step = self._stepped

    def close(self) -> None:
        """Tell of those that have ended just now."""
        for record, timer in list(self._ended.values()):
            timer.cancel()
            self._tell(record)

    def _stepped(self, job: str, step: Step) -> None:
        while len(self._ran) >= _MOST:
            del self._ran[next(iter(self._ran))]
        self._ran.setdefault(job, _Ran()).steps.append(step)

    def _moved(self, record: Record) -> None:
        if record.ended:
            timer = asyncio.get_running_loop().call_later(_GRACE, self._tell, record)
            self._ended[record.id] = record, timer

    def _tell(self, record: Record) -> None:
        self._ended.pop(record.id, None)
        steps = self._ran.pop(record.id, _Ran()).steps
        queued, began = record.times[0][1], record.since(State.RUNNING)
        told = {
            "comfy.prompt_id": record.id,
            "comfy.state": record.state.value,
            "comfy.port": record.port,
            "comfy.attempts": record.attempts,
            **({} if record.gpu is None else {"comfy.gpu": record.gpu}),
        }
        error = "" if record.error is None else str(record.error.get("message", "")) or record.state.value
        job = self._tracing.begin("job", record.trace, queued)
        self._tracing.begin("queue", job.parent, queued).end(told, at=record.at if began is None else began)
        if began is not None:
            lane = self._tracing.begin("lane", job.parent, began)
            for step in steps:
                node = self._tracing.begin(f"node {step.kind or step.node}", lane.parent, step.began)
                node.end({"comfy.node": step.node, "comfy.node_class": step.kind}, at=step.ended)
            lane.end(told, error, record.at)
        job.end(told, error, record.at)
