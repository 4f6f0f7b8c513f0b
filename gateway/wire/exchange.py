"""One request from its head to the last byte of its answer: joins a client connection and a backend connection.

Owns the relay of both bodies, its back-pressure, and what happens when one side breaks. The other direction of every
failure is decided here, once. Must never know GPUs, limits or metrics: those who do extend it (``proxy.py``).
"""

from typing import Final, Protocol

from gateway.errors import BACKEND_BROKE, BODY_TOO_LARGE, GatewayError
from gateway.wire.answer import Answer, error_answer, render, wants_page
from gateway.wire.backend import BackendConnection
from gateway.wire.body import Body, Pair, UntilClose, chunk, last_chunk
from gateway.wire.client import HIGH_WATER, ClientConnection
from gateway.wire.fields import answer_lines, clean_trailers
from gateway.wire.head import AnswerHead, RequestHead
from gateway.wire.pool import Pool, Ticket

CLIENT_LEFT: Final = 499
"""Status in logs and metrics of a request whose client did not wait (nginx's number)."""

_NO_TRAILERS: Final[list[Pair]] = []

_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})


class Owner(Protocol):
    """Where an exchange finds what it needs."""

    max_body: int
    pools: list[Pool]
    """One for each backend."""
    pool_of: list[Pool]
    """By GPU."""
    gpu_lines: list[bytes]
    """By GPU, what says to its backend which one is meant."""


class Exchange:
    """One request. ``forward`` or ``answer`` is called once; ``finished`` is called once, whatever happens."""

    # What most requests never change stands here, for setting it each time costs more than sending a small head.
    backend: BackendConnection | None = None
    request_id = b""
    status = 0
    """Status of the final answer; 0 before there is one."""
    received = 0
    """Payload bytes of the request's body."""
    sent = 0
    """Payload bytes of the answer's body."""
    answered = False
    """Whether the final answer's head has gone to the client: from then on errors can only break it off."""
    ended = False
    """Whether it is over."""
    _head_bytes = b""
    _early: list[bytes] | None = None
    _early_size = 0
    _upload_ended: list[Pair] | None = None
    _pool: Pool
    """Connections to the backend that it is forwarded to."""
    _ticket: Ticket | None = None
    _retried = False
    _continued = False
    _keep = False
    _chunked_out = False
    _delimited = False
    _fetching = False
    """Whether the backend is asked for something else than the client sent: its body is not for the backend."""

    def __init__(self, owner: Owner, client: ClientConnection, head: RequestHead) -> None:
        self._owner = owner
        self.client: ClientConnection | None = client
        self.head = head

    # For those who extend it

    def answer_begins(self, answer: AnswerHead) -> None:
        """The backend has answered."""

    def rewrite(self, lines: bytes) -> bytes:
        """The answer's lines as the client should see them."""
        return lines

    def retrying(self) -> None:
        """The request is sent a second time."""

    def upgraded(self, head: bytes, backend: BackendConnection, rest: bytes) -> None:
        """The backend has switched protocols; ``head`` is its 101 for the client, ``rest`` what came behind it."""
        raise NotImplementedError

    def outlives_client(self) -> bool:
        """Whether the backend's answer must be waited for when the client has left."""
        return False

    def finished(self) -> None:
        """The request is over; give back what it holds."""

    # What the owner does with it

    def invite_body(self) -> None:
        """Tell a client that waits for it to send its body, when it is not the backend that says so."""
        if self.client is not None and self.head.fields.expect and not self._continued and not self.received:
            self._continued = True
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def forward(self, head_bytes: bytes, pool: Pool) -> None:
        """Send the request, with this head, to the backend that ``pool`` leads to."""
        self._head_bytes = head_bytes
        self._pool = pool
        head = self.head
        has_body = head.has_body
        if not has_body:
            self._upload_ended = _NO_TRAILERS
        # A reused connection may be closed under our hands; only what may be sent twice takes that risk.
        fresh = has_body or head.fields.upgrade or head.method not in _IDEMPOTENT
        self._ticket = pool.acquire(self, fresh=fresh)

    def answer(self, answer: Answer) -> None:
        """Answer the request here."""
        client = self.client
        self._drop_backend()
        self.status = answer.status
        if client is None:
            self._end()
            return
        keep = client.may_keep(continued=self._continued)
        self.answered = True
        with_body = self.head.method != b"HEAD"
        self.sent = len(answer.body) if with_body else 0
        connection = b"close" if not keep else b"" if self.head.minor else b"keep-alive"
        data = render(answer, connection=connection, request_id=self.request_id, with_body=with_body)
        self._end()
        client.reply(data, keep=keep)

    def fail(self, error: GatewayError) -> None:
        """The request cannot go on: say so, or break the answer off if it has begun."""
        if self.ended:
            return
        if not self.answered:
            self.answer(error_answer(error, page=wants_page(self.head.method, self.head.fields.pairs)))
            return
        client = self.client
        self._drop_backend()
        self._end()
        if client is not None:
            client.break_off(reset=self._delimited)

    # From the pool

    def connected(self, connection: BackendConnection) -> None:
        """Send what there is of the request."""
        self._ticket = None
        self.backend = connection
        uploading = self._upload_ended is None
        early, self._early = self._early, None
        if early and self.client is not None:
            self.client.resume_reading()
        # In one piece: a second write costs as much as the first.
        sent = b"".join([self._head_bytes, *early]) if early else self._head_bytes
        connection.start(self, sent, no_body=self.head.method == b"HEAD", uploading=uploading)
        if not uploading and self.head.has_body and not self._fetching:
            self._end_upload(connection)

    def unconnected(self, error: GatewayError) -> None:
        """There is no connection."""
        self._ticket = None
        self.fail(error)

    # From the client

    def body(self, data: bytes) -> None:
        """Pass a part of the request's body on."""
        self.received += len(data)
        if self.received > self._owner.max_body:
            self.fail(too_large(self._owner.max_body))
            return
        if self.head.fields.chunked:
            data = chunk(data)
        if self.backend is not None:
            self.backend.write(data)
            return
        if self._early is None:
            self._early = []
            self._early_size = 0
        self._early.append(data)
        self._early_size += len(data)
        if self._early_size >= HIGH_WATER and self.client is not None:
            self.client.hold_reading()

    def body_end(self, trailers: list[Pair]) -> None:
        """The request's body is complete."""
        self._upload_ended = trailers
        if self.backend is not None:
            self._end_upload(self.backend)

    def client_blocked(self) -> None:
        """Take no more of the answer than the client does."""
        if self.backend is not None:
            self.backend.hold_reading()

    def client_ready(self) -> None:
        """Go on."""
        if self.backend is not None:
            self.backend.resume_reading()

    def client_gone(self) -> None:
        """Nobody wants the answer: stop the backend's work on it, too."""
        if self.ended or self.client is None:
            return
        self.client = None
        if self.status == 0 or not self.answered:
            self.status = CLIENT_LEFT
        if self.backend is not None and self._upload_ended is not None and self.outlives_client():
            self.backend.resume_reading()
            return
        self._drop_backend()
        self._end()

    # From the backend

    def backend_blocked(self) -> None:
        """Take no more of the request than the backend does."""
        if self.client is not None and self._upload_ended is None:
            self.client.hold_reading()

    def backend_ready(self) -> None:
        """Go on."""
        if self.client is not None and self._upload_ended is None:
            self.client.resume_reading()

    def informational(self, answer: AnswerHead) -> None:
        """Pass a 1xx on, to those who know them; 100 only to who asked, and once."""
        client = self.client
        if client is None or not self.head.minor:
            return
        if answer.status == 100:
            if self._continued or not self.head.fields.expect:
                return
            self._continued = True
        lines = answer_lines(answer, drop_length=True)
        client.write(b"HTTP/1.1 %d %b%b\r\n" % (answer.status, answer.reason, lines))

    def begin_answer(self, answer: AnswerHead, body: Body | None, payload: bytes) -> None:
        """Pass the final head on."""
        self.answer_begins(answer)
        client = self.client
        if client is None:
            return
        self.status = answer.status
        delimited = self._delimited = isinstance(body, UntilClose) or (
            body is not None and answer.chunked and not self.head.minor
        )
        self._chunked_out = body is not None and answer.chunked and not delimited
        # What the client has not sent yet, nobody will read: a connection with half a request on it is of no use.
        uploaded = self._upload_ended is not None
        self._keep = keep = uploaded and not delimited and client.may_keep(continued=self._continued)
        self.answered = True
        self.sent = len(payload)
        lines = self.rewrite(answer_lines(answer, drop_length=answer.status == 204))
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked_out else b""
        if not keep:
            framing += b"Connection: close\r\n"
        elif not self.head.minor:
            framing += b"Connection: keep-alive\r\n"
        if payload and self._chunked_out:
            payload = chunk(payload)
        client.write(
            b"HTTP/1.1 %d %b%b%bX-Request-ID: %b\r\n\r\n%b"
            % (answer.status, answer.reason, lines, framing, self.request_id, payload)
        )

    def answer_data(self, payload: bytes) -> None:
        """Pass a part of the answer's body on."""
        client = self.client
        if client is None:
            return
        self.sent += len(payload)
        client.write(chunk(payload) if self._chunked_out else payload)

    def end_answer(self, trailers: list[Pair], *, reusable: bool) -> None:
        """The answer is complete: both connections are free."""
        connection, self.backend = self.backend, None
        if connection is not None:
            self._pool.release(connection, reusable=reusable and self._upload_ended is not None)
        client = self.client
        if client is not None and self._chunked_out:
            client.write(last_chunk(clean_trailers(trailers) if trailers and self.head.fields.trailers else []))
        self._end()
        if client is not None:
            client.done(keep=self._keep)

    def switched(self, answer: AnswerHead, rest: bytes) -> None:
        """The backend speaks another protocol from here on, if it was asked to."""
        connection = self.backend
        if not self.head.fields.upgrade or connection is None:
            self.fail(GatewayError(BACKEND_BROKE, "The backend switched protocols without being asked."))
            return
        lines = answer_lines(answer, drop_length=True) + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        head = b"HTTP/1.1 101 %b%bX-Request-ID: %b\r\n\r\n" % (answer.reason, lines, self.request_id)
        self.status = 101
        self.answered = True
        self.backend = None
        connection.exchange = None
        self._pool.detach(connection)
        self.upgraded(head, connection, rest)
        self._end()

    def backend_failed(self, error: GatewayError) -> None:
        """The connection broke. Try once more if that can do no harm; else the client learns of it."""
        connection, self.backend = self.backend, None
        if connection is None or self.ended:
            return
        # RFC 9110 §9.2.2: a kept-alive connection that was closed before it answered anything.
        again = connection.used and not connection.answered and not self._retried and error.kind is BACKEND_BROKE
        self._pool.release(connection, reusable=False)
        if again and self.client is not None and not self.head.has_body and self.head.method in _IDEMPOTENT:
            self._retried = True
            self.retrying()
            self._ticket = self._pool.acquire(self, fresh=True)
            return
        self.fail(error)

    # Inside

    def _end_upload(self, connection: BackendConnection) -> None:
        if self.head.fields.chunked and self._upload_ended is not None:
            connection.write(last_chunk(clean_trailers(self._upload_ended)))
        connection.uploaded()

    def _drop_backend(self) -> None:
        """Let go of the backend: never complete what is not complete."""
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        if self.backend is not None:
            connection, self.backend = self.backend, None
            self._pool.release(connection, reusable=False)
        self._early = None

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        client, self.client = self.client, None
        if client is not None:
            client.exchange = None
        self.finished()


def too_large(limit: int) -> GatewayError:
    """413: the body is larger than ``limit`` bytes."""
    text = f"The request's body is larger than {limit} bytes."
    hint = "The limit is [limits] body in config.toml; ComfyUI has its own, --max-upload-size."
    return GatewayError(BODY_TOO_LARGE, text, hint, limit=limit)
