"""A backend's WebSocket asked for once more, with the request that a client once made.

Owns the second handshake, which no client sees, up to the first byte of the stream. Must never look into a frame.
"""

import asyncio
import re
from typing import Final

from gateway.wire.head import HEAD_END
from gateway.wire.pool import parse_backend_url

_AGREED: Final = re.compile(rb"\r\n(sec-websocket-(?:extensions|protocol)):[ \t]*([^\r]*)", re.IGNORECASE)


async def shake(url: str, request: bytes, before: bytes) -> tuple[asyncio.Transport, bytes]:
    """The socket, which is not read yet, and what has come behind its 101.

    ``request`` is the upgrade's whole head, ``before`` the 101 that the client got. Raises ``OSError`` or
    ``ValueError`` when the same cannot be had.
    """
    loop = asyncio.get_running_loop()
    unix, host, port = parse_backend_url(url)
    answered: asyncio.Future[bytes] = loop.create_future()
    transport: asyncio.Transport
    if unix:
        transport, made = await loop.create_unix_connection(lambda: _Handshake(answered), unix)
    else:
        transport, made = await loop.create_connection(lambda: _Handshake(answered), host, port)
    try:
        transport.write(request)
        head = await answered
        _check(head, before)
    except BaseException:
        transport.abort()
        raise
    return transport, made.take()


class _Handshake(asyncio.Protocol):
    """Reads the backend's 101, and keeps what comes behind it until somebody takes it."""

    transport: asyncio.Transport

    def __init__(self, answered: "asyncio.Future[bytes]") -> None:
        self._answered = answered
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        self.transport = transport  # type: ignore[assignment]  # asyncio passes a Transport to stream protocols

    def data_received(self, data: bytes) -> None:
        """Collect; nothing more is read once the head is there."""
        self._data += data
        end = self._data.find(HEAD_END)
        if end >= 0 and not self._answered.done():
            self.transport.pause_reading()
            head = bytes(self._data[: end + len(HEAD_END)])
            del self._data[: len(head)]
            self._answered.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if not self._answered.done():
            self._answered.set_exception(ConnectionError("the backend closed the connection"))

    def take(self) -> bytes:
        """What came behind the head."""
        return bytes(self._data)


def _check(head: bytes, before: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 101") or _agreed(head) != _agreed(before):
        raise ValueError("the backend speaks otherwise than before")


def _agreed(head: bytes) -> list[tuple[bytes, bytes]]:
    """Extensions and subprotocol that a 101 names: what makes one stream of frames continue another."""
    return sorted((name.lower(), value.strip()) for name, value in _AGREED.findall(head))
