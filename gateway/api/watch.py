"""Who waits for a job is told when anything about it changes; what it is then, he sees for himself.

Owns the bells of those who wait, and that none of them waits on when the gateway ends. A bell that was missed costs
time, never truth: whoever waits looks again after a while anyway. Must never know what is waited for.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from gateway.jobs.journal import Journal
from gateway.jobs.record import Record

_LOOK: Final = 5.0
"""Seconds after which one who waits looks without having been called."""


class Bell:
    """Rings when the job has changed since ``quiet`` was called."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()

    def quiet(self) -> None:
        """What has changed so far is going to be seen."""
        self._rung.clear()

    async def heard(self, seconds: float) -> bool:
        """Whether it rang within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return False
        return True


class Watch:
    """All bells. ``run`` rings them on the journal's news; others may ring them with news of their own."""

    def __init__(self, journal: Journal) -> None:
        self.leaving = False
        """Whether the gateway ends, so that nobody should wait on."""
        self.on_wait: Callable[[str], None] = _nobody
        """Called when somebody begins to wait for a job."""
        self._journal = journal
        self._bells: dict[str, set[Bell]] = {}

    async def run(self) -> None:
        """Ring until cancelled."""
        async with self._journal.bus.subscribe() as news:
            while True:
                self.ring((await news.get()).id)

    def waited(self, job: str) -> bool:
        """Whether anybody waits for this job."""
        return job in self._bells

    def ring(self, job: str) -> None:
        """Something about this job has changed."""
        for bell in self._bells.get(job, ()):
            bell.ring()

    def leave(self) -> None:
        """Let everybody go."""
        self.leaving = True
        for bells in self._bells.values():
            for bell in bells:
                bell.ring()

    @contextlib.contextmanager
    def on(self, job: str) -> Iterator[Bell]:
        """A bell for this job, while the context lasts."""
        bell = Bell()
        bells = self._bells.setdefault(job, set())
        bells.add(bell)
        self.on_wait(job)
        try:
            yield bell
        finally:
            bells.discard(bell)
            if not bells and self._bells.get(job) is bells:
                del self._bells[job]

    async def ended(self, job: str, seconds: float) -> Record | None:
        """The job as soon as it has ended, or as it is after ``seconds``; ``None`` when there is none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        with self.on(job) as bell:
            while True:
                bell.quiet()
                record = self._journal.get(job)
                left = until - loop.time()
                if record is None or record.ended or self.leaving or left <= 0:
                    return record
                await bell.heard(min(left, _LOOK))

    async def all_ended(self, jobs: Iterable[str], seconds: float) -> bool:
        """Whether all of them have ended within that time; those that are not there count as ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        records = [await self.ended(job, max(0.0, until - loop.time())) for job in jobs]
        return all(record is None or record.ended for record in records)


def _nobody(job: str) -> None:
    """Nobody wants to know."""
