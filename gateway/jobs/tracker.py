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
from gateway.jobs.entry import ending, made
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Peers, Seen
from gateway.jobs.record import Record, State

log = logging.getLogger("gateway.jobs")

_SHARE = 20
"""A look that took long is followed by a rest so many times as long: queues of large prompts are costly to show."""


class Tracker:
    """One look after another while any job is unfinished; ``pace`` is the least time between two, in seconds."""

    def __init__(
        self, journal: Journal, peers: Peers, pace: float, under_way: Callable[[str], bool]
    ) -> None:
        """``under_way`` says of a job whether it is being sent right now."""
        self._journal = journal
        self._peers = peers
        self._pace = pace
        self._under_way = under_way
        self._absent: dict[Peer, set[str]] = {peer: set() for peer in peers}
        """Jobs that the last look at a backend found nowhere; found nowhere again, they are lost."""
        self._unread: dict[str, int] = {}
        """Jobs whose end could not be read, and how often that was tried."""
        self._told: set[str] = set()
        """Those of them that the log has named."""
        self._soon = {peer: asyncio.Event() for peer in peers}
        self._looking = {peer: asyncio.Lock() for peer in peers}

    def look_soon(self) -> None:
        """Something has happened that the next look will show."""
        for soon in self._soon.values():
            soon.set()

    async def run(self) -> None:
        """Look, rest, look; never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            for peer in self._peers:
                tasks.create_task(self._follow(peer), name="tracker")

    async def _follow(self, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if peer.member.up and self._journal.working:
                try:
                    await self._look(peer)
                except AskError as error:
                    log.debug("no look at the jobs: %s", error)
                except Exception:
                    log.exception("a look at the jobs failed")
            took = loop.time() - began
            # However often one is wished for: no more than half of the time goes into looking.
            await asyncio.sleep(took)
            await self._rest(peer, max(self._pace, _SHARE * took))

    async def look(self) -> None:
        """See what became of the jobs that the backends which are there have; raises ``AskError``."""
        failed: AskError | None = None
        for peer in self._peers.there:
            try:
                await self._look(peer)
            except AskError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _look(self, peer: Peer) -> None:
        # What one look has seen is written down before the next one begins.
        async with self._looking[peer]:
            await self._see(peer)

    async def _see(self, peer: Peer) -> None:
        member = peer.member
        boot = member.boot
        # Taken before the queues are asked for: what is accepted meanwhile cannot be missed in them.
        unfinished = self._journal.unfinished()
        jobs = [record for record in unfinished if record.boot == boot and not self._under_way(record.id)]
        if not jobs:
            return
        seen = await peer.queues()
        absent: set[str] = set()
        failed: AskError | None = None
        for record in self.easy_first(jobs):
            if record.id in seen:
                await self.seen(record, seen)
                continue
            try:
                if await self.ended(record) is False and seen.whole:
                    absent.add(record.id)
            except AskError as error:
                failed = error
                break
        # A backend that was replaced between two questions knows nothing of what the other one had.
        if member.boot == boot and member.up:
            for job in absent & self._absent[peer]:
                await self._nowhere(job)
        self._absent[peer] = absent
        if failed is not None:
            raise failed

    async def seen(self, record: Record, seen: Seen) -> None:
        """The job waits or runs."""
        if record.id in seen.running and record.state is State.QUEUED:
            await self._journal.move(record.id, State.RUNNING)

    def easy_first(self, jobs: Iterable[Record]) -> list[Record]:
        """The same jobs; whose end has cost a look before comes last, so that it costs no other job its turn."""
        return sorted(jobs, key=lambda record: self._unread.get(record.id, 0))

    async def ended(self, record: Record) -> bool | None:
        """Whether the backend's history has the job; then its end is written down. ``None``: that cannot be read.

        Raises ``AskError`` when there is no answer at all.
        """
        try:
            ended = await self._ended(record)
        except Exception as error:
            self._unread[record.id] = self._unread.get(record.id, 0) + 1
            if isinstance(error, AskError) and not error.answered:
                raise
            if record.id not in self._told:
                self._told.add(record.id)
                surprise = not isinstance(error, AskError)
                log.warning("what became of job %s cannot be read: %s", record.id, error, exc_info=surprise)
            return None
        self._unread.pop(record.id, None)
        self._told.discard(record.id)
        return ended

    async def _ended(self, record: Record) -> bool:
        entry = await self._peers.of(record.gpu).entry(record.id)
        if entry is None:
            return False
        end = ending(entry, self._journal.clock())
        # It ran after all, so it has a history.
        changes: dict[str, Any] = {"outputs": end.outputs, "error": end.error, "hidden": False}
        changes["attempts"] = max(1, record.attempts)
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

    async def _rest(self, peer: Peer, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._soon[peer].wait()
        except TimeoutError:
            return
        self._soon[peer].clear()
