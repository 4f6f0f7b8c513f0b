"""News of jobs: whoever changes one publishes, whoever wants to know subscribes.

Owns the promises and the driver for one process. What is published is the whole record, so that a reader who missed
something is right again with the next news. Must never know who listens or why.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from gateway.jobs.record import Record

WAITING: Final = 1000
"""News that a subscriber may leave unread; the oldest are dropped first."""


class Subscription(Protocol):
    """News, in the order in which they were published."""

    async def get(self) -> Record:
        """The next; waits for it."""


class Bus(Protocol):
    """One place where every change of every job is told.

    Promises:

    1. A subscription gets everything published after it began, of one job or of all, in the order of publication.
    2. ``publish`` never waits for a subscriber and never fails because of one.
    3. A subscriber that does not read loses the oldest news first, never the newest, and no one else loses any.
    4. Nothing is kept: what was published before a subscription began is in the store.
    """

    def publish(self, record: Record) -> None:
        """Tell that a job has changed."""

    def subscribe(self, job: str | None = None) -> AbstractAsyncContextManager[Subscription]:
        """News of this job, or of all, while the context lasts."""


class LocalBus:
    """``Bus`` within one event loop."""

    def __init__(self) -> None:
        self._all: set[_Waiting] = set()
        self._of: dict[str, set[_Waiting]] = {}

    def publish(self, record: Record) -> None:
        """See ``Bus``."""
        for waiting in self._all:
            waiting.put(record)
        for waiting in self._of.get(record.id, ()):
            waiting.put(record)

    @asynccontextmanager
    async def subscribe(self, job: str | None = None) -> AsyncIterator[Subscription]:
        """See ``Bus``."""
        waiting = _Waiting()
        among = self._all if job is None else self._of.setdefault(job, set())
        among.add(waiting)
        try:
            yield waiting
        finally:
            among.discard(waiting)
            if job is not None and not among and self._of.get(job) is among:
                del self._of[job]


class _Waiting:
    """What one subscriber has not read yet."""

    def __init__(self) -> None:
        self._news: deque[Record] = deque(maxlen=WAITING)
        self._more = asyncio.Event()

    def put(self, record: Record) -> None:
        self._news.append(record)
        self._more.set()

    async def get(self) -> Record:
        while not self._news:
            self._more.clear()
            await self._more.wait()
        return self._news.popleft()
