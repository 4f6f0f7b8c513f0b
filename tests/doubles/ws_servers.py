"""Real WebSocket servers of two libraries with the same manners, and a record of what each has heard.

They echo messages, and obey texts: ``/close CODE REASON``, ``/abort``, ``/ping``, ``/fragments``.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

FRAGMENTS = ["one ", "two ", "three"]


@dataclass
class Heard:
    """What a server has heard on its connections, and how each ended."""

    port: int = 0
    said: list[tuple[Any, ...]] = field(default_factory=list)
    ended: int = 0


def told(message: str | bytes) -> tuple[Any, ...]:
    """A message as a record has it: short whatever its size."""
    data = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else bytes(message)
    return type(message).__name__, len(data), hashlib.sha256(data).hexdigest()[:12]


@contextlib.asynccontextmanager
async def by_websockets(*, compress: bool) -> AsyncIterator[Heard]:
    """The server of ``websockets``."""
    heard = Heard()

    async def handler(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                heard.said.append(told(message))
                words = message.split(" ", 2) if isinstance(message, str) else [""]
                if words[0] == "/close":
                    await connection.close(int(words[1]), words[2])
                elif words[0] == "/abort":
                    connection.transport.abort()
                elif words[0] == "/ping":
                    await (await connection.ping(b"are you there"))
                    heard.said.append(("pong",))
                elif words[0] == "/fragments":
                    await connection.send(FRAGMENTS)
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            await connection.wait_closed()
            heard.said.append(("end", connection.close_code, connection.close_reason))
            heard.ended += 1

    options: Any = {} if compress else {"compression": None}
    async with serve(handler, "127.0.0.1", 0, max_size=None, ping_interval=None, **options) as server:
        heard.port = server.sockets[0].getsockname()[1]
        yield heard


@contextlib.asynccontextmanager
async def by_aiohttp(*, compress: bool) -> AsyncIterator[Heard]:
    """The server of ``aiohttp``, which is ComfyUI's."""
    heard = Heard()

    async def obey(socket: web.WebSocketResponse, text: str) -> None:
        words = text.split(" ", 2)
        if words[0] == "/close":
            await socket.close(code=int(words[1]), message=words[2].encode())
        elif words[0] == "/abort":
            assert socket._req is not None
            assert socket._req.transport is not None
            socket._req.transport.abort()
        elif words[0] == "/ping":
            await socket.ping(b"are you there")
        else:
            await socket.send_str(text)

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=compress, max_msg_size=0)
        await socket.prepare(request)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    heard.said.append(told(message.data))
                    await obey(socket, message.data)
                elif message.type is WSMsgType.BINARY:
                    heard.said.append(told(message.data))
                    await socket.send_bytes(message.data)
        except ConnectionError:
            pass
        finally:
            heard.said.append(("end", socket.close_code))
            heard.ended += 1
        return socket

    app = web.Application()
    app.router.add_get("/ws", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        heard.port = runner.addresses[0][1]
        yield heard
    finally:
        await runner.cleanup()


SERVERS = {"websockets": by_websockets, "aiohttp": by_aiohttp}
