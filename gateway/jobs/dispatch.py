"""Sends the jobs of the line to their lanes, whenever the scheduler says so.

Owns the loop: it wakes when something has changed, when somebody's patience ends, and now and then in any case, for
backends come and go. What could not be brought to its lane goes back to where it was in the line. Must never choose.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Final

from gateway.fleet.ask import AskError
from gateway.jobs.counts import Counts
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.record import Record
from gateway.jobs.schedule import Schedule
from gateway.jobs.submission import Submissions
from gateway.schedule.terms import Choice

log = logging.getLogger("gateway.jobs")

_REST: Final = 0.5
"""Seconds between two looks at a line to which nothing happens, and before what could not be sent is tried again."""
_DOUBT: Final = 1.0
"""Seconds after which a backend that broke a connection off and still lives has not died of it."""


class Dispatch:
    """``run`` never ends by itself."""

    def __init__(
        self, journal: Journal, peers: Peers, schedule: Schedule, submissions: Submissions, counts: Counts
    ) -> None:
        self._journal = journal
        self._peers = peers
        self._schedule = schedule
        self._submissions = submissions
        self._counts = counts
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        schedule.on_change = self._changed.set

    async def run(self) -> None:
        """Decide, rest, decide."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._schedule.on_choice = self._begin
            while True:
                try:
                    self._schedule.decide()
                    await self._counts.tell()
                except Exception:
                    log.exception("the line stands still for a moment")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_REST, self._schedule.wake_in() or _REST)):
                        await self._changed.wait()
                self._changed.clear()

    def _begin(self, choice: Choice) -> None:
        self._tasks.create_task(self._deliver(choice), name="dispatch")

    async def _deliver(self, choice: Choice) -> None:
        job, gpu = choice.job, choice.gpu
        record = self._journal.get(job)
        if record is None or record.ended:
            self._schedule.withdraw(job)
            return
        place = self._peers.of(gpu).member.reserve(gpu)
        try:
            abroad = self._schedule.homes.abroad(job, gpu)
            reply = await self._submissions.send_again(replace(record, gpu=gpu), abroad=abroad, gpu=gpu)
            if reply is not None and 200 <= reply.status < 300:
                place.accepted()
            elif reply is not None and abroad:
                self._stays(job)
        except AskError as error:
            log.debug("job %s did not come to GPU %d: %s", job, gpu, error)
            place.release()
            await self._astray(job, gpu, certainly=error.refused)
        except Exception:
            log.exception("job %s could not be sent", job)
            place.release()
            await self._astray(job, gpu, certainly=False)
        finally:
            place.release()

    async def _astray(self, job: str, gpu: int, *, certainly: bool) -> None:
        """A job has not been taken, ``certainly`` or perhaps: back into the line, or it is looked for on its lane."""
        self._submissions.doubtful(job, begins=True)
        try:
            await asyncio.sleep(_REST if certainly else _DOUBT)
            record = self._journal.get(job)
            if record is None or record.ended:
                return
            if certainly or not record.boot:
                self._schedule.withdraw(job)
                await self._back(record)
                return
            member = self._peers.of(gpu).member
            if member.up and member.boot == record.boot:
                # Whoever takes up what no life of the backend has looks for it there first.
                await self._journal.note(job, boot="")
        finally:
            self._submissions.doubtful(job, begins=False)

    def _stays(self, job: str) -> None:
        """Another backend than its client's own has refused the job."""
        record = self._journal.get(job)
        if record is None or record.ended:
            self._schedule.withdraw(job)
        else:
            self._schedule.refused(record)

    async def _back(self, record: Record) -> None:
        noted = await self._journal.note(record.id, gpu=None, boot="")
        if noted is not None and not noted.ended:
            self._schedule.join(noted)
