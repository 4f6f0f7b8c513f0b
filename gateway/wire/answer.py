"""Answers that the gateway makes itself: as values, and as bytes.

Pure. Owns their rendering, errors included. Must never know who asked or why.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from html import escape
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
    backend: int = 0
    """Which backend, where no GPU is named."""


Made = Answer | Stream | Fetch
"""What whoever answers a request here may give."""


def json_answer(status: int, body: bytes, headers: tuple[Pair, ...] = ()) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, ((b"Content-Type", b"application/json; charset=utf-8"), *headers), body)


def error_answer(error: GatewayError, *, page: bool = False) -> Answer:
    """What a client is told about an error; never stored by caches. ``page``: a person reads it, in a browser."""
    headers: tuple[Pair, ...] = ((b"Cache-Control", b"no-store"), *error.headers)
    if error.retry_after is not None:
        again = b"%d" % max(1, error.retry_after)
        headers += ((b"Retry-After", again),)
        if page:
            # The page comes back by itself when what it asks for may be there.
            headers += ((b"Refresh", again),)
    if not page:
        return json_answer(error.kind.status, error.body(), headers)
    body = _PAGE.format(
        status=error.kind.status,
        reason=reason_of(error.kind.status).decode(),
        message=escape(error.message),
        details=escape(error.details),
    )
    return Answer(error.kind.status, ((b"Content-Type", b"text/html; charset=utf-8"), *headers), body.encode())


def wants_page(method: bytes, pairs: list[Pair]) -> bool:
    """Whether a request is a browser's that opens a page, and not one of a program or of a page's scripts."""
    said = {name.lower(): value for name, value in pairs}
    if method != b"GET" or b"text/html" not in said.get(b"accept", b""):
        return False
    return said.get(b"sec-fetch-mode", b"navigate") == b"navigate"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{status} {reason}</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 15vh auto; max-width: 36rem; padding: 0 1rem;
color-scheme: light dark }}
</style></head><body><h1>{message}</h1><p>{details}</p><p><small>{status} {reason}</small></p></body></html>
"""


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
