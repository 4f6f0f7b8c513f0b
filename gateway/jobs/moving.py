"""Jobs that wait for a backend which is away, given to another one: those of the front door that have not started.

Owns how long a backend may be away before that. A job that was sent to one GPU's port, and one that may have run, wait
for their backend's return. Must never know what a job does.
"""

import asyncio
import json
import logging
import time

from gateway.errors import GatewayError
from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.plan import movable
from gateway.jobs.record import Record
from gateway.jobs.submission import Submissions

log = logging.getLogger("gateway.jobs")


class Moving:
    """Looks every ``pace`` seconds for backends that have been away for ``after`` seconds."""

    def __init__(
        self, journal: Journal, peers: Peers, fleet: Fleet, submissions: Submissions, *, after: float, pace: float
    ) -> None:
        self.moved = 0
        """Jobs given to another backend."""
        self._journal = journal
        self._peers = peers
        self._fleet = fleet
        self._submissions = submissions
        self._after = after
        self._pace = pace
        self._away: dict[Member, float] = {}
        self._left: dict[Peer, set[str]] = {peer: set() for peer in peers}
        """Jobs that were taken from a backend, which may still have them should it come back as it was."""
        self._unwanted: set[str] = set()
        """Jobs that no other backend would take."""

    async def run(self) -> None:
        """Look, rest, look; never ends by itself."""
        while True:
            await asyncio.sleep(self._pace)
            for peer in self._peers:
                try:
                    await self._look(peer)
                except AskError as error:
                    log.debug("jobs stay where they are: %s", error)
                except Exception:
                    log.exception("jobs stay where they are")

    async def _look(self, peer: Peer) -> None:
        member, now = peer.member, time.monotonic()
        if member.up:
            if self._away.pop(member, None) is not None:
                self._unwanted.clear()
            await self._disown(peer)
            return
        if now - self._away.setdefault(member, now) < self._after:
            return
        waiting = [
            record
            for record in self._journal.unfinished()
            if record.gpu is not None  # those that wait at the front door are nobody's
            if self._peers.of(record.gpu) is peer and not self._submissions.under_way(record.id)
        ]
        for record in movable(waiting):
            if record.id not in self._unwanted and not await self._move(record, peer):
                return

    async def _move(self, record: Record, peer: Peer) -> bool:
        """Give a job to another backend; false when none could take it now."""
        try:
            gpu = self._fleet.choose(self._fleet.near(record.client))
        except GatewayError:
            return False  # every GPU that it could go to is drained
        member = self._fleet.member(gpu)
        if member is peer.member or not member.up or member.out or member.drain or self._fleet.fault(gpu):
            return False
        if not await self._submissions.move(record, gpu):
            self._unwanted.add(record.id)
            return True
        self.moved += 1
        self._left[peer].add(record.id)
        log.info("job %s waits for GPU %d, which is away, no longer: GPU %d has it", record.id, record.gpu, gpu)
        return True

    async def _disown(self, peer: Peer) -> None:
        """A backend that was away and kept its queues must not run what another one has by now."""
        left, self._left[peer] = self._left[peer], set()
        if not left:
            return
        try:
            lines = b"Content-Type: application/json\r\n"
            await peer.send(b"POST", b"/queue", lines, json.dumps({"delete": sorted(left)}).encode())
        except AskError:
            self._left[peer] |= left
            raise
