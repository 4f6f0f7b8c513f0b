"""The journal: every job that was promised, in memory and in the store, changed in one place.

Owns the table of records and the order: a change is made in the store before it is told to anybody, and in the table
before the first wait, so that no two changes overtake each other. Must never know HTTP, backends or drivers.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gateway.jobs.bus import Bus
from gateway.jobs.record import Record, State, new
from gateway.jobs.store import Store
from gateway.jobs.told import tell
from gateway.jobs.usage import Usage


class Journal:
    """All records that are kept; bodies and entries stay in the store."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Callable[[], float] = time.time,
        kept: Callable[[Record], None] | None = None,
    ) -> None:
        """``kept`` is called with every record that is read or changed, before anybody else hears of it."""
        self.store = store
        self.bus = bus
        self.clock = clock
        self._kept = kept
        self.moves: dict[str, int] = {state.value: 0 for state in State}
        """How often a job has entered each state; for metrics."""
        self.usage = Usage()
        self.watchers: list[Callable[[Record], None]] = [self.usage.note]
        """Told of every record that there is at the start, and of every move since; at once, before anybody waits."""
        self.defaults: dict[str, Any] = {}
        """What a new job's record holds unless its submission says otherwise."""
        self._records: dict[str, Record] = {}
        self._keys: dict[str, str] = {}
        self._open: dict[str, None] = {}
        """Ids of jobs that have not ended, by submission."""
        self._seq = 0

    async def open(self) -> None:
        """Read what there is; raises ``StoreError``."""
        for record in await self.store.open():
            self._keep(record)
            for watcher in self.watchers:
                watcher(record)
            self._seq = max(self._seq, record.seq)

    async def close(self) -> None:
        """Make everything durable and end."""
        await self.store.close()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, job: str) -> Record | None:
        """The record of that id."""
        return self._records.get(job)

    def by_key(self, key: str) -> Record | None:
        """The job that an idempotency key belongs to."""
        return self._records.get(self._keys.get(key, ""))

    def unfinished(self) -> list[Record]:
        """Jobs that have not ended, by submission."""
        return [self._records[job] for job in self._open]

    @property
    def working(self) -> bool:
        """Whether any job has not ended."""
        return bool(self._open)

    def newest_first(self) -> Iterator[Record]:
        """All records, the youngest first."""
        return reversed(self._records.values())

    def counts(self) -> dict[str, int]:
        """Records by state."""
        found = {state.value: 0 for state in State}
        for record in self._records.values():
            found[record.state.value] += 1
        return found

    def draft(self, job: str, **known: Any) -> Record:
        """A new job's record, not kept yet."""
        self._seq += 1
        return new(job, self._seq, self.clock(), **{**self.defaults, **known})

    async def add(self, record: Record, body: bytes) -> None:
        """Promise a job: durable when this returns. Raises ``TakenError`` or ``StoreError``, and then there is none."""
        await self.store.add(record, body)
        self._keep(record)
        self._tell(record)

    async def move(
        self, job: str, state: State, *, at: float | None = None, entry: bytes | None = None, **changes: Any
    ) -> Record | None:
        """Put a job into another state; ``None``, and no change, when it is there already, has ended or is unknown."""
        record = self._records.get(job)
        if record is None or record.ended or record.state is state:
            return None
        record = record.moved(state, self.clock() if at is None else at, **changes)
        self._keep(record)
        await self.store.change(record, entry=entry)
        self._tell(record)
        return record

    async def note(self, job: str, *, durable: bool = False, **changes: Any) -> Record | None:
        """Change what is known of a job without moving it; ``None`` when it is not there."""
        record = self._records.get(job)
        if record is None:
            return None
        record = replace(record, **changes)
        self._keep(record)
        await self.store.change(record, durable=durable)
        return record

    async def forget(self, jobs: Iterable[str]) -> None:
        """Drop jobs wholly, as if they had never been."""
        gone = [job for job in jobs if job in self._records]
        for job in gone:
            record = self._records.pop(job)
            self.usage.drop(record)
            self._open.pop(job, None)
            if record.key:
                self._keys.pop(record.key, None)
        if gone:
            await self.store.remove(gone)

    async def prune(self, keep: int, keep_for: float) -> int:
        """Drop jobs that ended more than ``keep_for`` seconds ago, and the oldest beyond ``keep``; how many it were."""
        ended = [record for record in self._records.values() if record.ended]
        oldest = self.clock() - keep_for
        beyond = max(0, len(ended) - keep)
        ended.sort(key=lambda record: record.at)
        gone = [record.id for place, record in enumerate(ended) if place < beyond or record.at < oldest]
        await self.forget(gone)
        return len(gone)

    def _keep(self, record: Record) -> None:
        self._records[record.id] = record
        if self._kept is not None:
            self._kept(record)
        if record.key:
            self._keys[record.key] = record.id
        if record.ended:
            self._open.pop(record.id, None)
        else:
            self._open[record.id] = None

    def _tell(self, record: Record) -> None:
        self.moves[record.state.value] += 1
        for watcher in self.watchers:
            watcher(record)
        tell(record)
        self.bus.publish(record)
