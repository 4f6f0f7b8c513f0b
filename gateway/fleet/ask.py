"""One whole exchange with the backend for the gateway's own use: queues, metrics, what it is, and jobs it promised.

Owns a request that is bounded in time and size and leaves no connection behind. Clients' requests, but for those that
the journal takes over, never come this way; it must never know what the answers mean.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httptools

LIMIT: Final = 64 * 1024 * 1024
"""Bytes of an answer's body; a long queue of large prompts is tens of megabytes."""


class AskError(Exception):
    """No usable answer: ``str()`` says why in one sentence.

    ``refused`` when nobody listens there; ``answered`` when somebody does, and it is the answer that is of no use.
    """

    def __init__(self, message: str, *, refused: bool = False, answered: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.answered = answered


@dataclass(frozen=True)
class Reply:
    """An answer's status, content type (empty if none), whole body, and fields as they came."""

    status: int
    content_type: str
    body: bytes
    pairs: tuple[tuple[bytes, bytes], ...] = ()


Ask = Callable[[str], Awaitable[Reply]]
"""GET this target from the backend; raises ``AskError``."""


def asker(url: str, timeout: float = 5.0) -> Ask:
    """An ``Ask`` bound to a backend's url; ``timeout`` in seconds for each whole exchange."""

    async def ask(target: str) -> Reply:
        return await get(url, target, timeout=timeout)

    return ask


async def get(url: str, target: str, *, timeout: float, limit: int = LIMIT) -> Reply:
    """GET ``target`` from ``http://HOST:PORT`` or ``unix:/PATH``.

    Raises ``AskError`` when there is no complete answer in ``timeout`` seconds.
    """
    lines = b"Accept: */*\r\n"
    return await exchange(url, b"GET", target.encode("ascii"), lines, b"", timeout=timeout, limit=limit)


async def exchange(
    url: str,
    method: bytes,
    target: bytes,
    lines: bytes,
    body: bytes,
    *,
    timeout: float,
    limit: int = LIMIT,
    headless: bool = False,
) -> Reply:
    """Send a request with these field lines and this body; ``Host``, if not among them, and framing are added.

    ``headless``: nothing is read behind the answer's head.

    Raises ``AskError`` when there is no complete answer in ``timeout`` seconds.
    """
    where = url.removeprefix("http://")
    head = b"%b %b HTTP/1.1\r\n%b" % (method, target, lines)
    if b"\r\nhost:" not in head.lower():
        head += b"Host: %b\r\n" % (b"localhost" if url.startswith("unix:") else urlsplit(url).netloc.encode())
    if body or method != b"GET":
        head += b"Content-Length: %d\r\n" % len(body)
    head += b"Connection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout):
            return await _exchange(url, head, body, _Answer(limit, headless=headless))
    except TimeoutError:
        raise AskError(f"{where} did not answer within {timeout:g} s.") from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise AskError(f"Nothing listens on {where}.", refused=True) from None
    except (OSError, httptools.HttpParserError) as error:
        raise AskError(f"No answer from {where}: {error}.") from None


async def _exchange(url: str, head: bytes, body: bytes, answer: "_Answer") -> Reply:
    if url.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix:"))
    else:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(head + body)
        while not answer.complete:
            data = await reader.read(64 * 1024)
            if not data:
                answer.ended()
                break
            answer.feed(data)
        return answer.reply()
    finally:
        writer.transport.abort()  # nothing more is wanted, whatever state the exchange is in


class _Answer:
    """Collects one answer through httptools' callbacks."""

    def __init__(self, limit: int, *, headless: bool) -> None:
        self._headless = headless
        self.complete = False
        self._limit = limit
        self._type = ""
        self._framed = False
        self._headed = False
        self._pairs: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._size > self._limit:
            raise AskError(f"The answer is larger than {self._limit} bytes.", answered=True)

    def ended(self) -> None:
        """End of file: the end of a body that has no other, and of nothing else."""
        if self._framed or not self._headed:
            raise AskError("The connection closed before the answer was complete.")

    def reply(self) -> Reply:
        return Reply(self._parser.get_status_code(), self._type, b"".join(self._body), tuple(self._pairs))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._pairs.append((name, value))
        lowered = name.lower()
        if lowered == b"content-type":
            self._type = value.decode("latin-1")
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._headed = True
        self.complete = self.complete or self._headless

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._size += len(data)

    def on_message_complete(self) -> None:
        self.complete = True
