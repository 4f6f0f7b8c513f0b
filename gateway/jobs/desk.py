"""The jobs' side as the rest of the gateway sees it: which requests it takes, and its life from start to stop.

Owns the table of routes and the tasks. Knows the drivers' interfaces only; ``app.py`` says which driver it is. Must
never know connections.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.auth.quotas import Quotas
from gateway.config import Config
from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.jobs.bus import Bus
from gateway.jobs.control import Control
from gateway.jobs.counts import Counts
from gateway.jobs.dispatch import Dispatch
from gateway.jobs.entry import farewells
from gateway.jobs.history import History
from gateway.jobs.incoming import Incoming
from gateway.jobs.journal import Journal
from gateway.jobs.line_view import LINE, LineView
from gateway.jobs.live import Live
from gateway.jobs.moving import Moving
from gateway.jobs.ownership import Ownership
from gateway.jobs.pauses import Pauses
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.recall import Recall
from gateway.jobs.record import Record
from gateway.jobs.recovery import Recovery
from gateway.jobs.schedule import Schedule
from gateway.jobs.store import Store
from gateway.jobs.submission import Submissions
from gateway.jobs.tracker import Tracker
from gateway.jobs.whereabouts import Whereabouts
from gateway.layout import layout
from gateway.request import Kind
from gateway.wire.answer import Answer

log = logging.getLogger("gateway.jobs")

Handler = Callable[[Incoming], Awaitable[Answer]]

# Every request asks: a member of an enum costs several times as much as a name of the module.
_READ, _SUBMIT, _CONTROL = Kind.READ, Kind.SUBMIT, Kind.CONTROL

_LAST_LOOK: Final = 2.0
"""Seconds for a look at backends that are about to be stopped."""
_SWEEP: Final = 60.0
"""Seconds between two looks at what need not be remembered any more."""


class Desk:
    """Where submissions, and everything that concerns jobs, are handed in."""

    def __init__(self, config: Config, fleet: Fleet, store: Store, bus: Bus) -> None:
        jobs = config.jobs
        patience = config.timeouts.read
        members = fleet.members
        largest = config.limits.body
        self.peers = peers = Peers(
            [Peer(each.backend.url, members[each.index], patience, largest) for each in layout(config)]
        )
        self._config = jobs
        self.whereabouts = Whereabouts()
        """Which GPU made which file; known where there is more than one backend."""
        self.schedule = schedule = Schedule(config, fleet)
        self.pauses = Pauses(Path(jobs.journal), fleet, schedule)
        self._several = len(peers) > 1
        self.journal = journal = Journal(store, bus, kept=self._kept)
        counts = Counts(peers, schedule)
        self.submissions = Submissions(
            journal, peers, schedule, counts, accept_while_down=jobs.accept_while_down, patience=patience
        )
        schedule.held = self.submissions.held
        self._dispatch = Dispatch(journal, peers, schedule, self.submissions, counts)
        self._recall = Recall(journal, peers, schedule, self.submissions, counts)
        self.tracker = Tracker(journal, peers, jobs.look, self.submissions.under_way)
        self.recoveries = [
            Recovery(
                journal,
                peers,
                peer,
                self.submissions,
                self.tracker,
                pending_only=jobs.resubmit == "pending-only",
                pace=jobs.look,
                waits=schedule.waits_here,
            )
            for peer in peers
        ]
        self.live = Live([(each.backend.url, members[each.index]) for each in layout(config)], journal)
        self.moving = Moving(
            journal, peers, fleet, self.submissions, after=jobs.move_after, pace=jobs.look
        )
        self._line = LineView(journal, peers, schedule)
        self._control = Control(journal, peers, self.tracker)
        self._history = History(journal, peers)
        self.ownership = Ownership(journal, peers, self.tracker, fleet, self.whereabouts)
        self.submissions.claim = self.ownership.claim
        self.live.on_files = lambda job, output: self.ownership.files(job, [output])
        for member, recovery in zip(members, self.recoveries, strict=True):
            member.on_ready = recovery.backend_came

    def apply(self, config: Config) -> None:
        """Go by a new patience with the backends and new rules of the line; ``[jobs]`` is read at the start alone."""
        self.submissions.patience = config.timeouts.read
        self.schedule.apply(config)
        for peer in self.peers:
            peer.patience = config.timeouts.read
            peer.largest = config.limits.body

    def _kept(self, record: Record) -> None:
        self.schedule.kept(record)
        if self._several:
            self.whereabouts.note(record)

    async def open(self) -> None:
        """Read the journal; raises ``StoreError``. Comes before everything else."""
        await self.journal.open()
        self.schedule.restore(self.journal.unfinished())
        self.pauses.restore()
        left = len(self.journal.unfinished())
        if left:
            log.info("the journal holds %d job(s) that have not ended", left)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self.submissions.start(tasks)
            tasks.create_task(self.tracker.run(), name="tracker")
            for recovery in self.recoveries:
                tasks.create_task(recovery.run(), name="recovery")
            tasks.create_task(self.live.run(), name="live-events")
            if self.schedule.enabled:
                tasks.create_task(self._dispatch.run(), name="dispatch")
                tasks.create_task(self._recall.run(), name="recall")
            tasks.create_task(self._sweep(), name="retention")
            if len(self.peers) > 1:
                tasks.create_task(self.moving.run(), name="moving")

    def on_recovered(self, call: Callable[[Member], None]) -> None:
        """Have this called whenever a backend has its jobs again."""
        for recovery in self.recoveries:
            recovery.done = call

    async def part(self, members: Collection[Member]) -> None:
        """These backends are going to be stopped in order: that is no death to blame on what runs."""
        if not members:
            return
        # What has ended since the last look would be run once more by the next life.
        with contextlib.suppress(AskError, TimeoutError):
            async with asyncio.timeout(_LAST_LOOK):
                await self.tracker.look()
        lives = {member.boot for member in members}
        for record in self.journal.unfinished():
            if record.boot in lives:
                await self.journal.note(record.id, boot="")

    async def close(self) -> None:
        """Make everything durable and end; comes last."""
        await self.journal.close()

    async def missed(self, client_id: str, gpu: str, since: float, until: float) -> list[bytes]:
        """Events with which this client's jobs on this GPU (``front``: on all) ended in that time, oldest first."""
        try:
            await self.tracker.look()
        except AskError as error:
            log.debug("no look for a client that was away: %s", error)
        ended = [
            record
            for record in self.journal.newest_first()
            if record.ended and record.client_id == client_id and gpu in {"front", str(record.gpu)}
            if since <= record.at <= until
        ]
        entries = await self.journal.store.entries([record.id for record in ended])
        told = sorted(ended, key=lambda record: record.at)
        return [event for record in told for event in farewells(record, entries.get(record.id))]

    def limit(self, quotas: Quotas) -> None:
        """Ask these before a job of a key is taken."""
        self.submissions.ledger.admit = lambda owner: quotas.jobs(owner, self.usage, self.journal.clock())

    def usage(self, owner: str) -> tuple[int, float]:
        """Unfinished jobs of a key, and seconds that its jobs which ended today have run."""
        return self.journal.usage.of(owner, self.journal.clock())

    # For metrics

    def job_counts(self) -> Mapping[str, int]:
        """Remembered jobs by state."""
        return self.journal.counts()

    def job_moves(self) -> Mapping[str, int]:
        """How often a job has entered each state."""
        return self.journal.moves

    @property
    def recovered(self) -> int:
        """Jobs put into a queue once more."""
        return self.moving.moved + sum(recovery.recovered for recovery in self.recoveries)

    @property
    def written(self) -> tuple[int, int, float, int]:
        """Changes written, commits, seconds spent in them, and changes and reads that failed."""
        stats = self.journal.store.stats
        return stats.written, stats.commits, stats.seconds, stats.errors

    @property
    def line(self) -> tuple[int, int, float]:
        """Jobs that wait at the front door; foretold ends that have come, and seconds by which they were off."""
        foretold = self.schedule.foretold
        return self.schedule.waiting_count, foretold.count, foretold.error

    # For requests

    def handler(self, kind: Kind, method: bytes, target: bytes, *, front: bool = False) -> Handler | None:
        """Who takes this request; ``None``: it goes the way of bytes. ``target`` has no ``/gpuN``.

        ``front``: it is for no GPU in particular.
        """
        if kind is _READ:
            if front and self.schedule.waiting_count and target.partition(b"?")[0].removeprefix(b"/api") in LINE:
                return self._line
            return self._reader(target) if b"/history" in target else None
        if kind is _SUBMIT:
            return self.submissions
        return self._writer(target) if kind is _CONTROL and method == b"POST" else None

    def _reader(self, target: bytes) -> Handler | None:
        path = target.partition(b"?")[0].removeprefix(b"/api")
        if path == b"/history":
            return self._history.all if self._history.all_is_here() else None
        if path.startswith(b"/history/") and self._history.one_is_here(path):
            return self._history.one
        return None

    def _writer(self, target: bytes) -> Handler | None:
        path = unquote_to_bytes(target.partition(b"?")[0]).removeprefix(b"/api")
        if path == b"/interrupt":
            return self._control.interrupt
        if path == b"/queue":
            return self._control.queue
        return self._history.write if path == b"/history" else None

    async def _sweep(self) -> None:
        while True:
            gone = await self.journal.prune(self._config.keep, self._config.keep_for)
            if gone:
                log.debug("%d ended job(s) are no longer remembered", gone)
            await asyncio.sleep(_SWEEP)
