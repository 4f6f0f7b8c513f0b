"""One GET for the gateway's own use over the pool: its answer collected whole, or given away as soon as it begins.

Owns the retry on a kept-alive connection and that nothing is kept of an answer nobody wants. Must never know what is
asked. Other than ``fleet.ask`` it uses kept-alive connections, for it stands in the way of clients' requests.
"""

from typing import Protocol

from gateway.errors import BACKEND_BROKE, GatewayError
from gateway.wire.backend import BackendConnection
from gateway.wire.body import Body, Pair
from gateway.wire.head import AnswerHead
from gateway.wire.pool import Pool, Ticket
from gateway.wire.roles import AnswerReader


class Taker(Protocol):
    """Who wants the answer. ``wants`` is called once or not at all, then ``collected`` or ``failed`` once."""

    def hinted(self, answer: AnswerHead) -> None:
        """A 1xx."""

    def wants(self, answer: AnswerHead) -> bool:
        """The head has come; false: ``given`` takes the connection."""

    def given(self, connection: BackendConnection) -> AnswerReader | None:
        """Who reads this answer instead; ``None``: nobody."""

    def collected(self, answer: AnswerHead, body: bytes) -> None:
        """Here it is, whole."""

    def failed(self, error: GatewayError) -> None:
        """There is none."""


class Collect:
    """One such request, sent when it is made."""

    def __init__(self, pool: Pool, head: bytes, taker: Taker) -> None:
        self._pool = pool
        self._head = head
        self._taker = taker
        self._answer: AnswerHead | None = None
        self._parts: list[bytes] = []
        self._connection: BackendConnection | None = None
        self._retried = False
        self._over = False
        self._ticket: Ticket | None = None
        self._ticket = pool.acquire(self, fresh=False)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._over = True
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection, reusable=False)

    # From the pool

    def connected(self, connection: BackendConnection) -> None:
        """Send it."""
        self._ticket = None
        self._connection = connection
        connection.start(self, self._head, no_body=False, uploading=False)

    def unconnected(self, error: GatewayError) -> None:
        """There is no connection."""
        self._ticket = None
        self._over = True
        self._taker.failed(error)

    # From the connection

    def informational(self, answer: AnswerHead) -> None:
        """Say so."""
        self._taker.hinted(answer)

    def switched(self, answer: AnswerHead, rest: bytes) -> None:
        """It was not asked to."""
        self.cancel()
        self._taker.failed(GatewayError(BACKEND_BROKE, "The backend switched protocols without being asked."))

    def begin_answer(self, answer: AnswerHead, body: Body | None, payload: bytes) -> None:
        """Keep what comes, or let somebody else have it."""
        if self._taker.wants(answer):
            self._answer = answer
            if payload:
                self._parts.append(payload)
            return
        connection, self._connection = self._connection, None
        self._over = True
        if connection is None:
            return
        reader = self._taker.given(connection)
        if reader is None:
            self._pool.release(connection, reusable=False)
            return
        connection.exchange = reader
        reader.begin_answer(answer, body, payload)

    def answer_data(self, payload: bytes) -> None:
        """Keep it."""
        self._parts.append(payload)

    def end_answer(self, trailers: list[Pair], *, reusable: bool) -> None:
        """It is complete."""
        connection, self._connection = self._connection, None
        self._over = True
        if connection is not None:
            self._pool.release(connection, reusable=reusable)
        answer = self._answer
        if answer is not None:
            self._taker.collected(answer, b"".join(self._parts))

    def backend_failed(self, error: GatewayError) -> None:
        """The connection broke: try once more if it was an old one that had not answered (RFC 9110 §9.2.2)."""
        connection, self._connection = self._connection, None
        if connection is None or self._over:
            return
        again = connection.used and not connection.answered and not self._retried and error.kind is BACKEND_BROKE
        self._pool.release(connection, reusable=False)
        if again:
            self._retried = True
            self._ticket = self._pool.acquire(self, fresh=True)
            return
        self._over = True
        self._taker.failed(error)

    def backend_blocked(self) -> None:
        """A GET's head is small."""

    def backend_ready(self) -> None:
        """Nothing waits."""
