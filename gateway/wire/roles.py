"""The two faces of a request: what its client's connection sees of it, and what its backend's connection does.

Pure. Two small interfaces and nothing else, so that neither connection knows the other. ``Exchange`` has both faces;
tests put doubles in their place.
"""

from typing import Protocol

from gateway.errors import GatewayError
from gateway.wire.body import Body, Pair
from gateway.wire.head import AnswerHead


class ClientExchange(Protocol):
    """The request in progress, as its client connection sees it."""

    def body(self, data: bytes) -> None:
        """Some payload of the request's body."""

    def body_end(self, trailers: list[Pair]) -> None:
        """The body is complete."""

    def client_blocked(self) -> None:
        """The client does not take more; stop writing to it."""

    def client_ready(self) -> None:
        """It takes more again."""

    def client_gone(self) -> None:
        """It has left; nothing can be answered any more."""

    def fail(self, error: GatewayError) -> None:
        """The request cannot go on."""


class AnswerReader(Protocol):
    """The request that a connection is serving."""

    def informational(self, answer: AnswerHead) -> None:
        """A 1xx other than 101."""

    def switched(self, answer: AnswerHead, rest: bytes) -> None:
        """The backend's 101 and what came behind it; the connection is no longer HTTP."""

    def begin_answer(self, answer: AnswerHead, body: Body | None, payload: bytes) -> None:
        """The final head, how its body is framed (``None``: it has none), and the payload that is there already."""

    def answer_data(self, payload: bytes) -> None:
        """More payload."""

    def end_answer(self, trailers: list[Pair], *, reusable: bool) -> None:
        """The answer is complete."""

    def backend_failed(self, error: GatewayError) -> None:
        """There will be no (more) answer on this connection."""

    def backend_blocked(self) -> None:
        """The backend does not take more of the request."""

    def backend_ready(self) -> None:
        """It takes more again."""
