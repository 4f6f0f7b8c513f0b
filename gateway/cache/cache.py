"""The cache: who gets what is kept, who waits for a new answer, who asks the backend alone.

Owns what is kept and the lines of those who wait. Off, it is not there at all. Nothing is served without the backend's
word that it holds: either it said for how long (bounded by ``[cache] fresh``), or it is asked each time.
"""

from collections import OrderedDict
from typing import Final

from gateway.cache.asking import Asking
from gateway.cache.entry import Entry
from gateway.cache.line import HIT, Line, Waiter
from gateway.cache.store import Key, Store
from gateway.config_cache import Cache as Settings
from gateway.errors import NOT_CACHED, GatewayError
from gateway.wire.deadlines import Deadlines
from gateway.wire.pool import Pool

PASSED: Final = "passed"
OUTCOMES: Final = ("hit", "shared", "validated", "fetched", PASSED)

_DIRECT_FOR: Final = 60.0
"""Seconds for which what turned out not to be shareable is not tried again."""
_DIRECT_MOST: Final = 4096


class Cache:
    """Kept answers of all backends. Metrics read ``outcomes``, ``used`` and ``entries``."""

    clock: Deadlines

    def __init__(self, settings: Settings) -> None:
        self._store = Store(settings.size)
        self._lines: dict[Key, Line] = {}
        self._direct: OrderedDict[Key, float] = OrderedDict()
        self._boots: dict[Pool, str] = {}
        self._reserved = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Go by these settings."""
        self._settings = settings
        self._store.shrink(settings.size)

    def start(self, clock: Deadlines) -> None:
        """Begin to work."""
        self.clock = clock

    @property
    def now(self) -> float:
        """The loop's time, coarsely."""
        return self.clock.now

    @property
    def used(self) -> int:
        """Memory that kept answers take."""
        return self._store.bytes

    @property
    def entries(self) -> int:
        """Number of kept answers."""
        return len(self._store)

    @property
    def waiting(self) -> int:
        """Answers that somebody waits for."""
        return len(self._lines)

    def take(self, pool: Pool, boot: str, target: bytes, waiter: Waiter, *, listing: bool, head: bool) -> Line | None:
        """Serve ``waiter`` now, or give the line in which it waits; what it is called is said in ``Waiter``.

        ``boot`` names the life of the backend behind ``pool``: what an earlier one said does not count. ``head`` says
        that no body is wanted: it gets what is kept, and nothing is fetched for it.
        """
        if self._boots.get(pool) != boot:
            self._boots[pool] = boot
            self._store.drop_of(pool, boot)
            self._direct.clear()
        asking = waiter.asking
        key = (pool, target, asking.key)
        entry = self._store.get(key)
        if entry is not None and self.serves(entry, asking):
            self.count(HIT)
            waiter.stored(entry, HIT)
            return None
        if asking.only_if_cached:
            waiter.fail(GatewayError(NOT_CACHED, "This is not kept here, and only what is was asked for."))
            return None
        line = self._lines.get(key)
        if line is None:
            if head or not self._shareable(key):
                self.count(PASSED)
                waiter.pass_on()
                return None
            line = self._lines[key] = Line(self, key, pool, boot, listing=listing)
            line.entry = entry
        elif head:
            self.count(PASSED)
            waiter.pass_on()
            return None
        line.join(waiter)
        return line

    def written(self, pool: Pool, target: bytes) -> None:
        """Somebody has changed what this target names (RFC 9111 §4.4)."""
        self._store.drop_target(pool, target)

    def serves(self, entry: Entry, asking: Asking) -> bool:
        """Whether it may be given out without asking the backend."""
        return entry.serves(asking, self.now, self._settings.fresh)

    # From lines

    def reserve(self, key: Key, size: int) -> bool:
        """Take so many bytes for an answer on its way; false: it is too large."""
        if size > self._settings.entry or self._reserved + size > self._settings.size:
            return False
        self._reserved += size
        return True

    def unreserve(self, size: int) -> None:
        """Give them back."""
        self._reserved -= size

    def keep(self, key: Key, entry: Entry) -> None:
        """Keep it for those who come."""
        pool = key[0]
        if isinstance(pool, Pool) and entry.boot == self._boots.get(pool):
            self._store.put(key, entry)

    def forget(self, key: Key, *, ask_directly: bool) -> None:
        """It does not hold any more, or was never to be shared."""
        self._store.drop(key)
        if ask_directly:
            self._direct[key] = self.now + _DIRECT_FOR
            self._direct.move_to_end(key)
            if len(self._direct) > _DIRECT_MOST:
                self._direct.popitem(last=False)

    def settled(self, line: Line) -> None:
        """Nobody waits there."""
        if self._lines.get(line.key) is line:
            del self._lines[line.key]

    def count(self, outcome: str) -> None:
        """One request answered so."""
        self.outcomes[outcome] += 1

    def _shareable(self, key: Key) -> bool:
        until = self._direct.get(key)
        if until is not None:
            if until > self.now:
                return False
            del self._direct[key]
        return self._store.has_room(key)
