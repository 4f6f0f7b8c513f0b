"""What tests of WebSocket bridges share: handshakes as bytes, frames as clients send them, and a real server behind."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from gateway.wire.frames import close_frame
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient, request
from tests.doubles.http_stack import Stack, stack

UPGRADE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Key: a2V5",
    "Sec-WebSocket-Version: 13",
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


async def echo_bytes(peer: Peer) -> None:
    """Accept, then echo bytes until the end or the gateway's goodbye, and end, too."""
    await peer.head()
    await peer.send(SWITCH)
    while (data := await peer.reader.read(65536)) and data != close_frame(1001, masked=True):
        await peer.send(data)


async def opened(client: RawClient, target: str = "/ws?clientId=a", *lines: str) -> None:
    """Ask for a bridge and get it."""
    await client.send(request(target, *UPGRADE, *lines))
    assert (await client.head()).status == 101


def masked(opcode: int, payload: bytes) -> bytes:
    """A short frame as clients send it, with a mask that changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


@contextlib.asynccontextmanager
async def chat(handler: Any, **options: Any) -> AsyncIterator[Stack]:
    """A real WebSocket server behind the gateway."""
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        port = server.sockets[0].getsockname()[1]
        async with stack(url=f"http://127.0.0.1:{port}") as made:
            yield made


async def echo_messages(connection: ServerConnection) -> None:
    """Send every message back."""
    async for message in connection:
        await connection.send(message)
