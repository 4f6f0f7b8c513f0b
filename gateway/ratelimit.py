"""Who may ask how often: nginx's ``limit_req`` per GPU and kind of request.

Pure: time is a parameter and nothing waits here. Owns the buckets; knows nothing of sockets, answers or paths.
Arithmetic is nginx's (ngx_http_limit_req_module.c): integer milliseconds, and thousandths of a request.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

from gateway.config import Config, Rate, RateLimits
from gateway.forwarded import parse_address
from gateway.request import Kind

_UNIT = 1000
"""Thousandths of a request in one request; milliseconds in one second."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the limits say: go on after ``delay`` seconds, or be refused until ``retry_after`` whole seconds went by.

    ``headers`` belong into the 429. ``status`` is nginx's ``$limit_req_status`` in lower case: ``passed``,
    ``delayed``, ``rejected``, ``delayed_dry_run``, ``rejected_dry_run``; in a dry run everything is allowed at once.
    """

    allowed: bool
    delay: float = 0.0
    retry_after: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    status: str = "passed"


_PASSED = Verdict(allowed=True)


@lru_cache(maxsize=8192)
def clientkey(address: str) -> str:
    """Name the bucket of an address: IPv4 whole, IPv6 by its /64 (one household), IPv4-mapped as IPv4.

    What is no address (a Unix socket's peer) is its own key.
    """
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address if parsed is None else str(parsed)


class Zone:
    """One table of buckets with one rate: nginx's ``limit_req_zone`` and its ``limit_req`` line in one.

    ``max_keys`` bounds the table (the least recently used is forgotten first); ``idle`` is in seconds. Times are
    whole milliseconds.
    """

    __slots__ = (
        "_headers",
        "_idle",
        "_max_keys",
        "burst",
        "evictions",
        "free",
        "longest",
        "name",
        "rate",
        "refuse",
        "table",
    )

    def __init__(self, name: str, rate: Rate, *, max_keys: int, idle: float, longest: float) -> None:
        self.rate = max(1, round(rate.rate * _UNIT))
        self.burst = rate.burst * _UNIT
        self.free = self.burst if rate.delay is None else rate.delay * _UNIT
        self.refuse = rate.refuse
        self.longest = round(longest * _UNIT)
        self.table: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Key → (excess, last), the least recently used first."""
        self.evictions = 0
        """Keys that were forgotten for want of room, not for idleness."""
        self._max_keys = max_keys
        self._idle = round(idle * _UNIT)
        quota = rate.burst + 1
        window = -(-quota * _UNIT // self.rate)
        self.name = name
        self._headers = (name.encode(), quota, window)

    def inherit(self, other: "Zone") -> None:
        """Take another's table over; what is more than this one may hold is forgotten, the longest unused first."""
        self.table = other.table
        while len(self.table) > self._max_keys:
            self.table.popitem(last=False)
            self.evictions += 1

    def take(self, key: str, now: int) -> tuple[bool, int]:
        """Ask for one request: (True, milliseconds to hold it back) or (False, milliseconds until one would pass)."""
        entry = self.table.get(key)
        if entry is None:
            self._insert(key, now)
            return True, 0
        excess, last = entry
        self.table.move_to_end(key)
        elapsed = now - last
        if elapsed < 0:
            # The clock was set back: a little is jitter, more is a new clock (nginx: 60 s).
            elapsed = 1 if elapsed < -60_000 else 0
        excess = max(0, excess - self.rate * elapsed // _UNIT + _UNIT)
        if excess > self.burst and self.refuse:
            return False, -(-(excess - self.burst) * _UNIT // self.rate)
        wait = 0
        if excess > self.free:
            wait = (excess - self.free) * _UNIT // self.rate
            if excess > self.burst and wait > self.longest:
                # Held back, never refused: those that wait longest are let go together.
                wait = self.longest
                excess = self.free + wait * self.rate // _UNIT
        self.table[key] = (excess, now if elapsed else last)
        return True, wait

    def sweep(self, now: int, most: int) -> int:
        """Forget up to ``most`` idle keys, the oldest first, whose return nobody could tell from a first visit."""
        forgotten = 0
        while forgotten < most and self.table:
            key, (excess, last) = next(iter(self.table.items()))
            elapsed = now - last
            if elapsed < self._idle or excess - self.rate * elapsed // _UNIT + _UNIT > 0:
                break
            del self.table[key]
            forgotten += 1
        return forgotten

    def headers(self, wait: int) -> tuple[tuple[bytes, bytes], ...]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-11) of a refusal.

        ``q`` requests fit into ``w`` seconds from a full bucket; none is left for ``t`` seconds.
        """
        name, quota, window = self._headers
        return (
            (b"RateLimit-Policy", b'"%s";q=%d;w=%d' % (name, quota, window)),
            (b"RateLimit", b'"%s";r=0;t=%d' % (name, wait)),
        )

    def _insert(self, key: str, now: int) -> None:
        self.sweep(now, most=2)
        if len(self.table) >= self._max_keys:
            self.table.popitem(last=False)
            self.evictions += 1
        self.table[key] = (0, now)


class Limiter:
    """All limits of one gateway. GPUs share nothing; what no GPU was chosen for yet has limits of its own."""

    def __init__(self, config: RateLimits, gpus: int) -> None:
        self._gpus = gpus
        self._zones: dict[tuple[int | None, Kind], Zone] = {}
        self._evicted = 0
        """By tables that are no more."""
        self._set(config)

    def apply(self, config: Config) -> None:
        """Go by these rates; who has used up a bucket keeps it as full as it is, where the same bucket still is."""
        if config.rate != self._config:
            self._set(config.rate)

    def _set(self, config: RateLimits) -> None:
        before = self._zones
        self._evicted = self.evictions
        self._config = config
        self._by_client = config.key == "client"
        self._zones = {}
        for gpu in (None, *range(self._gpus)):
            self._zones.update(_zones_of(gpu, config))
        for key, zone in self._zones.items():
            if key in before and before[key].name == zone.name:
                zone.inherit(before[key])

    def check(self, gpu: int | None, kind: Kind, client: str, now: float) -> Verdict:
        """Charge one request of ``client`` (an address without port) to a GPU at ``now``, monotonic seconds.

        A refused request is charged nothing. The label of a refusal in metrics is ``kind.value``.
        """
        zone = self._zones.get((gpu, kind))
        if zone is None:
            return _PASSED
        allowed, wait = zone.take(clientkey(client) if self._by_client else "", round(now * _UNIT))
        if allowed and not wait:
            return _PASSED
        if self._config.dry_run:
            return Verdict(allowed=True, status="delayed_dry_run" if allowed else "rejected_dry_run")
        if allowed:
            return Verdict(allowed=True, delay=wait / _UNIT, status="delayed")
        seconds = max(1, -(-wait // _UNIT))
        return Verdict(False, retry_after=seconds, headers=zone.headers(seconds), status="rejected")

    def sweep(self, now: float) -> None:
        """Forget every idle key now; checks forget a few by themselves, so this is for scrapes and quiet hours."""
        for zone in self._all():
            zone.sweep(round(now * _UNIT), most=len(zone.table))

    @property
    def size(self) -> int:
        """Keys held at present, over all tables."""
        return sum(len(zone.table) for zone in self._all())

    @property
    def evictions(self) -> int:
        """Keys forgotten for want of room since the start; a rising figure means that ``max_keys`` is too small."""
        return self._evicted + sum(zone.evictions for zone in self._all())

    def __repr__(self) -> str:
        """Say the state in one line."""
        return f"<Limiter scope={self._config.scope} keys={self.size} evictions={self.evictions}>"

    def _all(self) -> set[Zone]:
        return set(self._zones.values())


def _zones_of(gpu: int | None, config: RateLimits) -> dict[tuple[int | None, Kind], Zone]:
    """Build one GPU's tables; with ``scope = "all"`` every kind shares one, and static files are in it too."""
    if not config.enabled:
        return {}

    def zone(name: str, rate: Rate, tables: int) -> Zone:
        most = max(1, config.max_keys // tables)
        return Zone(name, rate, max_keys=most, idle=config.idle, longest=config.max_delay)

    if config.scope == "all":
        shared = zone("all", config.all, 1)
        return {(gpu, kind): shared for kind in Kind}
    rates = {
        Kind.SUBMIT: config.submit,
        Kind.UPLOAD: config.upload,
        Kind.CONTROL: config.control,
        Kind.READ: config.read,
        Kind.EVENTS: config.events,
    }
    return {(gpu, kind): zone(kind.value, rate, len(rates)) for kind, rate in rates.items()}
