"""Who waits for one answer: those who asked before the backend was asked get it, those who came later the next one.

Owns the order of flights of one key. A flight in the air never serves who came after its start: what changed between
the two would not show, and a refresh must show it. So however many ask at once, the backend works for two of them.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.cache.asking import Asking
from gateway.cache.entry import WORTH_PACKING, Entry, is_text, pack
from gateway.cache.store import Key
from gateway.cache.worth import Worth, worth_of
from gateway.errors import GatewayError
from gateway.wire.backend import BackendConnection
from gateway.wire.collect import Collect
from gateway.wire.head import AnswerHead
from gateway.wire.pool import Pool
from gateway.wire.roles import AnswerReader

_AT_ONCE: Final = 32 * 1024
"""Bytes that are compressed in the loop's own thread: below a millisecond or two."""

VALIDATED: Final = "validated"
FETCHED: Final = "fetched"
SHARED: Final = "shared"
HIT: Final = "hit"


class Waiter(Protocol):
    """A request that waits for a shared answer; one of these is called, once, unless it leaves."""

    asking: Asking

    def stored(self, entry: Entry, how: str) -> None:
        """Here it is."""

    def pass_on(self) -> None:
        """It is not to be shared: ask the backend for yourself."""

    def adopt(self, connection: BackendConnection, pool: Pool) -> AnswerReader:
        """The answer is yours alone, and begins on this connection."""

    def fail(self, error: GatewayError) -> None:
        """There is none."""

    def informational(self, answer: AnswerHead) -> None:
        """A 1xx has come."""

    def asks(self, conditions: bytes) -> bytes:
        """The head with which the backend is asked in this one's name."""


class Owner(Protocol):
    """The cache, as a line sees it."""

    @property
    def now(self) -> float: ...

    def serves(self, entry: Entry, asking: Asking) -> bool:
        """Whether it may be given out as it is."""

    def reserve(self, key: Key, size: int) -> bool:
        """Whether there is room for so many bytes on their way; if so, ``unreserve`` follows."""

    def unreserve(self, size: int) -> None: ...

    def keep(self, key: Key, entry: Entry) -> None: ...

    def forget(self, key: Key, *, ask_directly: bool) -> None:
        """What is kept does not hold; ``ask_directly``: for a while, do not try to share this."""

    def settled(self, line: "Line") -> None:
        """Nobody waits here."""

    def count(self, outcome: str) -> None: ...


class Line:
    """All who wait for one key."""

    def __init__(self, owner: Owner, key: Key, pool: Pool, boot: str, *, listing: bool) -> None:
        self.key = key
        self.listing = listing
        self.entry: Entry | None = None
        """What is kept, and may no longer hold."""
        self.flight: Flight | None = None
        self._owner = owner
        self._pool = pool
        self._boot = boot
        self._next: list[Waiter] = []

    def join(self, waiter: Waiter) -> None:
        """Wait for the next flight, which leaves at once if none is in the air."""
        self._next.append(waiter)
        if self.flight is None:
            self._depart()

    @property
    def flying(self) -> bool:
        """Whether the backend is being asked."""
        return self.flight is not None

    def leave(self, waiter: Waiter) -> None:
        """Wait no more."""
        if waiter in self._next:
            self._next.remove(waiter)
        elif self.flight is not None and self.flight.leave(waiter):
            self.arrived(self.entry)

    def arrived(self, entry: Entry | None = None) -> None:
        """The flight is over, with this entry or with none."""
        self.flight = None
        self.entry = entry
        waiting, self._next = self._next, []
        for waiter in waiting:
            if entry is not None and self._owner.serves(entry, waiter.asking):
                self._owner.count(SHARED)
                waiter.stored(entry, SHARED)
            else:
                self._next.append(waiter)
        if self.flying:
            return  # one of them has asked again meanwhile
        if self._next:
            self._depart()
        else:
            self._owner.settled(self)

    def scatter(self) -> None:
        """This is not to be shared: everybody who still waits asks alone."""
        self.flight = None
        self.entry = None
        waiting, self._next = self._next, []
        self._owner.settled(self)
        for waiter in waiting:
            waiter.pass_on()

    def _depart(self) -> None:
        passengers, self._next = self._next, []
        self.flight = flight = Flight(self, self._owner, passengers, self.entry, self._boot)
        flight.start(self._pool)


class Flight:
    """One request to the backend for all its passengers; the first of them is who it is made for."""

    def __init__(
        self, line: Line, owner: Owner, passengers: list[Waiter], entry: Entry | None, boot: str
    ) -> None:
        self._line = line
        self._owner = owner
        self._passengers = passengers
        self._leader: Waiter | None = passengers[0]
        self._entry = entry
        self._boot = boot
        self._collect: Collect | None = None
        self._reserved = 0
        self._worth: Worth | None = None
        self._status = 0
        self._over = False
        self._pool: Pool

    def start(self, pool: Pool) -> None:
        """Ask."""
        leader = self._passengers[0]
        self._pool = pool
        collect = Collect(pool, leader.asks(self._entry.conditions() if self._entry else b""), self)
        if not self._over:
            self._collect = collect

    def leave(self, waiter: Waiter) -> bool:
        """A passenger gives up; true when it was the last one and nothing is fetched any more."""
        if waiter in self._passengers:
            self._passengers.remove(waiter)
        if waiter is self._leader:
            self._leader = None
        if self._passengers or self._collect is None:
            return False
        self._finish()
        return True

    # From ``Collect``

    def hinted(self, answer: AnswerHead) -> None:
        """An early hint is for the one in whose name the backend was asked."""
        if self._leader is not None:
            self._leader.informational(answer)

    def wants(self, answer: AnswerHead) -> bool:
        """Judge the head."""
        self._status = answer.status
        if answer.status == 304 and self._entry is not None:
            return True
        worth = worth_of(answer, listing=self._line.listing)
        if worth is None or not self._owner.reserve(self._line.key, answer.length or 0):
            return False
        self._worth, self._reserved = worth, answer.length or 0
        return True

    def given(self, connection: BackendConnection) -> AnswerReader | None:
        """It goes to the one it was asked for; the others ask for themselves."""
        leader, others = self._leader, [waiter for waiter in self._passengers if waiter is not self._leader]
        self._collect = None
        self._finish()
        # A backend in trouble may soon answer otherwise; all else will stay as it is for a while.
        self._owner.forget(self._line.key, ask_directly=self._status < 500)
        reader = leader.adopt(connection, self._pool) if leader is not None else None
        self._line.scatter()
        for waiter in others:
            waiter.pass_on()
        return reader

    def collected(self, answer: AnswerHead, body: bytes) -> None:
        """Make an entry of it, compressed where that is worth it."""
        self._collect = None
        entry, worth = self._entry, self._worth
        if worth is None:
            assert entry is not None, "a 304 was wanted for an entry"  # noqa: S101 (for the type checker)
            entry.renew(answer, self._owner.now)
            self._deliver(entry, VALIDATED)
            return
        if not worth.etag and entry is not None and entry.named_here and entry.body == body:
            # A listing that has not changed: its compressed form is there already.
            self._made(worth, body, entry.packed)
        elif not is_text(worth.pairs) or len(body) < WORTH_PACKING:
            self._made(worth, body, None)
        elif len(body) <= _AT_ONCE:
            self._made(worth, body, pack(body))
        else:
            packing = asyncio.get_running_loop().run_in_executor(None, pack, body)
            packing.add_done_callback(self._packed(worth, body))

    def failed(self, error: GatewayError) -> None:
        """No answer: all of these learn of it."""
        passengers = self._finish()
        self._line.arrived(self._entry)
        for waiter in passengers:
            waiter.fail(error)

    # Inside

    def _packed(self, worth: Worth, body: bytes) -> "Callable[[asyncio.Future[bytes | None]], None]":
        def done(packing: "asyncio.Future[bytes | None]") -> None:
            if not packing.cancelled():
                self._made(worth, body, None if packing.exception() else packing.result())

        return done

    def _made(self, worth: Worth, body: bytes, packed: bytes | None) -> None:
        self._deliver(Entry(worth, body, packed, boot=self._boot, arrived=self._owner.now), FETCHED)

    def _deliver(self, entry: Entry, how: str) -> None:
        passengers = self._finish()
        self._owner.keep(self._line.key, entry)
        for number, waiter in enumerate(passengers):
            outcome = SHARED if number else how
            self._owner.count(outcome)
            waiter.stored(entry, outcome)
        self._line.arrived(entry)

    def _finish(self) -> list[Waiter]:
        self._over = True
        collect, self._collect = self._collect, None
        if collect is not None:
            collect.cancel()
        if self._reserved:
            self._owner.unreserve(self._reserved)
            self._reserved = 0
        passengers, self._passengers = self._passengers, []
        return passengers
