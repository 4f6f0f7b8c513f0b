"""Two upgraded streams joined: bytes pass both ways untouched until both sides have closed.

Owns both sockets after the backend's 101, the back-pressure between them, and the rule that one client (``clientId`` on
one GPU) has one bridge at a time. Follows frame boundaries to count messages; never looks into a frame. Must never know
what the events mean.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from gateway.config import Timeouts
from gateway.wire.bridge_end import Counter, End
from gateway.wire.deadlines import NEVER, Deadlines
from gateway.wire.replay import Replay
from gateway.wire.silent import Silent, answer_controls
from gateway.wire.sockets import end_sending, keep_alive

TO_BACKEND: Final = "to_backend"
TO_CLIENT: Final = "to_client"

Key = tuple[str, str]
"""GPU (or ``front``) and ``clientId``."""

_HIGH_WATER: Final = 64 * 1024
_EVICTION: Final = 2.0
"""Seconds a displaced bridge's backend gets to close its side before it is broken off."""
_MOST_SILENT: Final = 1024
"""Displaced clients whose sockets are kept open; beyond these the oldest is closed."""


class Keeper(Protocol):
    """Who gives a bridge another backend side when its own has died."""

    def keep(self, bridge: "Bridge") -> float:
        """Take it on: the seconds for which its client is held meanwhile; 0: it is not."""

    def forget(self, bridge: "Bridge") -> None:
        """It has ended; nobody waits for another backend side."""


class Renewal(NamedTuple):
    """How the backend's side of a bridge was made, so that it can be made once more."""

    request: bytes
    """The upgrade request's head as it was sent."""
    answer: bytes
    """The 101 as the client got it."""
    client_id: str


class Claim:
    """The right to be the one bridge of a key: held from before the upgrade request is sent until its backend side
    is closed. Whoever waits for older claims (``waiting``) is called when the last of them has been released.
    """

    __slots__ = ("_bridges", "evict", "go", "key", "waiting")

    def __init__(self, bridges: "Bridges", key: Key, evict: Callable[[], None], go: Callable[[], None]) -> None:
        self._bridges = bridges
        self.key = key
        self.evict = evict
        """How to make its holder let go; the bridge sets its own when it takes the claim over."""
        self.go = go
        self.waiting = False

    def release(self) -> None:
        """Give it up; more than once does no harm."""
        self._bridges.forget(self)


class Bridges:
    """All open bridges, and who holds which key."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.bridge_close = Timeouts.bridge_close
        """Seconds from the first closed direction of a bridge to its end."""
        self.open: set[Bridge] = set()
        self.silent: dict[Silent, None] = {}
        """Clients that another one with their id has displaced, the oldest first."""
        self.keeper: Keeper | None = None
        self.deadlines: Deadlines
        self._claims: dict[Key, list[Claim]] = {}
        """By age, the oldest first: only that one may be at the backend."""

    def start(self, deadlines: Deadlines) -> None:
        """Begin to look at deadlines."""
        self.deadlines = deadlines
        deadlines.every_look(self._count)

    def claim(self, key: Key, evict: Callable[[], None], go: Callable[[], None]) -> Claim:
        """Claim a key and evict all who hold it; ``waiting`` says that ``go`` will be called when they have gone."""
        older = self._claims.setdefault(key, [])
        claim = Claim(self, key, evict, go)
        claims = list(older)
        older.append(claim)
        for other in claims:
            other.evict()
        claim.waiting = self._claims[key][0] is not claim
        return claim

    def forget(self, claim: Claim) -> None:
        """A claim is given up (``Claim`` calls this)."""
        claims = self._claims.get(claim.key, [])
        if claim not in claims:
            return
        claims.remove(claim)
        if not claims:
            del self._claims[claim.key]
        elif claims[0].waiting:
            claims[0].waiting = False
            claims[0].go()

    def join(
        self,
        gpu: str,
        client: asyncio.Transport,
        backend: asyncio.Transport,
        *,
        to_client: bytes,
        to_backend: bytes,
        claim: Claim | None,
        closed: "Callable[[Bridge], None]",
        renewal: Renewal | None = None,
    ) -> "Bridge":
        """Join two sockets; ``to_client`` and ``to_backend`` are bytes that came too early, frames only.

        With ``renewal`` a keeper may give it another backend side.
        """
        bridge = Bridge(self, gpu, claim, closed, renewal)
        bridge.begin(client, backend, to_client, to_backend)
        return bridge

    def close(self) -> None:
        """Say goodbye on all bridges; they end within their deadline."""
        for bridge in list(self.open):
            bridge.go_away()
        for client in list(self.silent):
            client.go_away()

    def abort(self) -> None:
        """End all bridges now."""
        for bridge in list(self.open):
            bridge.abort()
        for client in list(self.silent):
            client.abort()

    def silence(self, client: asyncio.Transport) -> None:
        """Keep a displaced client's socket open, so that it does not come back to displace its successor."""
        self.silent[Silent(client, lambda gone: self.silent.pop(gone, None))] = None
        if len(self.silent) > _MOST_SILENT:
            next(iter(self.silent)).go_away()

    def _count(self) -> None:
        for bridge in self.open:
            bridge.count()


class Bridge:
    """One bridge, from the 101 to the end of both sockets."""

    def __init__(
        self,
        bridges: Bridges,
        gpu: str,
        claim: Claim | None,
        closed: "Callable[[Bridge], None]",
        renewal: Renewal | None,
    ) -> None:
        self.gpu = gpu
        self.renewal = renewal
        self.parked = False
        """Whether its backend side has died and its client is held."""
        self.deadline = NEVER
        self._bridges = bridges
        self._claim = claim
        self._closed = closed
        self._done = False
        self.client: End
        self.backend: End

    def __repr__(self) -> str:
        return f"<Bridge gpu={self.gpu} to_client={self.backend.passed} to_backend={self.client.passed}>"

    def begin(self, client: asyncio.Transport, backend: asyncio.Transport, to_client: bytes, to_backend: bytes) -> None:
        """Take both sockets over."""
        self.client = End(self, client, TO_BACKEND)
        self.backend = End(self, backend, TO_CLIENT)
        self.client.other, self.backend.other = self.backend, self.client
        for end in (self.client, self.backend):
            end.transport.set_protocol(end)
            end.transport.set_write_buffer_limits(high=_HIGH_WATER)
            keep_alive(end.transport)
        self._bridges.open.add(self)
        self._bridges.deadlines.add(self)
        self._bridges.counter.bridge_opened(self.gpu)
        if self._claim is not None:
            self._claim.evict = self.evict
        if self.renewal is not None and self._bridges.keeper is not None:
            self.client.replay = Replay()
        if to_client:
            self.backend.data_received(to_client)
        if to_backend:
            self.client.data_received(to_backend)
        self.client.hold(hold=False)
        self.backend.hold(hold=False)

    def renew(self, backend: asyncio.Transport, farewells: bytes, to_client: bytes) -> None:
        """Take another backend side; ``farewells`` are frames that the client has missed."""
        self.backend.count(self._bridges.counter, self.gpu)
        self.backend = end = End(self, backend, TO_CLIENT)
        end.other, self.client.other = self.client, end
        end.transport.set_protocol(end)
        end.transport.set_write_buffer_limits(high=_HIGH_WATER)
        keep_alive(end.transport)
        self.parked = False
        self.deadline = NEVER
        if self.client.replay is not None and (again := self.client.replay.data):
            backend.write(again)
        if farewells:
            self.client.transport.write(farewells)
        if to_client:
            end.data_received(to_client)
        end.hold(hold=False)

    def heard(self, controls: list[tuple[int, bytes]]) -> None:
        """The client has said something while there is no backend side."""
        answer_controls(self.client.transport, controls)
        if self.client.replay is not None and not self.client.replay.possible:
            # More than can be said again to another backend.
            self.let_go()

    def let_go(self) -> None:
        """There will be no other backend side: tell the client."""
        self.client.send_close(masked=False)
        self.client.transport.close()

    def evict(self) -> None:
        """Somebody else takes over: end the backend's side first, and soon."""
        if self.parked:
            self.let_go()
            if self._claim is not None:
                self._claim.release()
            return
        self.backend.send_close(masked=True)
        if not self._silence():
            self.client.send_close(masked=False)
        self._end_by(_EVICTION)

    def _silence(self) -> bool:
        """Whether the client stays, without a bridge: possible only between two frames, in both directions."""
        client = self.client
        if client.lost or client.eof or client.transport.is_closing() or self.backend.follower.closing:
            return False
        if not (client.follower.at_boundary and self.backend.follower.at_boundary):
            return False
        client.lost = True
        self.backend.hold(hold=False)
        self._bridges.silence(client.transport)
        return True

    def go_away(self) -> None:
        """The gateway stops: tell both sides, each between two frames."""
        self.backend.send_close(masked=True, wait=True)
        self.client.send_close(masked=False, wait=True)
        self._end_by(self._bridges.bridge_close)

    @property
    def concluding(self) -> bool:
        """Whether it has been told to go away and still passes the rest of a frame."""
        return self.client.concluding or self.backend.concluding

    def half_closed(self, end: End) -> None:
        """One side sends no more."""
        if self._park(end):
            return
        if end is self.client and self.parked:
            self.client.transport.close()
            return
        end.eof = True
        if end is self.backend and self._claim is not None:
            self._claim.release()
        other = end.other
        if not other.lost and not other.transport.is_closing():
            end_sending(other.transport)
        if other.lost:
            end.transport.close()
        elif other.eof:
            end.transport.close()
            other.transport.close()
        self._end_by(self._bridges.bridge_close)

    def side_lost(self, end: End) -> None:
        """One socket is gone; the other is still sent what was on its way to it."""
        if end not in {self.client, self.backend} or (end is self.backend and self.parked) or self._park(end):
            return
        other = end.other
        if end is self.backend and self._claim is not None:
            self._claim.release()
        if other.lost:
            self._finish()
        else:
            other.transport.close()
            self._end_by(self._bridges.bridge_close)

    def expired(self, now: float) -> None:
        """It has had its time to close."""
        self.deadline = now + self._bridges.bridge_close
        self.abort()

    def abort(self) -> None:
        """End it now."""
        for end in (self.backend, self.client):
            if not end.lost:
                end.transport.abort()

    def count(self) -> None:
        """Report what has passed since the last report."""
        self.client.count(self._bridges.counter, self.gpu)
        self.backend.count(self._bridges.counter, self.gpu)

    def _park(self, end: End) -> bool:
        """Whether the backend has died under this bridge and the client is held until there is another.

        That needs two whole streams: the client in the middle of a frame could not be given another's next.
        """
        keeper, replay, client = self._bridges.keeper, self.client.replay, self.client
        if end is not self.backend or self.parked or keeper is None or replay is None or not replay.possible:
            return False
        if end.follower.closing or not end.follower.at_boundary or client.follower.closing:
            return False
        if client.lost or client.eof or client.transport.is_closing() or self.deadline != NEVER:
            return False
        held = keeper.keep(self)
        if not held:
            return False
        self.parked = True
        end.lost = True
        end.transport.abort()
        self._end_by(held)
        client.hold(hold=False)
        return True

    def _end_by(self, seconds: float) -> None:
        self.deadline = min(self.deadline, self._bridges.deadlines.now + seconds)

    def _finish(self) -> None:
        if self._done:
            return
        self._done = True
        if self.parked and self._bridges.keeper is not None:
            self._bridges.keeper.forget(self)
        self.parked = False
        if self._claim is not None:
            self._claim.release()
        self.count()
        self._bridges.open.discard(self)
        self._bridges.deadlines.discard(self)
        self._bridges.counter.bridge_closed(self.gpu)
        self._closed(self)
