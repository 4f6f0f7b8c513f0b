"""A scripted backend on a raw socket: each connection is played by a coroutine that reads and sends bytes."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as it came in: raw head lines, nothing normalised."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    connection: int = 0

    def all(self, name: str) -> list[bytes]:
        """Values of a field, in order, whatever its case."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]


class Peer:
    """One accepted connection."""

    def __init__(self, backend: "Backend", number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.backend = backend
        self.number = number
        self.reader = reader
        self.writer = writer

    async def head(self) -> Seen:
        """Read one request head."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw[:-4].split(b"\r\n")
        fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
        seen = Seen(lines[0], fields, connection=self.number)
        self.backend.seen.append(seen)
        return seen

    async def request(self) -> Seen:
        """Read one request, its body included."""
        seen = await self.head()
        if seen.all("transfer-encoding"):
            seen.body = await self.chunks()
        elif length := seen.all("content-length"):
            seen.body = await self.reader.readexactly(int(length[0]))
        return seen

    async def chunks(self) -> bytes:
        """Read a chunked body; its trailers go to ``backend.trailers``."""
        body = b""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            if not size:
                break
            body += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            self.backend.trailers.append(line)
        return body

    async def send(self, data: bytes) -> None:
        """Send bytes and wait until the transport has room."""
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, body: bytes = b"ok", status: str = "200 OK", extra: bytes = b"") -> None:
        """Send a whole answer with a length."""
        await self.send(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), extra, len(body), body))

    async def gone(self) -> bytes:
        """Wait until the other side has closed; what it still sent."""
        try:
            return await self.reader.read()
        except OSError:
            return b""

    def close(self) -> None:
        """Close in order."""
        self.writer.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Backend:
    """What the scripted backend has seen."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)
    opened: int = 0
    peers: list[Peer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    """Numbers of connections that the gateway closed while the script was still talking."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


async def echo(peer: Peer) -> None:
    """Answer every request with its body, or ``ok``."""
    while True:
        seen = await peer.request()
        await peer.reply(seen.body or b"ok")


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Backend]:
    """Play ``script`` on every connection; what it raises beyond a closed connection is raised at the end."""
    backend = Backend()
    tasks: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend.opened += 1
        peer = Peer(backend, backend.opened, reader, writer)
        backend.peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(peer)
        except (OSError, asyncio.IncompleteReadError):
            backend.left.append(peer.number)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shall fail with it
            backend.errors.append(error)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0, limit=1 << 20)
    backend.port = server.sockets[0].getsockname()[1]
    try:
        yield backend
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0.001)
        for peer in backend.peers:
            with contextlib.suppress(OSError, ConnectionError):
                await peer.writer.wait_closed()
        await server.wait_closed()
    if backend.errors:
        raise backend.errors[0]
