"""When a backend comes, or a gateway: every promise that is still open is taken up where it was left.

Owns the order: what the backend has is found again, what it has lost is put back in order, and only then are clients
let to it, so that none of them sees empty queues. Decides nothing about single jobs; that is ``plan``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from gateway.fleet.ask import AskError
from gateway.fleet.member import Member
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Peers, Seen
from gateway.jobs.plan import Decision, Fate, decide
from gateway.jobs.record import Record, State, in_order
from gateway.jobs.submission import Submissions
from gateway.jobs.tracker import Tracker

log = logging.getLogger("gateway.jobs")

_PATIENCE = 0.5
"""Seconds before a backend that does not answer is asked again."""
_LONGEST = 10.0
"""Seconds for which clients are kept out while that goes on; then they come first."""


class Recovery:
    """Takes open promises up each time that this one backend comes; calls ``done`` when all is back in its place."""

    def __init__(
        self,
        journal: Journal,
        peers: Peers,
        peer: Peer,
        submissions: Submissions,
        tracker: Tracker,
        *,
        pending_only: bool,
        pace: float,
        waits: Callable[[Record], bool],
    ) -> None:
        """``waits`` says of a job whether it is in the line at the front door, and nobody's yet."""
        self.recovered = 0
        """Jobs put into a queue once more."""
        self._journal = journal
        self._peers = peers
        self._peer = peer
        self._member = peer.member
        self._submissions = submissions
        self._tracker = tracker
        self._pending_only = pending_only
        self._pace = pace
        self._waits = waits
        self._unsure: tuple[str, str] | None = None
        """A job whose submission got no answer, and the life of the backend; if that goes on, it need not have it."""
        self._since = 0.0
        self._came = asyncio.Event()
        self.done: Callable[[Member], None] = _nothing

    def backend_came(self) -> bool:
        """The backend could take jobs; whether clients may come at once."""
        if not any(self._mine()):
            self.done(self._member)
            return True
        self._since = time.monotonic()
        self._came.set()
        return False

    async def run(self) -> None:
        """Recover whenever a backend comes, and send now and then what has not been sent; never ends by itself."""
        while True:
            try:
                async with asyncio.timeout(self._pace):
                    await self._came.wait()
            except TimeoutError:
                await self._stragglers()
                continue
            self._came.clear()
            try:
                await self._recover()
            except Exception as error:
                # Whatever it was: jobs wait, clients are kept out, and there is nobody else who would try again.
                log.warning("jobs cannot be put back yet: %s", error, exc_info=not isinstance(error, AskError))
                await self._once_more()

    async def _once_more(self) -> None:
        """The backend did not answer: if it still lives, try again; clients are not kept out for ever."""
        await asyncio.sleep(_PATIENCE)
        if not self._member.ready:
            return
        if self._unsure is not None and self._unsure[1] == self._member.boot:
            await self._journal.note(self._unsure[0], boot="")
        if time.monotonic() - self._since < _LONGEST:
            self._came.set()
            return
        log.error("jobs of the last backend cannot be put back; clients are let to it, and they stay in the journal")
        self._go_on()

    async def _recover(self) -> None:
        self._submissions.held.discard(self._member)
        self._unsure = None
        decisions = decide(await self._absent(), self._member.boot, pending_only=self._pending_only)
        for decision in decisions:
            await self._end(decision)
        tried = [each for each in decisions if each.fate is Fate.TRIED]
        again = [each for each in decisions if each.fate is Fate.AGAIN]
        if tried:
            self._submissions.held.add(self._member)
            # Written down before anything is sent: no later death is blamed on what only waits here.
            for each in (*tried, *again):
                await self._journal.note(each.record.id, crashes=each.crashes, boot="")
            self._member.admit()
            for each in tried:
                await self._try_alone(each)
        for each in again:
            await self._send(each.record, crashes=each.crashes, alone=False)
        if again or tried:
            log.info("%d job(s) that the last backend had are in their queues again", len(again) + len(tried))
        self._go_on()

    def _go_on(self) -> None:
        """Clients may come."""
        self._submissions.held.discard(self._member)
        self._member.admit()
        self.done(self._member)

    def _mine(self) -> Iterator[Record]:
        """Jobs that have not ended and whose GPU is behind this backend."""
        jobs = (record for record in self._journal.unfinished() if self._peers.of(record.gpu) is self._peer)
        return (record for record in jobs if not self._waits(record))

    async def _absent(self) -> list[Record]:
        """Unfinished jobs that the backend has neither in a queue nor in its history."""
        jobs = [record for record in self._mine() if not self._submissions.under_way(record.id)]
        if not jobs:
            return []
        seen = await self._peer.queues()
        return [record for record in self._tracker.easy_first(jobs) if await self._found(record, seen) is False]

    async def _found(self, record: Record, seen: Seen) -> bool | None:
        """Whether the backend has the job, in a queue or in its history; ``None``: that cannot be read."""
        if record.id in seen:
            member = self._member
            if record.boot != member.boot:
                noted = await self._journal.note(record.id, boot=member.boot, booted=member.booted)
                self._submissions.found(noted or record)
            await self._tracker.seen(record, seen)
            return True
        ended = await self._tracker.ended(record)
        if ended:
            self._submissions.found(record)
            return True
        return None if ended is None or not seen.whole else False

    async def _end(self, decision: Decision) -> None:
        record, crashes = decision.record, decision.crashes
        match decision.fate:
            case Fate.CANCELED:
                await self._tracker.stop([record], "it was to be stopped when the backend died")
            case Fate.CONDEMNED:
                message = (
                    f"This job took the backend down: it was running {crashes} times when that died, the last time "
                    "with nothing beside it. It is set aside and not run again."
                )
                await self._journal.note(record.id, crashes=crashes)
                await self._tracker.fail(record, State.FAILED, "backend_killed", message)
            case Fate.STARTED:
                message = (
                    'The backend died while this job ran, and it is not run again: resubmit = "pending-only" in [jobs].'
                )
                await self._tracker.fail(record, State.FAILED, "backend_lost", message)

    async def _try_alone(self, decision: Decision) -> None:
        """Run a suspect with nothing beside it; returns when it has ended, raises ``AskError`` when the backend has."""
        job, boot = decision.record.id, self._member.boot
        log.warning("job %s ran %d times when the backend died: it is tried alone", job, decision.crashes)
        async with self._journal.bus.subscribe(job) as news:
            await self._send(decision.record, crashes=decision.crashes, alone=True)
            while (record := self._journal.get(job)) is not None and not record.ended:
                if not self._member.ready or self._member.boot != boot:
                    raise AskError("The backend died.")
                try:
                    async with asyncio.timeout(self._pace):
                        await news.get()
                except TimeoutError:
                    continue

    async def _send(self, record: Record, *, crashes: int, alone: bool) -> None:
        if record.state is State.RUNNING:
            record = await self._journal.move(record.id, State.QUEUED) or record
        self.recovered += 1
        self._unsure = record.id, self._member.boot
        await self._submissions.send_again(record, crashes=crashes, alone=alone)
        self._unsure = None

    async def _stragglers(self) -> None:
        """Send what no life of the backend has: promised while it was away, or nobody knows whether it came there."""
        if not self._member.up or self._member in self._submissions.held:
            return
        boot = self._member.boot
        if not any(record.boot != boot for record in self._mine()):
            return
        try:
            absent = [record for record in await self._absent() if record.boot != boot]
            for record in in_order(absent):
                if record.cancel:
                    await self._tracker.stop([record], "it was to be stopped before it was sent")
                else:
                    await self._submissions.send_again(record)
        except AskError as error:
            log.debug("stragglers stay: %s", error)
        except Exception:
            log.exception("what has not been sent stays unsent")


def _nothing(member: Member) -> None:
    """Nobody waits for it."""
