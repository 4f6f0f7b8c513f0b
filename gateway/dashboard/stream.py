"""``/dashboard/events``: the whole state at connect, then what has changed, at most four times a second.

Owns what each viewer has been told. A viewer that does not read is not waited for and nothing is kept for it: when it
reads again it gets the newest state. Must never know where the state comes from.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

from gateway.api.events import HEARTBEAT, STREAM_HEADERS
from gateway.api.route import Call
from gateway.dashboard.board import MOST_JOBS, Board, Look, Shown
from gateway.dashboard.meter import Meter
from gateway.jobs.record import Record
from gateway.observe.tail import Tail
from gateway.request import Request
from gateway.wire.answer import Made, Stream

_PACE: Final = 0.25
"""Seconds between two looks."""
_LIFE: Final = 900.0
"""Seconds for which one stream lasts: who is let in is asked anew then, so a revoked key does not watch for ever."""
_AGAIN: Final = b"retry: 1000\n\n"
"""Milliseconds after which a browser comes back."""


class Told:
    """What one viewer may see, and has seen."""

    def __init__(self, request: Request, tails: Sequence[Tail]) -> None:
        self._request = request
        self._tails = tails if request.scope == "admin" else ()
        self._lines = [0 for _ in self._tails]
        self._gateway: Shown | None = None
        self._gpus: dict[int, Shown] = {}
        self._jobs: dict[str, Shown] = {}

    def news(self, look: Look) -> list[bytes]:
        """The events that bring the viewer up to date; none when nothing has changed."""
        first = self._gateway is None
        gateway = {**look.gateway, "line": self._line(look.gateway["line"])}
        gpus = [self._gpu(gpu) for gpu in look.gpus]
        jobs = {job: shown for job, (record, shown) in look.jobs.items() if self._request.may_see(record.owner)}
        news: dict[str, Any] = {
            "gpus": [gpu for gpu in gpus if self._gpus.get(gpu["gpu"]) != gpu],
            "jobs": [shown for job, shown in jobs.items() if self._jobs.get(job) is not shown],
            "gone": [job for job in self._jobs if job not in jobs],
        }
        if gateway != self._gateway:
            news["gateway"] = gateway
        self._gateway, self._gpus, self._jobs = gateway, {gpu["gpu"]: gpu for gpu in gpus}, jobs
        if first:
            you = {"name": self._request.owner, "scope": self._request.scope, "confined": self._request.confined}
            return [event("state", {**news, "you": you, "now": time.time(), "most_jobs": MOST_JOBS}), *self._log()]
        news = {name: value for name, value in news.items() if value}
        return ([event("change", news)] if news else []) + self._log()

    def _line(self, line: Shown) -> Shown:
        return {**line, "queue": self._named(line["queue"])}

    def _gpu(self, gpu: Shown) -> Shown:
        running: list[Record] = gpu["running"]
        named = self._named(running)
        return {**gpu, "running": named, "others": len(running) - len(named), "queue": self._named(gpu["queue"])}

    def _named(self, records: Sequence[Record]) -> list[str]:
        return [record.id for record in records if self._request.may_see(record.owner)]

    def _log(self) -> list[bytes]:
        """Lines of the backends; those that this viewer was too slow for are not there any more."""
        events = []
        for at, tail in enumerate(self._tails):
            if lines := tail.after(self._lines[at]):
                self._lines[at] = lines[-1].number
                events.append(event("log", {"backend": at, "lines": [list(line) for line in lines]}))
        return events


class StreamRoute:
    """The handler."""

    def __init__(self, board: Board, meter: Meter, tails: Sequence[Tail], leaving: Callable[[], bool]) -> None:
        """``leaving``: whether the gateway is about to end."""
        self._board = board
        self._meter = meter
        self._tails = tails
        self._leaving = leaving

    async def events(self, call: Call) -> Made:
        """``GET /dashboard/events``."""
        return Stream(200, STREAM_HEADERS, self._parts(call.incoming.request))

    async def _parts(self, request: Request) -> AsyncGenerator[bytes]:
        told = Told(request, self._tails)
        clock = asyncio.get_running_loop().time
        began = spoke = clock()
        with self._meter.watched():
            yield _AGAIN
            while not self._leaving() and clock() - began < _LIFE:
                if news := told.news(self._board.look()):
                    spoke = clock()
                    yield b"".join(news)
                elif clock() - spoke >= HEARTBEAT:
                    spoke = clock()
                    yield b": still here\n\n"
                await asyncio.sleep(_PACE)


def event(name: str, data: object) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
