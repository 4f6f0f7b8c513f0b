"""Connections to one backend: kept alive within bounds, opened when needed, waited for in order.

Owns dialling, the idle stack and the queue of those who wait. Must never know requests' meaning: it is asked for a
connection and gives one, or an error.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from gateway.config import Config
from gateway.errors import BACKEND_TIMEOUT, BACKEND_UNAVAILABLE, GATEWAY_BUSY, GatewayError
from gateway.wire.backend import BackendConnection
from gateway.wire.deadlines import NEVER, Deadlines


class Borrower(Protocol):
    """A request that needs a connection."""

    def connected(self, connection: BackendConnection) -> None:
        """Here it is; give it back with ``Pool.release`` or ``Pool.detach``, exactly once."""

    def unconnected(self, error: GatewayError) -> None:
        """There is none."""


class Ticket:
    """A request's place in the queue, or its dial in progress."""

    __slots__ = ("borrower", "deadline", "fresh", "pool", "task")

    def __init__(self, pool: "Pool", borrower: Borrower, *, fresh: bool) -> None:
        self.pool = pool
        self.borrower: Borrower | None = borrower
        self.fresh = fresh
        self.task: asyncio.Task[None] | None = None
        self.deadline = NEVER

    def cancel(self) -> None:
        """It is not needed any more."""
        if self.borrower is not None:
            self.borrower = None
            self.pool.give_up(self)

    def expired(self, now: float) -> None:
        """It has waited long enough."""
        borrower, self.borrower = self.borrower, None
        self.pool.give_up(self)
        if borrower is not None:
            text = "All connections to the backend are in use."
            borrower.unconnected(GatewayError(GATEWAY_BUSY, text, "Try again soon.", retry_after=1))


class Pool:
    """The connections. Metrics read ``busy``, ``idle``, ``waiting`` and ``opened_total``."""

    def __init__(self, config: Config, url: str) -> None:
        """Read limits and time-outs; nothing is opened before ``start`` and the first ``acquire``."""
        self.busy = 0
        """Connections that a request holds or is opening. Bridges do not count."""
        self.opened_total = 0
        self.apply(config)
        self._path, self._host, self._port = parse_backend_url(url)
        self._idle: list[BackendConnection] = []
        self._waiting: deque[Ticket] = deque()
        self._dials: set[asyncio.Task[None]] = set()
        self._open: set[BackendConnection] = set()
        self.clock: Deadlines
        self.dial: Callable[[Ticket], None] = self._dial
        """How a connection is opened for who waits."""
        self._closed = False

    def apply(self, config: Config) -> None:
        """Go by these limits and time-outs from the next look on; nothing that is open is closed."""
        self.max_head = config.limits.head
        self.max_fields = config.limits.headers
        self.read_timeout = config.timeouts.read
        self.send_timeout = config.timeouts.send
        self._limits = config.limits
        self._connect_timeout = config.timeouts.connect
        self._idle_timeout = config.timeouts.backend_idle

    def __repr__(self) -> str:
        return f"<Pool busy={self.busy} idle={self.idle} waiting={self.waiting}>"

    @property
    def idle(self) -> int:
        """Kept-alive connections that wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def start(self, deadlines: Deadlines) -> None:
        """Begin to look at deadlines."""
        self.clock = deadlines
        deadlines.every_look(self._drop_stale)

    def acquire(self, borrower: Borrower, *, fresh: bool) -> Ticket | None:
        """Give a connection now (``None``), or a ticket for one.

        ``fresh``: one that no request has used. A kept-alive connection may be closed by the backend while we write
        to it, and a request that must not be sent twice would be lost.
        """
        if self.busy >= self._limits.pool_connections:
            ticket = Ticket(self, borrower, fresh=fresh)
            ticket.deadline = self.clock.now + self._limits.pool_wait
            self._waiting.append(ticket)
            self.clock.add(ticket)
            return ticket
        self.busy += 1
        if not fresh and (connection := self._take_idle()) is not None:
            borrower.connected(connection)
            return None
        ticket = Ticket(self, borrower, fresh=fresh)
        self.dial(ticket)
        return ticket

    def release(self, connection: BackendConnection, *, reusable: bool) -> None:
        """Take a connection back; one that cannot be used again is broken off."""
        self.busy -= 1
        if reusable and not self._closed and len(self._idle) < self._limits.idle_connections:
            connection.rest_idle(self.clock.now)
            self._idle.append(connection)
        else:
            connection.abort()
        if self._waiting:
            self._serve()

    def detach(self, connection: BackendConnection) -> None:
        """A connection has become a bridge: it is no longer ours."""
        self.busy -= 1
        self.lost(connection)
        self._serve()

    def give_up(self, ticket: Ticket) -> None:
        """A ticket is not needed any more (``Ticket`` calls this)."""
        if ticket.task is not None:
            ticket.task.cancel()
            self.busy -= 1
            self._serve()
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
            self.clock.discard(ticket)

    def opened(self, connection: BackendConnection) -> None:
        """A connection stands."""
        self.opened_total += 1
        self._open.add(connection)
        self.clock.add(connection)

    def lost(self, connection: BackendConnection) -> None:
        """A connection is gone, or has become useless."""
        self._open.discard(connection)
        self.clock.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def drop_idle(self) -> None:
        """Close what is kept alive: the backend behind it is gone."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def close(self) -> None:
        """Close everything."""
        self._closed = True
        for task in self._dials:
            task.cancel()
        self.drop_idle()
        for connection in list(self._open):
            connection.transport.abort()

    def _take_idle(self) -> BackendConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def _serve(self) -> None:
        while self._waiting and self.busy < self._limits.pool_connections:
            ticket = self._waiting.popleft()
            self.clock.discard(ticket)
            self.busy += 1
            borrower = ticket.borrower
            if borrower is None:
                self.busy -= 1
            elif not ticket.fresh and (connection := self._take_idle()) is not None:
                ticket.borrower = None
                borrower.connected(connection)
            else:
                self.dial(ticket)

    def _dial(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        ticket.task = loop.create_task(self._connect(ticket), name="backend-connect")
        self._dials.add(ticket.task)
        ticket.task.add_done_callback(self._dials.discard)

    async def _connect(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        error: GatewayError | None = None
        connection: BackendConnection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout):
                if self._path:
                    _, connection = await loop.create_unix_connection(self._make, self._path)
                else:
                    _, connection = await loop.create_connection(self._make, self._host, self._port)
        except TimeoutError:
            error = GatewayError(BACKEND_TIMEOUT, "The backend did not accept a connection in time.")
        except OSError as reason:
            text = "The backend cannot be reached."
            error = GatewayError(BACKEND_UNAVAILABLE, text, reason.strerror or str(reason), retry_after=1)
        if connection is not None:
            # Not before: of a dial that is given up in its last moment nobody hears that its connection has ended.
            self.opened(connection)
        borrower, ticket.borrower = ticket.borrower, None
        if borrower is None:
            if connection is not None:
                connection.abort()
        elif connection is not None:
            borrower.connected(connection)
        else:
            self.busy -= 1
            borrower.unconnected(error or GatewayError(BACKEND_UNAVAILABLE, "The backend cannot be reached."))
            self._serve()

    def _make(self) -> BackendConnection:
        return BackendConnection(self)

    def _drop_stale(self) -> None:
        if self._waiting:
            self._serve()  # the bound may have been raised
        oldest = self.clock.now - self._idle_timeout
        while self._idle and self._idle[0].idle_since < oldest:
            # A stack: what has been used least lies at the bottom.
            self._idle.pop(0).abort()


def parse_backend_url(url: str) -> tuple[str, str, int]:
    """Read ``http://host:port`` or ``unix:/path``: the socket's path (or empty), host and port.

    Raise ``ValueError`` for anything else.
    """
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{url!r}: the path of a Unix socket must be absolute")
        return path, "", 0
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{url!r} is not of the form http://HOST:PORT or unix:/PATH")
    return "", parts.hostname, parts.port or 80
