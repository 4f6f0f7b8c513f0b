"""One connection to the backend: a request out, its answer in, then the next; never a byte of one in another.

Owns the backend's socket while a request uses it, and the judgement whether it can be used again. Must never know
clients, GPUs or what is asked. What it learns it tells an ``AnswerReader``.
"""

import asyncio
import os
from typing import Final, Protocol

from gateway.errors import BACKEND_BROKE, BACKEND_TIMEOUT, GatewayError
from gateway.wire.body import Body, BodyError, Chunked, Counted, UntilClose
from gateway.wire.deadlines import NEVER, Deadlines
from gateway.wire.head import HEAD_END, AnswerHead, check_unfinished_answer, read_answer
from gateway.wire.roles import AnswerReader

HIGH_WATER: Final = 64 * 1024
_LAST_LOOK: Final = 256 * 1024
_MAX_INFORMATIONAL: Final = 100


class Owner(Protocol):
    """The pool, as a connection sees it."""

    max_head: int
    max_fields: int
    read_timeout: float
    send_timeout: float

    clock: Deadlines

    def lost(self, connection: "BackendConnection") -> None:
        """It is gone, or of no use any more."""


class BackendConnection(asyncio.Protocol):
    """The protocol of one socket to the backend."""

    __slots__ = (
        "_answer",
        "_body",
        "_no_body",
        "_owner",
        "_partial",
        "_reading",
        "_seen",
        "_stuck_size",
        "_uploading",
        "_write_blocked",
        "answered",
        "deadline",
        "exchange",
        "idle_since",
        "transport",
        "used",
    )

    transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        # For as long as the connection lives:
        self._owner = owner
        self.deadline = NEVER
        self.used = False
        """Whether it has served a request before: then it may have been closed without our knowing."""
        self.idle_since = 0.0
        self._reading = True
        self._write_blocked = False
        self._stuck_size = 0
        # For one request:
        self.exchange: AnswerReader | None = None
        self.answered = False
        """Whether any byte of an answer has come."""
        self._no_body = False
        self._partial = b""
        self._answer: AnswerHead | None = None
        self._body: Body | None = None
        self._seen = 0
        self._uploading = False

    def start(self, exchange: AnswerReader, head: bytes, *, no_body: bool, uploading: bool) -> None:
        """Send a request's head and what there is of its body; ``no_body`` says that its answer has none (HEAD).

        ``uploading``: the request's body follows; while it does, the answer is not overdue.
        """
        self.exchange = exchange
        self.answered = False
        self._uploading = uploading
        self._no_body = no_body
        self._answer = None
        self._seen = 0
        self.deadline = self._owner.clock.now + self._owner.read_timeout
        self.transport.write(head)

    def write(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        self.transport.write(data)

    def uploaded(self) -> None:
        """The request has been sent whole: from now on the answer is waited for."""
        self._uploading = False
        if not self._write_blocked:
            self.deadline = self._owner.clock.now + self._owner.read_timeout

    def hold_reading(self) -> None:
        """Stop taking the answer until ``resume_reading``."""
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take more of the answer."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.deadline = self._owner.clock.now + self._owner.read_timeout
            self.transport.resume_reading()

    def rest_idle(self, now: float) -> None:
        """Nothing is asked of it any more."""
        self.exchange = None
        self.used = True
        self.idle_since = now
        if not self._reading:
            self.resume_reading()
        self.deadline = NEVER

    def abort(self) -> None:
        """Give it up at once: the backend must not take what it has for complete."""
        self.exchange = None
        self.transport.abort()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready for the first request."""
        self.transport = transport  # type: ignore[assignment]  # asyncio passes a Transport to stream protocols
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        exchange = self.exchange
        if exchange is None:
            # Nobody asked: whatever this is, it must not become the next request's answer.
            self._owner.lost(self)
            self.transport.abort()
            return
        self.deadline = self._owner.clock.now + self._owner.read_timeout
        try:
            if self._body is not None:
                self._take_body(exchange, self._body, data)
            else:
                self._take_head(exchange, data)
        except GatewayError as error:
            self._fail(error)
        except BodyError as broken:  # a name of its own: mypyc gives one type to each
            self._fail(GatewayError(BACKEND_BROKE, "The backend's answer is malformed.", str(broken)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the request in progress, after a last look at what the backend may have said before it closed."""
        if exc is not None and self.exchange is not None:
            self._last_look()
        self._owner.lost(self)
        exchange, body = self.exchange, self._body
        if exchange is None:
            return
        if isinstance(body, UntilClose) and exc is None:
            self._complete(exchange, body, reusable=False)
            return
        text = "The backend closed the connection before its answer was complete."
        self._fail(GatewayError(BACKEND_BROKE, text))

    def pause_writing(self) -> None:
        """The backend takes the request slower than it comes."""
        self._write_blocked = True
        self._stuck_size = self.transport.get_write_buffer_size()
        self.deadline = self._owner.clock.now + self._owner.send_timeout
        if self.exchange is not None:
            self.exchange.backend_blocked()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._write_blocked = False
        self.deadline = self._owner.clock.now + self._owner.read_timeout
        if self.exchange is not None:
            self.exchange.backend_ready()

    def expired(self, now: float) -> None:
        """Nothing came, or nothing was taken, for too long."""
        if self._write_blocked and (size := self.transport.get_write_buffer_size()) < self._stuck_size:
            self._stuck_size = size
            self.deadline = now + self._owner.send_timeout
        elif not self._write_blocked and (self._uploading or not self._reading):
            # The client is what is slow; its own connection has a deadline for that.
            self.deadline = now + self._owner.read_timeout
        elif self.exchange is None:
            self._owner.lost(self)
            self.transport.abort()
        else:
            self._fail(GatewayError(BACKEND_TIMEOUT, "The backend did not answer in time."))

    # Reading

    def _take_head(self, exchange: AnswerReader, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        self.answered = True
        while True:
            end = data.find(HEAD_END) + 4
            if end < 4 or end > self._owner.max_head:
                if data:
                    check_unfinished_answer(data, self._owner.max_head)
                self._partial = data
                return
            answer = read_answer(data, end, self._owner.max_fields)
            data = data[end:]
            if answer.status >= 200:
                break
            if answer.status == 101:
                exchange.switched(answer, data)
                return
            self._seen += 1
            if self._seen > _MAX_INFORMATIONAL:
                raise GatewayError(BACKEND_BROKE, "The backend does not come to an answer.")
            exchange.informational(answer)
            if self.exchange is not exchange:
                return
        self._take_final(exchange, answer, data)

    def _take_final(self, exchange: AnswerReader, answer: AnswerHead, data: bytes) -> None:
        self._answer = answer
        body: Body
        if self._no_body or answer.status in {204, 304}:
            body = Counted(0)
            exchange.begin_answer(answer, None, b"")
            body.rest = data
        else:
            if answer.chunked:
                body = Chunked()
            elif answer.length is None:
                body = UntilClose()
            else:
                body = Counted(answer.length)
            payload = b""
            if body.done:
                body.rest = data
            elif data:
                payload = body.feed(data)
            exchange.begin_answer(answer, body, payload)
        # Who asked may have let somebody else have the answer.
        reader = self.exchange
        if reader is None:
            return
        if body.done:
            self._complete(reader, body, reusable=answer.keep_alive and not body.rest)
        else:
            self._body = body

    def _take_body(self, exchange: AnswerReader, body: Body, data: bytes) -> None:
        payload = body.feed(data)
        if payload:
            exchange.answer_data(payload)
            if self.exchange is not exchange:
                return
        if body.done:
            answer = self._answer
            self._complete(exchange, body, reusable=answer is not None and answer.keep_alive and not body.rest)

    def _complete(self, exchange: AnswerReader, body: Body, *, reusable: bool) -> None:
        self._body = None
        self.exchange = None
        exchange.end_answer(body.trailers, reusable=reusable and not self.transport.is_closing())

    def _fail(self, error: GatewayError) -> None:
        exchange, self.exchange = self.exchange, None
        self._body = None
        self._owner.lost(self)
        self.transport.abort()
        if exchange is not None:
            exchange.backend_failed(error)

    def _last_look(self) -> None:
        """Read what is left in the socket: a backend that refuses an upload answers, then resets what we still send.

        The event loop gives up at the failed write; the answer lies unread in the kernel (the socket is closed
        only after ``connection_lost``).
        """
        socket = self.transport.get_extra_info("socket")
        looked = 0
        try:
            number = socket.fileno()
            while self.exchange is not None and looked < _LAST_LOOK and (data := os.read(number, HIGH_WATER)):
                looked += len(data)
                self.data_received(data)
        except (OSError, ValueError, AttributeError):
            return
