"""Follows jobs to their end by looking at the backend, whoever else listens or not.

Owns the look: the queues first, then the history of what is in none of them, so that a job that ends between the two is
seen. What is in neither is never taken for done. Must never put a job into a queue.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.jobs.entry import ending, made
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Seen
from gateway.jobs.record import Record, State

log = logging.getLogger("gateway.jobs")

_SHARE = 20
"""A look that took long is followed by a rest so many times as long: queues of large prompts are costly to show."""


class Tracker:
    """One look after another while any job is unfinished; ``pace`` is the least time between two, in seconds."""

    def __init__(
        self, journal: Journal, peer: Peer, fleet: Fleet, pace: float, under_way: Callable[[str], bool]
    ) -> None:
        """``under_way`` says of a job whether it is being sent right now."""
        self._journal = journal
        self._peer = peer
        self._fleet = fleet
        self._pace = pace
        self._under_way = under_way
        self._absent: set[str] = set()
        """Jobs that the last look found nowhere; found nowhere again, they are lost."""
        self._soon = asyncio.Event()
        self._looking = asyncio.Lock()

    def look_soon(self) -> None:
        """Something has happened that the next look will show."""
        self._soon.set()

    async def run(self) -> None:
        """Look, rest, look; never ends by itself."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if self._fleet.up and self._journal.working:
                try:
                    await self.look()
                except AskError as error:
                    log.debug("no look at the jobs: %s", error)
                except Exception:
                    log.exception("a look at the jobs failed")
            await self._rest(max(self._pace, _SHARE * (loop.time() - began)))

    async def look(self) -> None:
        """See what became of the jobs that this life of the backend has; raises ``AskError``."""
        # What one look has seen is written down before the next one begins.
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        boot = self._fleet.boot
        # Taken before the queues are asked for: what is accepted meanwhile cannot be missed in them.
        unfinished = self._journal.unfinished()
        jobs = [record for record in unfinished if record.boot == boot and not self._under_way(record.id)]
        if not jobs:
            return
        seen = await self._peer.queues()
        absent: set[str] = set()
        for record in jobs:
            if record.id in seen:
                await self.seen(record, seen)
            elif not await self.ended(record):
                absent.add(record.id)
        # A backend that was replaced between two questions knows nothing of what the other one had.
        if self._fleet.boot == boot and self._fleet.up:
            for job in absent & self._absent:
                await self._nowhere(job)
        self._absent = absent

    async def seen(self, record: Record, seen: Seen) -> None:
        """The job waits or runs."""
        if record.id in seen.running and record.state is State.QUEUED:
            await self._journal.move(record.id, State.RUNNING)

    async def ended(self, record: Record) -> bool:
        """Whether the backend's history has the job; then its end is written down. Raises ``AskError``."""
        entry = await self._peer.entry(record.id)
        if entry is None:
            return False
        end = ending(entry, self._journal.clock())
        # It ran after all, so it has a history.
        changes: dict[str, Any] = {"outputs": end.outputs, "error": end.error, "hidden": False}
        if record.state is State.QUEUED and end.started is not None:
            await self._journal.move(record.id, State.RUNNING, at=end.started)
        await self._journal.move(record.id, end.state, at=end.at, entry=json.dumps(entry).encode(), **changes)
        return True

    async def stop(self, jobs: Iterable[Record], kind: str) -> None:
        """End jobs that nobody will run any more because somebody wanted that; ``kind`` is for the log alone."""
        for record in jobs:
            log.info("job %s is canceled: %s", record.id, kind)
            at = self._journal.clock()
            body = await self._journal.store.body(record.id)
            entry = made(record, body, "execution_interrupted", {}, at)
            await self._journal.move(record.id, State.CANCELED, at=at, entry=entry)

    async def fail(self, record: Record, state: State, kind: str, message: str) -> None:
        """End a job for a reason that the backend cannot tell."""
        log.warning("job %s is %s: %s", record.id, state.value, message)
        at = self._journal.clock()
        error = {"type": kind, "message": message}
        body = await self._journal.store.body(record.id)
        entry = made(record, body, "execution_error", error, at)
        await self._journal.move(record.id, state, at=at, error=error, entry=entry)

    async def _nowhere(self, job: str) -> None:
        record = self._journal.get(job)
        if record is None or record.ended:
            return
        if record.cancel:
            await self.stop([record], "it was taken out of the queue")
        else:
            message = "The backend had this job and knows it no more: it neither waits, nor runs, nor has it a history."
            await self.fail(record, State.LOST, "lost", message)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._soon.wait()
        except TimeoutError:
            return
        self._soon.clear()
