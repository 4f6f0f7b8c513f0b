"""What the journal needs of whatever keeps it, and the promises every driver must hold.

``tests/gateway/jobs/store_contract.py`` checks the promises; a driver that passes it can be used in place of any
other. Must never know SQLite, files or networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.jobs.record import Record


class StoreError(Exception):
    """The store cannot do what it promised; nothing of the refused operation has been kept."""


class TakenError(Exception):
    """The id, or the idempotency key, belongs to another job already."""


@dataclass
class StoreStats:
    """What a driver has done so far; read at each scrape."""

    written: int = 0
    """Changes that have become durable."""
    commits: int = 0
    """Times that durability was waited for; many changes share one (fsyncs, for a driver on files)."""
    seconds: float = 0.0
    """Spent waiting for durability."""
    errors: int = 0
    """Changes and reads that could not be done; a refused duplicate is none."""


class Store(Protocol):
    """Jobs, each with its body and, once it has ended, its entry in the history. All of it for one gateway.

    Promises:

    1. When ``add`` or ``change(durable=True)`` returns, the change survives the death of this process, of the machine's
       power too where the medium does. When it raises, nothing has been changed.
    2. ``change(durable=False)`` returns before that; the change is made within a second, in the order of the calls,
       and no later change is durable without it.
    3. ``add`` of an id or of a non-empty key that is there already raises ``TakenError`` and changes nothing.
    4. What one call wrote, every later read sees.
    5. No read waits for a write to become durable, and no call blocks the event loop.
    6. Calls come from one event loop, any number at a time; concurrent ``add`` share what durability costs.
    """

    stats: StoreStats

    async def open(self) -> list[Record]:
        """Begin; every record that is kept, by ``seq``. Raises ``StoreError`` when that cannot be."""

    async def close(self) -> None:
        """Make everything durable and end. No other call may follow."""

    async def add(self, record: Record, body: bytes) -> None:
        """Keep a new job and the body with which it can be submitted again."""

    async def change(self, record: Record, *, entry: bytes | None = None, durable: bool = False) -> None:
        """Replace the record of that id; with ``entry`` keep that and drop the body. An unknown id is passed over."""

    async def remove(self, ids: Sequence[str]) -> None:
        """Forget jobs wholly; unknown ids are passed over. As durable as ``change(durable=False)``."""

    async def body(self, job: str) -> bytes | None:
        """The body of a job that has not ended."""

    async def entries(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Entries of those jobs that have one."""
