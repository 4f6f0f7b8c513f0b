"""One client connection: request heads and bodies in, answers out, in order, within bounds.

Owns the client's socket, its keep-alive, its deadlines and the bytes that came too early. Decides nothing about
requests: each goes to ``Service.begin``, which answers through an ``Exchange``. Must never know backends, GPUs'
meaning, limits per client or what a request costs.
"""

import asyncio
from typing import Final, Protocol

from gateway.config import Limits, Timeouts
from gateway.errors import BAD_REQUEST, REQUEST_TIMEOUT, GatewayError
from gateway.wire.body import Body, BodyError, Chunked, Counted
from gateway.wire.deadlines import NEVER, Deadlines
from gateway.wire.head import HEAD_END, RequestHead, RequestReader, check_unfinished
from gateway.wire.roles import ClientExchange
from gateway.wire.sockets import peer_address, reset_on_close

HIGH_WATER: Final = 64 * 1024
"""Bytes that may wait in one direction of one connection before its source is told to stop."""

_SWALLOW: Final = 64 * 1024
"""A refused body of which no more than this is left is read to its end, so that the connection can be kept."""

_LINGER: Final = 5.0
_LINGER_IN_ALL: Final = 30.0
"""Seconds in which a client that is still sending may notice our answer (nginx: lingering_timeout, lingering_time)."""

_TURN: Final = 16
"""Pipelined requests begun before the loop gets its turn."""


class Service(Protocol):
    """Whoever answers requests."""

    limits: Limits
    timeouts: Timeouts
    deadlines: Deadlines
    draining: bool

    def opened(self, client: "ClientConnection") -> bool:
        """A connection has come in; false when there are too many."""

    def closed(self, client: "ClientConnection") -> None:
        """It is gone."""

    def begin(self, client: "ClientConnection", head: RequestHead) -> None:
        """A request has come in: set ``client.exchange``, and answer now or later. Raises nothing."""

    def malformed(self, client: "ClientConnection", error: GatewayError) -> None:
        """Something came in that is no request: answer through ``client.reply``."""


class ClientConnection(asyncio.Protocol):
    """The protocol of one accepted socket. ``gpu`` is the port's; ``None`` on the front door."""

    __slots__ = (
        "_advancing",
        "_ahead",
        "_body",
        "_closing",
        "_in_head",
        "_linger_end",
        "_read_holds",
        "_reader",
        "_service",
        "_stuck_size",
        "deadline",
        "exchange",
        "gpu",
        "head",
        "peer",
        "transport",
        "write_blocked",
    )

    transport: asyncio.Transport

    def __init__(self, service: Service, gpu: int | None) -> None:
        # For as long as the connection lives:
        self._service = service
        self.gpu = gpu
        self.peer = ""
        """The socket's address without port."""
        self.deadline = NEVER
        self.write_blocked = False
        self._reader = RequestReader(max_line=service.limits.request_line, max_fields=service.limits.headers)
        self._ahead = bytearray()
        """Bytes that came before their time: a part of a head, pipelined requests, frames behind an upgrade."""
        self._read_holds = 0
        self._closing = False
        self._advancing = False
        self._in_head = False
        self._linger_end = 0.0
        self._stuck_size = 0
        # For one request:
        self.exchange: ClientExchange | None = None
        self.head: RequestHead | None = None
        self._body: Body | None = None

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self.transport = transport  # type: ignore[assignment]  # asyncio passes a Transport to stream protocols
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.peer = peer_address(transport)
        self.deadline = self._service.deadlines.now + self._service.timeouts.client_head
        self._service.deadlines.add(self)
        if not self._service.opened(self):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes for whatever is expected now."""
        if self._body is not None:
            self._feed_body(self._body, data)
        elif self.exchange is None and not self._ahead and not self._closing and not self.write_blocked:
            self._advance(data)
        else:
            self._hold(data)

    def eof_received(self) -> None:
        """A client that closes its side has left: most that do will read no answer (nginx sees it so, too)."""
        if self.exchange is not None:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everyone who holds on to this connection."""
        self._closing = True
        self._service.deadlines.discard(self)
        self._service.closed(self)
        if (exchange := self.exchange) is not None:
            exchange.client_gone()
            self.exchange = None

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self.write_blocked = True
        self._stuck_size = self.transport.get_write_buffer_size()
        self.deadline = self._service.deadlines.now + self._service.timeouts.client_write
        if self.exchange is not None:
            self.exchange.client_blocked()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.write_blocked = False
        self._set_deadline()
        if self.exchange is not None:
            self.exchange.client_ready()
        self._advance_ahead()

    def expired(self, now: float) -> None:
        """Nothing happened for too long; what that means depends on what was waited for."""
        if self.write_blocked and (size := self.transport.get_write_buffer_size()) < self._stuck_size:
            self._stuck_size = size
            self.deadline = now + self._service.timeouts.client_write
        elif self._closing or self.write_blocked:
            self.abort()
        elif self.exchange is not None:
            if self._read_holds:
                self._set_deadline()
            else:
                self.exchange.fail(GatewayError(REQUEST_TIMEOUT, "The request's body did not arrive in time."))
        elif self._body is not None:
            self.abort()
        elif self._in_head:
            self._refuse(GatewayError(REQUEST_TIMEOUT, "The request's head did not arrive in time."))
        else:
            self.close()

    # Called by the exchange

    def may_keep(self, *, continued: bool) -> bool:
        """Whether the connection can serve another request after this answer.

        ``continued``: a 100 was sent. Without it nobody knows whether a client that asked for one sends its body.
        """
        head = self.head
        if head is None or not head.keep_alive or self._service.draining or self._closing:
            return False
        body = self._body
        if body is None:
            return not (head.fields.upgrade and self._ahead)
        if head.fields.expect and not continued:
            return False
        return isinstance(body, Counted) and body.left <= _SWALLOW

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes of an answer."""
        if not self._closing:
            self.transport.write(data)

    def done(self, *, keep: bool) -> None:
        """The answer has been written to its end; go on with the next request, or close."""
        self.exchange = None
        if not keep:
            self.close()
            return
        if self._read_holds:
            self._read_holds = 0
            self.transport.resume_reading()
        self._set_deadline()
        self._advance_ahead()

    def reply(self, data: bytes, *, keep: bool) -> None:
        """Send a whole answer that was made here, and be done."""
        self.write(data)
        self.done(keep=keep)

    def hold_reading(self) -> None:
        """Stop taking bytes from the client until ``resume_reading``."""
        if not self._read_holds:
            self._read_holds = 1
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self._read_holds and not self._closing:
            self._read_holds = 0
            self.transport.resume_reading()
            if self._body is not None:
                self._set_deadline()

    def surrender(self) -> bytes:
        """Give up the socket to a bridge; the bytes that came behind the upgrade request."""
        ahead = bytes(self._ahead)
        self._ahead.clear()
        self.exchange = None
        self._closing = True
        self._service.deadlines.discard(self)
        self._service.closed(self)
        return ahead

    def close(self) -> None:
        """Close after what is written has been sent; while the client still sends, let it notice our answer first."""
        if self._closing:
            return
        self._closing = True
        still_sending = self._body is not None or bool(self._ahead) or self._in_head
        self._body = None
        self._ahead.clear()
        now = self._service.deadlines.now
        if still_sending and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            if self._read_holds:
                self.transport.resume_reading()
            self.deadline = now + _LINGER
            self._linger_end = now + _LINGER_IN_ALL
        else:
            self.transport.close()
            self.deadline = now + self._service.timeouts.client_write

    def break_off(self, *, reset: bool) -> None:
        """End a half-sent answer: nothing is added, and the client sees that it is not complete.

        ``reset``: only a reset can tell it so, because the connection's end is the body's end.
        """
        self.exchange = None
        if not reset:
            # What was received is still delivered; the framing shows that it is too short.
            self._body = None
            self._ahead.clear()
            self.close()
            return
        reset_on_close(self.transport)
        self.abort()

    def abort(self) -> None:
        """Close at once; nothing more is sent."""
        self._closing = True
        self._body = None
        exchange, self.exchange = self.exchange, None
        self.transport.abort()
        if exchange is not None:
            exchange.client_gone()

    # Reading

    def _hold(self, data: bytes) -> None:
        """Keep bytes for later, and stop reading when they are many."""
        if self._closing:
            if self._linger_end:
                self.deadline = min(self._service.deadlines.now + _LINGER, self._linger_end)
            return
        self._ahead += data
        if self.exchange is not None or self.write_blocked:
            if len(self._ahead) >= HIGH_WATER:
                self.hold_reading()
        elif self._ahead.find(HEAD_END, max(0, len(self._ahead) - len(data) - 3)) >= 0:
            self._advance_ahead()
        else:
            try:
                self._check_unfinished(len(data))
            except GatewayError as error:
                self._refuse(error)

    def _advance_ahead(self) -> None:
        """Go on with what came early, if there is any and it is its time."""
        if not self._ahead or self._advancing or self._closing or self.write_blocked:
            return
        if self.exchange is not None or self._body is not None:
            return
        if self._read_holds:
            self._read_holds = 0
            self.transport.resume_reading()
        data = bytes(self._ahead)
        self._ahead.clear()
        self._advance(data)

    def _advance(self, data: bytes) -> None:
        """Begin the requests in ``data``, one after another, as far as they can be answered now."""
        self._advancing = True
        try:
            for _ in range(_TURN):
                data = self._begin_one(data)
                if not data or self.exchange is not None or self._closing or self.write_blocked:
                    break
            else:
                asyncio.get_running_loop().call_soon(self._advance_ahead)
        except GatewayError as error:
            self._refuse(error)
        finally:
            self._advancing = False
        if data and not self._closing:
            self._ahead += data
            if len(self._ahead) >= HIGH_WATER:
                self.hold_reading()

    def _begin_one(self, data: bytes) -> bytes:
        """Begin the first request in ``data``; the bytes behind it, for which it may be too early."""
        while data.startswith(b"\r\n"):
            data = data[2:]
        end = data.find(HEAD_END) + 4
        if end < 4 or end > self._service.limits.head:
            self._ahead += data
            if data:
                self._check_unfinished(len(data))
            return b""
        self._in_head = False
        head = self.head = self._reader.read(data, end)
        data = data[end:] if len(data) > end else b""
        fields = head.fields
        if not fields.length and not fields.chunked:
            self.deadline = NEVER
            self._service.begin(self, head)
            return data
        self._body = Chunked() if fields.chunked else Counted(fields.length or 0)
        self._service.begin(self, head)
        self._set_deadline()
        if data and self._body is not None:
            self._feed_body(self._body, data)
            data = bytes(self._ahead)
            self._ahead.clear()
        return data

    def _check_unfinished(self, new: int) -> None:
        """Judge a head of which ``new`` more bytes have come; start its clock with its first byte."""
        service = self._service
        limits = service.limits
        check_unfinished(self._ahead, new, max_head=limits.head, max_line=limits.request_line)
        if not self._in_head:
            self._in_head = True
            self.deadline = service.deadlines.now + service.timeouts.client_head

    def _feed_body(self, body: Body, data: bytes) -> None:
        """Pass on payload; what lies behind the body's end is the next request."""
        exchange = self.exchange
        try:
            payload = body.feed(data)
        except BodyError as error:
            if exchange is not None:
                exchange.fail(GatewayError(BAD_REQUEST, "The chunked body is malformed.", str(error)))
            self.close()
            return
        if payload and exchange is not None:
            exchange.body(payload)
        if body.done:
            self._body_done(body)
        elif not self._closing and not self.write_blocked:
            self.deadline = self._service.deadlines.now + self._service.timeouts.client_body

    def _body_done(self, body: Body) -> None:
        if self._closing:
            return
        self._body = None
        self._ahead += body.rest
        exchange = self.exchange
        if exchange is not None:
            if not self.write_blocked:
                self.deadline = NEVER
            exchange.body_end(body.trailers)
        else:
            # A refused request's body has been swallowed; the connection is free again.
            self._set_deadline()
            self._advance_ahead()

    def _refuse(self, error: GatewayError) -> None:
        self.head = None
        self._in_head = True
        self._service.malformed(self, error)

    def _set_deadline(self) -> None:
        """The deadline of what is waited for now."""
        if self._closing:
            return
        timeouts = self._service.timeouts
        if self.write_blocked:
            wait = timeouts.client_write
        elif self._body is not None:
            wait = timeouts.client_body
        elif self.exchange is not None:
            wait = NEVER
        elif self._in_head:
            wait = timeouts.client_head
        else:
            wait = timeouts.client_idle
        self.deadline = self._service.deadlines.now + wait
