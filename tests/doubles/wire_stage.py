"""The whole data path between transports that a test moves by hand: no socket, no clock, no order but the test's.

What comes of any sequence of bytes, ends, losses and stalls on either side can be tried thousands of times a second.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.proxy import Proxy
from gateway.ratelimit import Limiter
from gateway.wire.client import HIGH_WATER, ClientConnection
from gateway.wire.deadlines import Deadlines
from gateway.wire.exchange import Exchange
from gateway.wire.pool import Pool, Ticket
from tests.doubles.http_stack import config_for

LIMITS = {"head": 2048, "request_line": 1024, "headers": 20, "body": 5000, "pool_connections": 3, "idle_connections": 2}
LARGEST = 4096
"""Bytes of one read at most."""


class Line(asyncio.Transport):
    """A transport whose other end is the test; obeys pauses, and tells of its end when ``settle`` is called."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.protocol: Any = protocol
        self.sent = bytearray()
        self.finished = False
        self.gone = False
        self.stuck = 0
        self.paused = False
        self._closing = False
        self._eof = False

    # What protocols ask of it

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert isinstance(data, bytes | bytearray | memoryview), type(data)
        if not self._closing and not self.finished:
            self.sent += data
            if self.stuck:
                self.stuck += len(data)

    def write_eof(self) -> None:
        self.finished = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True
        self.stuck = 0

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_reading(self) -> bool:
        return not self.paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == HIGH_WATER

    def get_write_buffer_size(self) -> int:
        return self.stuck

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    # What the test does

    def receive(self, data: bytes) -> None:
        """Bytes come in, unless nobody takes any."""
        if data and not (self.gone or self._closing or self.paused or self._eof):
            self.protocol.data_received(data)

    def receive_eof(self) -> None:
        """The other side sends no more."""
        if not (self.gone or self._closing or self._eof or self.paused):
            self._eof = True
            if not self.protocol.eof_received():
                self.close()

    def stall(self) -> None:
        """The other side takes no more."""
        if not (self.gone or self._closing or self.stuck):
            self.stuck = HIGH_WATER + 1
            self.protocol.pause_writing()

    def flow(self) -> None:
        """It takes all."""
        if self.stuck and not self.gone:
            self.stuck = 0
            if not self._closing:
                self.protocol.resume_writing()

    def lose(self, error: Exception | None = None) -> None:
        """The connection is gone."""
        if not self.gone:
            self.gone = self._closing = True
            self.stuck = 0
            self.protocol.connection_lost(error)

    def settle(self) -> bool:
        """Tell of an end that was asked for; whether there was one."""
        if self._closing and not self.gone and not self.stuck:
            self.lose()
            return True
        return False


class Stage:
    """One gateway, one client, and as many backend connections as it opens."""

    def __init__(self, **changes: Any) -> None:
        loop = asyncio.get_running_loop()
        config = config_for("http://127.0.0.1:1", limits=LIMITS, log={"access": False}, **changes)
        fleet = Fleet(config.gpus)
        fleet.members[0].backend_up("double")
        self.metrics = Metrics(config.gpus, "test")
        self.proxy = Proxy(config, limiter=Limiter(config.rate, config.gpus), fleet=fleet, metrics=self.metrics)
        self.deadlines = Deadlines(loop, 1000.0)
        self.proxy.start(self.deadlines)
        self.backends: list[Line] = []
        self.most = 0
        """The most bytes of a request that were ever held back."""
        for pool in self.proxy.pools:
            pool.dial = self._dialler(pool)  # connects at once, without a task
        connection = ClientConnection(self.proxy, 0)
        self.client = Line(connection)
        self.connection = connection
        connection.connection_made(self.client)

    def _dialler(self, pool: Pool) -> Callable[[Ticket], None]:
        def dial(ticket: Ticket) -> None:
            connection = pool._make()
            line = Line(connection)
            self.backends.append(line)
            connection.connection_made(line)
            pool.opened(connection)
            borrower, ticket.borrower = ticket.borrower, None
            assert borrower is not None
            borrower.connected(connection)

        return dial

    async def turn(self) -> None:
        """Let everything that has been asked for happen, and look at what is held."""
        await asyncio.sleep(0)
        while sum(line.settle() for line in (self.client, *self.backends)):
            await asyncio.sleep(0)
        held = len(self.connection._ahead)
        exchange = self.connection.exchange
        if isinstance(exchange, Exchange):
            held += exchange._early_size if exchange._early else 0
        self.most = max(self.most, held)

    async def end(self) -> None:
        """Everybody leaves; nothing may be left, and nothing may have been more than its bound."""
        self.client.lose(ConnectionResetError())
        for line in list(self.backends):
            line.lose(ConnectionResetError())
        for _ in range(3):
            await self.turn()
        self.deadlines.close()
        proxy = self.proxy
        left = (proxy.clients, proxy.running, proxy.tasks, proxy.bridges.open, proxy.bridges._claims)
        assert not any(left), left
        assert [(pool.busy, pool.idle, pool.waiting, len(pool._open)) for pool in proxy.pools] == [(0, 0, 0, 0)]
        assert (self.metrics.in_flight, self.metrics.bridges_open) == (0, 0)
        assert not proxy.deadlines._items
        assert self.most <= 2 * (HIGH_WATER + LARGEST)
        check_answers(bytes(self.client.sent))
        for line in self.backends:
            check_requests(bytes(line.sent))


class _Reader:
    """What ``httptools`` calls back; after an upgrade the bytes are no HTTP any more."""


def check_answers(data: bytes) -> None:
    """What the client was sent is HTTP, as far as it goes: another reader finds nothing wrong with it."""
    assert not data or data.startswith(b"HTTP/1.1 "), data[:80]


def check_requests(data: bytes) -> None:
    """What a backend was sent is a sequence of requests about which llhttp, strict, has no doubt."""
    if not data:
        return
    try:
        httptools.HttpRequestParser(_Reader()).feed_data(data)
    except (httptools.HttpParserUpgrade, httptools.HttpParserInvalidMethodError):
        # Bytes after an upgrade are no HTTP; and llhttp has a list of methods, where we let unknown ones pass.
        return


async def play(data: bytes) -> Stage:
    """Read ``data`` as a script: an opcode, for bytes their number in two, and so on; then everybody leaves."""
    stage = Stage()
    at = 0
    while at < len(data):
        code, at = data[at], at + 1
        step = code % 16
        side = stage.client
        if step >= 10 and stage.backends:
            side = stage.backends[code // 16 % len(stage.backends)]
        if step in {0, 1, 2, 3, 4, 5, 10, 11, 12}:
            size = int.from_bytes(data[at : at + 2], "big") % LARGEST
            side.receive(data[at + 2 : at + 2 + size])
            at += 2 + size
        elif step in {6, 13}:
            side.receive_eof()
        elif step in {7, 14}:
            side.stall()
        elif step == 8:
            for line in (stage.client, *stage.backends):
                line.flow()
        else:
            side.lose(ConnectionResetError() if step == 9 else None)
        await stage.turn()
    await stage.end()
    return stage
