"""Answers that the gateway makes itself: as values, and as bytes.

Pure. Owns their rendering, errors included. Must never know who asked or why.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus

from gateway.errors import GatewayError

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer. ``headers`` carry neither length nor connection; both are added when it is sent."""

    status: int
    headers: tuple[Pair, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that comes in parts, each sent as soon as it is there; the generator is closed when the client leaves.

    No part may be empty.
    """

    status: int
    headers: tuple[Pair, ...]
    parts: AsyncGenerator[bytes]


@dataclass(frozen=True, slots=True)
class Fetch:
    """The answer that the backend gives to a GET of ``target``; ``headers`` are added to it."""

    target: bytes
    headers: tuple[Pair, ...] = ()
    gpu: int | None = None


Made = Answer | Stream | Fetch
"""What whoever answers a request here may give."""


def json_answer(status: int, body: bytes, headers: tuple[Pair, ...] = ()) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, ((b"Content-Type", b"application/json; charset=utf-8"), *headers), body)


def error_answer(error: GatewayError) -> Answer:
    """What a client is told about an error; never stored by caches."""
    headers: tuple[Pair, ...] = ((b"Cache-Control", b"no-store"), *error.headers)
    if error.retry_after is not None:
        headers += ((b"Retry-After", b"%d" % max(1, error.retry_after)),)
    return json_answer(error.kind.status, error.body(), headers)


def render(answer: Answer, *, connection: bytes, request_id: bytes, with_body: bool) -> bytes:
    """The bytes of an answer; ``connection`` is ``close``, ``keep-alive`` or empty, ``with_body`` false for HEAD."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, reason_of(answer.status))]
    lines += [b"%b: %b\r\n" % pair for pair in answer.headers]
    if answer.status >= 200 and answer.status not in {204, 304}:
        lines.append(b"Content-Length: %d\r\n" % len(answer.body))
    if connection:
        lines.append(b"Connection: %b\r\n" % connection)
    if request_id:
        lines.append(b"X-Request-ID: %b\r\n" % request_id)
    lines.append(b"\r\n")
    if with_body:
        lines.append(answer.body)
    return b"".join(lines)


def render_head(stream: Stream, *, chunked: bool, keep: bool, request_id: bytes) -> bytes:
    """The head of an answer in parts: chunked, or for HTTP/1.0 up to the connection's end."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (stream.status, reason_of(stream.status))]
    lines += [b"%b: %b\r\n" % pair for pair in stream.headers]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if not keep:
        lines.append(b"Connection: close\r\n")
    lines.append(b"X-Request-ID: %b\r\n\r\n" % request_id)
    return b"".join(lines)


def reason_of(status: int) -> bytes:
    """The usual phrase of a status."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
