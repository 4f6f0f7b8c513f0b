"""``/jobs/{id}/events``: a job's way as server-sent events, from where the client left off to its end.

Owns the names and numbers of the events: each state that a job enters has its number in the order of its times, so that
``Last-Event-ID`` means the same after a restart. Progress has no number, for only the newest is of use.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from gateway.api.route import Call
from gateway.api.watch import Watch
from gateway.jobs.journal import Journal
from gateway.jobs.live import Live
from gateway.jobs.record import Record
from gateway.wire.answer import Answer, Made, Stream

HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment says that the connection lives."""
_PACE: Final = 0.1
"""Seconds between two events of progress at least."""
STREAM_HEADERS: Final = (
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-store"),
    # nginx would hold events back otherwise.
    (b"X-Accel-Buffering", b"no"),
)


class EventRoutes:
    """The handler. ``known`` finds the job that a path names, ``show`` is the job as other routes show it."""

    def __init__(
        self,
        journal: Journal,
        live: Live,
        watch: Watch,
        known: Callable[[Call], Record],
        show: Callable[[Record], dict[str, Any]],
    ) -> None:
        self.heartbeat = HEARTBEAT
        self._journal = journal
        self._live = live
        self._watch = watch
        self._known = known
        self._show = show

    async def events(self, call: Call) -> Made:
        """``GET /jobs/{id}/events``."""
        record = self._known(call)
        seen = _seen(call.field(b"last-event-id"))
        if record.ended and seen >= len(record.times):
            # It has heard the end: this tells an EventSource not to come again (HTML, 9.2.3).
            return Answer(204)
        return Stream(200, STREAM_HEADERS, self._parts(record.id, seen))

    async def _parts(self, job: str, seen: int) -> AsyncGenerator[bytes]:
        told: object = None
        with self._watch.on(job) as bell:
            while True:
                bell.quiet()
                record = self._journal.get(job)
                if record is None:
                    return
                for number in range(seen, len(record.times)):
                    yield self._state(record, number)
                seen = max(seen, len(record.times))
                if record.ended or self._watch.leaving:
                    return
                progress = self._live.of(job)
                newest = None if progress is None else (progress.started_at, progress.version)
                if progress is not None and newest != told:
                    told = newest
                    yield _event("progress", progress.shown())
                    await asyncio.sleep(_PACE)
                elif not await bell.heard(self.heartbeat):
                    yield b": still here\n\n"

    def _state(self, record: Record, number: int) -> bytes:
        """One state of the job; the last of a job that has ended is all that there is to say about it."""
        state, at = record.times[number]
        if record.ended and number == len(record.times) - 1:
            return _event("end", self._show(record), number + 1)
        return _event("state", {"id": record.id, "state": state, "at": at, "gpu": record.gpu}, number + 1)


def _event(name: str, data: dict[str, Any], number: int | None = None) -> bytes:
    counted = "" if number is None else f"id: {number}\n"
    return f"{counted}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _seen(text: str) -> int:
    """How many states the client has heard of; what is no number of ours is as good as none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
