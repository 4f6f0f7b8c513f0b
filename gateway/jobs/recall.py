"""Takes jobs back that wait on a lane behind what lasts, while another lane idles; the line sends them there.

Owns how that is safe: only what the backend has in no queue and no history any more, after it was told to drop it, goes
back. Whatever cannot be found out is looked for on its lane before it is sent again. Must never choose.
"""

import asyncio
import json
import logging
from typing import Final

from gateway.fleet.ask import AskError
from gateway.jobs.counts import Counts
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.record import Record, State
from gateway.jobs.schedule import FRONT, Schedule
from gateway.jobs.submission import Submissions
from gateway.schedule.recall import Recalls

log = logging.getLogger("gateway.jobs")

_PACE: Final = 0.5
"""Seconds between two looks at the lanes."""


class Recall:
    """``run`` never ends by itself."""

    def __init__(
        self, journal: Journal, peers: Peers, schedule: Schedule, submissions: Submissions, counts: Counts
    ) -> None:
        self._journal = journal
        self._peers = peers
        self._schedule = schedule
        self._submissions = submissions
        self._counts = counts
        self._recalls = Recalls(schedule.scheduler)

    async def run(self) -> None:
        """Look, rest, look."""
        while True:
            await asyncio.sleep(_PACE)
            try:
                if (job := self._recalls.next(self._schedule.clock())) is not None:
                    await self._recall(job)
            except AskError as error:
                log.debug("a job stays on its lane: %s", error)
            except Exception:
                log.exception("a job stays on its lane")

    async def _recall(self, job: str) -> None:
        record = self._journal.get(job)
        if record is None or record.state is not State.QUEUED or record.port != FRONT or record.cancel:
            return
        peer = self._peers.of(record.gpu)
        there = record.gpu is not None and record.attempts and peer.member.up and record.boot == peer.member.boot
        if not there or self._submissions.under_way(job) or job not in (await peer.queues()).pending:
            return
        # Until this ends nobody concludes anything from where it is not.
        self._submissions.doubtful(job, begins=True)
        try:
            # Should we die now, it is looked for on its lane, and sent there again if it is nowhere.
            await self._journal.note(job, durable=True, boot="")
            # Its client's socket never hears that nothing is left: the count is here before it is gone there.
            self._schedule.homes.joins(record)
            await self._counts.tell()
            if await self._is_out(peer, record):
                await self._back(record)
            elif (left := self._journal.get(job)) is not None and not left.ended:
                await self._journal.note(job, boot=record.boot)
        finally:
            if self._schedule.scheduler.line.get(job) is None:
                self._schedule.homes.leaves(job)
            self._submissions.doubtful(job, begins=False)

    async def _is_out(self, peer: Peer, record: Record) -> bool:
        """Whether the backend has dropped the job before it started; raises ``AskError`` when nobody can say."""
        gpu = record.gpu or 0
        lines = b"Content-Type: application/json\r\n%b" % peer.line(gpu)
        await peer.send(b"POST", b"/queue", lines, json.dumps({"delete": [record.id]}).encode())
        seen = await peer.queues()
        if record.id in seen or await peer.entry(record.id) is not None:
            return False
        if not seen.whole or not peer.member.up or peer.member.boot != record.boot:
            raise AskError("The backend died meanwhile, or does not show its queues.")
        return True

    async def _back(self, record: Record) -> None:
        # It was put there for nothing, so that does not count.
        noted = await self._journal.note(record.id, durable=True, gpu=None, boot="", attempts=record.attempts - 1)
        if noted is None or noted.ended:
            self._schedule.withdraw(record.id)
            return
        log.info("job %s has not started on GPU %d and is taken back: another one idles", record.id, record.gpu)
        self._schedule.scheduler.take_back(record.id)
        self._schedule.join(noted)
