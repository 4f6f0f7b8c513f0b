"""A WebSocket on which the gateway itself listens to a backend, and says nothing but what keeps it open.

Owns the handshake, the putting together of messages, and their bound. Must never know what the messages mean.
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncGenerator
from typing import Final

from gateway.wire.frames import frame_sizes
from gateway.wire.head import HEAD_END
from gateway.wire.pool import parse_backend_url

TEXT: Final = 1
BINARY: Final = 2
_CLOSE: Final = 8
_PING: Final = 9
_FIN: Final = 0x80
_LONGEST: Final = 32 << 20
"""Bytes of one message."""
_HEAD: Final = 64 * 1024
_PATIENCE: Final = 10.0
"""Seconds for the handshake."""
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class HearingError(Exception):
    """There is nothing to hear; ``refused``: whoever is there has no such WebSocket."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


async def hear(url: str, target: str, silence: float) -> AsyncGenerator[tuple[int, bytes]]:
    """Messages (``TEXT`` or ``BINARY``, payload) until the other side closes; raises ``HearingError`` before the first.

    A backend that says nothing at all for ``silence`` seconds, not even Ping, is taken for gone.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await _connect(url)
    except (OSError, TimeoutError) as error:
        raise HearingError(f"nobody listens at {url}: {error or 'no answer in time'}") from error
    try:
        await _shake(reader, writer, target)
        parts = bytearray()
        kind = 0
        while True:
            async with asyncio.timeout(silence):
                first, payload = await _frame(reader)
            opcode = first & 0x0F
            if opcode == _CLOSE:
                return
            if opcode == _PING:
                # A client's frames are masked; the mask may be zero.
                writer.write(bytes((0x8A, 0x80 | len(payload))) + bytes(4) + payload)
            elif opcode in {0, TEXT, BINARY}:
                kind = opcode or kind
                parts += payload
                if len(parts) > _LONGEST:
                    return
                if first & _FIN:
                    yield kind, bytes(parts)
                    parts.clear()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return
    finally:
        writer.transport.abort()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    unix, host, port = parse_backend_url(url)
    if unix:
        return await asyncio.open_unix_connection(unix, limit=_HEAD)
    return await asyncio.open_connection(host, port, limit=_HEAD)


async def _shake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    key = base64.b64encode(secrets.token_bytes(16))
    lines = b"Host: backend\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(b"GET %b HTTP/1.1\r\n%bSec-WebSocket-Key: %b\r\n\r\n" % (target.encode(), lines, key))
    try:
        async with asyncio.timeout(_PATIENCE):
            head = await reader.readuntil(HEAD_END)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise HearingError(f"no answer to the handshake: {error or 'not in time'}") from error
    accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest())
    if not head.startswith(b"HTTP/1.1 101") or accept not in head:
        status = head.partition(b"\r\n")[0][:100].decode("latin-1")
        raise HearingError(f"{target} is no WebSocket: {status}", refused=True)


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """First byte and payload of the next frame."""
    head = await reader.readexactly(2)
    while (sizes := frame_sizes(head)) is None:
        head += await reader.readexactly({126: 4, 127: 10}[head[1] & 0x7F] - len(head))
    if sizes[1] > _LONGEST:
        raise ConnectionError("a frame is too large")
    if sizes[0] != len(head):
        raise ConnectionError("a server's frame is masked")
    return head[0], await reader.readexactly(sizes[1])
