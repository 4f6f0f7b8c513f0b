"""Both ends of idle WebSocket bridges, each as a process that does nothing else.

``python -m bench.bridge_ends serve PORT`` accepts every handshake and then says nothing;
``python -m bench.bridge_ends hold PORT COUNT`` opens so many, prints ``held COUNT``, and keeps them until its standard
input ends.
"""

import asyncio
import sys

from bench.files import allow_files

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
AT_ONCE = 50


class Silent(asyncio.Protocol):
    """Accepts, and is quiet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(b"\r\n\r\n"):
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(SWITCH)


async def serve(port: int) -> None:
    """Run until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


class Client(asyncio.Protocol):
    """Asks as a browser does, and listens."""

    def __init__(self, number: int, port: int, opened: asyncio.Future[None]) -> None:
        self._number = number
        self._port = port
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(
            f"GET /ws?clientId={self._number:032x} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            "Connection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0\r\n"
            f"Upgrade: websocket\r\nOrigin: http://127.0.0.1:{self._port}\r\nSec-WebSocket-Version: 13\r\n"
            "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self._opened.done():
            if data.startswith(b"HTTP/1.1 101 "):
                self._opened.set_result(None)
            else:
                self._opened.set_exception(RuntimeError(f"not a bridge: {data[:80]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError("the connection was closed"))


async def hold(port: int, count: int) -> None:
    """Open ``count``, say so, and keep them."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> asyncio.Transport:
        async with room:
            opened = loop.create_future()
            transport, _ = await loop.create_connection(lambda: Client(number, port, opened), "127.0.0.1", port)
            await opened
            return transport

    async with asyncio.TaskGroup() as tasks:
        kept = [tasks.create_task(one(number)) for number in range(count)]
    print("held", len(kept), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    allow_files()
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2])))
    else:
        asyncio.run(hold(int(sys.argv[2]), int(sys.argv[3])))
