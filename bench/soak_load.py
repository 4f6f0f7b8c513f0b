"""Clients with every manner that clients have; each says at once when the gateway answered otherwise than it must."""

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

SECONDS = 60.0
"""No step of any client may last longer."""

HANDSHAKE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5\r\n"


class WrongError(Exception):
    """The gateway did something that it must not."""


class LateError(Exception):
    """A time-out struck where none was meant: this machine was slow, or the gateway."""


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str, lines: str = "", method: str = "GET", body: bytes = b"") -> None:
        """Send a request."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: gate\r\n{lines}{length}\r\n".encode() + body)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Read one whole answer: status and body; raises ``IncompleteReadError`` when it breaks off."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
            return status, body
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        return status, await self.reader.readexactly(int(length[1]) if length else 0)

    async def must(self, status: int, body: bytes | None = None) -> None:
        """The next answer is this one."""
        try:
            got, told = await self.answer()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise LateError from error
        if got != status and got in {408, 504}:
            raise LateError
        if got != status or (body is not None and told != body):
            raise WrongError(f"{got} {told[:100]!r} instead of {status}")

    async def breaks(self) -> None:
        """The next answer does not become whole."""
        try:
            got, told = await self.answer()
        except (OSError, asyncio.IncompleteReadError):
            return
        raise WrongError(f"{got} with {len(told)} bytes instead of a broken answer")

    def reset(self) -> None:
        """Leave with a reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


async def plain(client: Client, chance: random.Random) -> None:
    for _ in range(10):
        await client.ask("/ok")
        await client.must(200, b"ok")


async def large(client: Client, chance: random.Random) -> None:
    await client.ask("/big")
    await client.must(200)


async def upload(client: Client, chance: random.Random) -> None:
    body = chance.randbytes(chance.randrange(1, 300_000))
    await client.ask("/echo", method="POST", body=body)
    await client.must(200, body)


async def pipelined(client: Client, chance: random.Random) -> None:
    for _ in range(20):
        await client.ask("/ok")
    for _ in range(20):
        await client.must(200, b"ok")


async def backend_resets(client: Client, chance: random.Random) -> None:
    await client.ask("/reset", method="POST", body=b"x")
    await client.must(502)


async def backend_breaks_off(client: Client, chance: random.Random) -> None:
    await client.ask(chance.choice(["/half", "/half-chunks"]))
    await client.breaks()


async def backend_stalls(client: Client, chance: random.Random) -> None:
    await client.ask("/stall")
    await client.must(504)


async def backend_drips(client: Client, chance: random.Random) -> None:
    await client.ask("/drip")
    await client.must(200, b"0123456789")


async def backend_is_early(client: Client, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        await client.ask("/early", method="POST", body=bytes(3_000_000))
    await client.must(413, b"no")


async def leaves_waiting(client: Client, chance: random.Random) -> None:
    await client.ask("/stall")
    await asyncio.sleep(chance.random() / 10)
    client.reset()


async def leaves_reading(client: Client, chance: random.Random) -> None:
    await client.ask("/big")
    await client.reader.read(1000)
    client.reset()


async def leaves_uploading(client: Client, chance: random.Random) -> None:
    await client.ask("/echo", "Content-Length: 1000000\r\n", "POST")
    client.writer.write(bytes(chance.randrange(100_000)))
    client.reset()


async def is_slow(client: Client, chance: random.Random) -> None:
    client.writer.write(b"GET /ok HTTP/1.1\r\n")
    await client.must(408)


async def talks_nonsense(client: Client, chance: random.Random) -> None:
    client.writer.write(chance.randbytes(50) + b"\r\n\r\n")
    await client.must(400)


async def bridge(client: Client, chance: random.Random) -> None:
    await client.ask(f"/ws?clientId={chance.randrange(20)}", HANDSHAKE)
    head = await client.reader.readuntil(b"\r\n\r\n")
    if not head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 503 ")):  # 503: the same id has come again
        raise WrongError(f"{head[:40]!r} instead of a bridge")
    frame = b"\x82\x84\0\0\0\0abcd"
    client.writer.write(frame * chance.randrange(1, 200))
    if b" 101 " in head[:14] and chance.random() < 0.5:
        # Who has been displaced by another with its id hears nothing more.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.reader.read(1000)
    if chance.random() < 0.5:
        client.reset()


async def bridge_breaks(client: Client, chance: random.Random) -> None:
    await client.ask("/ws-reset", HANDSHAKE)
    await client.reader.readuntil(b"\r\n\r\n")
    client.writer.write(b"\x81\x80\0\0\0\0")
    with contextlib.suppress(OSError):
        while await client.reader.read(65536):
            pass


Manner = Callable[[Client, random.Random], Awaitable[None]]

MANNERS: list[Manner] = [
    *(plain, plain, plain, large, upload, upload, pipelined, bridge, bridge, bridge_breaks, backend_resets),
    *(backend_breaks_off, backend_stalls, backend_drips, backend_is_early, leaves_waiting, leaves_reading),
    *(leaves_uploading, is_slow, talks_nonsense),
]


class Load:
    """Workers that take one manner after another until told to stop."""

    def __init__(self, port: int, workers: int, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.late = 0
        self._port = port
        self._workers = workers
        self._seed = seed

    async def run(self, seconds: float) -> None:
        """Load for so long, and until the last has finished what it does."""
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                chance = random.Random(f"{self._seed}-{number}-{self.done.total()}")
                tasks.create_task(self._work(chance, MANNERS[number % len(MANNERS)], end))

    async def _work(self, chance: random.Random, manner: Manner, end: float) -> None:
        """Begin with one manner, so that with enough workers each is met."""
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            name = manner.__name__
            try:
                async with asyncio.timeout(SECONDS):
                    await self._one(manner, chance)
            except LateError:
                self.late += 1
            except (WrongError, OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                self.wrong[f"{name}: {error or type(error).__name__}"] += 1
            self.done[name] += 1
            manner = chance.choice(MANNERS)

    async def _one(self, manner: Manner, chance: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            await manner(Client(reader, writer), chance)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
