"""The loads: busy connections, requests at a fixed rate, many thinking clients, uploads, sockets that listen, a page.

Each runs against one port and gives what it saw; none knows what stands there. ``wrk`` makes the first where it
exists, else a loop of our own. At a fixed rate latencies count from when a request was due, not from when a busy
connection came to send it.
"""

import asyncio
import itertools
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_PIECE: Final = 256 * 1024

# What a browser sends with a fetch.
HEADERS: Final = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "Accept-Language": "en-US,en;q=0.9",
}


@dataclass(frozen=True)
class Ask:
    """One kind of request."""

    target: str
    method: str = "GET"
    body: bytes = b""
    varied: bool = False
    """Whether each request's head differs from the one before on its connection."""
    close: bool = False
    """Whether each request has a connection of its own."""

    def head(self, port: int, number: object = "") -> bytes:
        """The head of one request."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()]
        if self.body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(self.body)}"]
        if self.varied:
            lines.append(f"X-N: {number}")
        if self.close:
            lines.append("Connection: close")
        return "\r\n".join(lines).encode() + b"\r\n\r\n"


@dataclass
class Seen:
    """What a load saw."""

    count: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Seconds each."""
    failed: int = 0
    """Answers other than 200, and connections that broke; all others are in ``count``."""
    bytes: int = 0
    """Of heads and bodies, as they came."""

    def late(self, share: float) -> float:
        """The latency that this share of all stayed below, in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else float("nan")


def go(work: Coroutine[Any, Any, Seen]) -> Seen:
    """Run a load on the fastest loop there is."""
    try:
        from uvloop import run  # noqa: PLC0415 (not there on every platform)
    except ImportError:
        return asyncio.run(work)
    return run(work)


def busy(port: int, ask: Ask, connections: int, seconds: float) -> Seen:
    """Keep so many connections busy: a request follows at once on each answer."""
    if shutil.which("wrk"):
        return _wrk(port, ask, connections, seconds)
    return go(_busy(port, ask, connections, seconds))


def _wrk(port: int, ask: Ask, connections: int, seconds: float) -> Seen:
    script = f'wrk.method = "{ask.method}"\n'
    with tempfile.TemporaryDirectory() as folder:
        if ask.body:
            body = os.path.join(folder, "body")  # noqa: PTH118 (a name for a script)
            with open(body, "wb") as file:  # noqa: PTH123
                file.write(ask.body)
            script += f'wrk.body = io.open("{body}", "rb"):read("*a")\n'
            script += 'wrk.headers["Content-Type"] = "application/json"\n'
        if ask.varied:
            script += 'local n = 0\nrequest = function() n = n + 1; wrk.headers["X-N"] = n; return wrk.format() end\n'
        lua = os.path.join(folder, "row.lua")  # noqa: PTH118
        with open(lua, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(script)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", lua]
        for name, value in (HEADERS | ({"Connection": "close"} if ask.close else {})).items():
            command += ["-H", f"{name}: {value}"]
        url = f"http://127.0.0.1:{port}{ask.target}"
        out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", out)
    if found is None:
        raise RuntimeError(f"wrk says something new:\n{out}")
    # With a connection for each request wrk counts the ends of connections as errors of reading.
    wrong = sum(int(number) for number in re.findall(r"(?:Non-2xx or 3xx responses:|connect|timeout) (\d+)", out))
    count = int(found[1]) - wrong
    return Seen(count, float(found[2]) * {"ms": 1e-3, "s": 1.0, "m": 60.0}[found[3]], failed=wrong)


async def _busy(port: int, ask: Ask, connections: int, seconds: float) -> Seen:
    seen, end = Seen(), time.perf_counter() + seconds
    began = time.perf_counter()

    async def one(number: int) -> None:
        link = Link(port)
        while time.perf_counter() < end:
            await link.ask(ask, f"{number}-{seen.count}", seen)
        await link.close()

    await asyncio.gather(*(one(number) for number in range(connections)))
    seen.seconds = time.perf_counter() - began
    return seen


class FailedError(Exception):
    """An answer was no 200."""


class Link:
    """One connection, opened again where each request has its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, ask: Ask, number: object, seen: Seen) -> None:
        """Send one request and read its answer; anything but a 200 is counted as failed."""
        try:
            await self._ask(ask, number, seen)
        except (OSError, asyncio.IncompleteReadError, FailedError):
            seen.failed += 1
            await self.close()

    async def _ask(self, ask: Ask, number: object, seen: Seen) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(ask.head(self._port, number) + ask.body)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise FailedError
        seen.bytes += len(head) + await self._body(reader, head)
        seen.count += 1
        if ask.close:
            await self.close()

    async def _body(self, reader: asyncio.StreamReader, head: bytes) -> int:
        if _CHUNKED.search(head):
            size = 0
            while length := int(await reader.readuntil(b"\r\n"), 16):
                size += len(await reader.readexactly(length + 2))
            await reader.readexactly(2)
            return size
        found = _LENGTH.search(head)
        left = size = int(found[1]) if found else 0
        while left:
            left -= len(await reader.readexactly(min(left, _PIECE)))
        return size

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()


def offered(port: int, ask: Ask, rate: float, seconds: float, connections: int = 32) -> Seen:
    """So many requests a second, evenly, whatever the answers take."""

    async def load() -> Seen:
        seen = Seen()
        began = time.monotonic() + 0.05
        numbers = iter(range(int(rate * seconds)))

        async def one() -> None:
            link = Link(port)
            for number in numbers:
                due = began + number / rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                await link.ask(ask, number, seen)
                seen.latencies.append(time.monotonic() - due)
            await link.close()

        await asyncio.gather(*(one() for _ in range(connections)))
        seen.seconds = time.monotonic() - began
        return seen

    return go(load())


def thinking(port: int, ask: Ask, clients: int, think: float, seconds: float) -> Seen:
    """So many connections at once, each with a pause between its requests."""

    async def load() -> Seen:
        seen = Seen()
        began = time.monotonic()

        async def one(number: int) -> None:
            link = Link(port)
            # Evenly spread beginnings.
            await asyncio.sleep(think * number / clients)
            while time.monotonic() < began + seconds:
                sent = time.monotonic()
                await link.ask(ask, number, seen)
                seen.latencies.append(time.monotonic() - sent)
                await asyncio.sleep(think)
            await link.close()

        await asyncio.gather(*(one(number) for number in range(clients)))
        seen.seconds = time.monotonic() - began
        return seen

    return go(load())


def upload(port: int, size: int, count: int) -> Seen:
    """Send so many bodies one after another."""

    async def load() -> Seen:
        seen, piece = Seen(), bytes(_PIECE)
        head = f"POST /sink HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n\r\n".encode()
        began = time.perf_counter()
        for _ in range(count):
            sent = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            for at in range(0, size, _PIECE):
                writer.write(piece[: min(_PIECE, size - at)])
                await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"upload: {answer[:80]!r}")
            seen.latencies.append(time.perf_counter() - sent)
            seen.count += 1
            writer.close()
        seen.seconds = time.perf_counter() - began
        return seen

    return go(load())


def listening(port: int, size: int, rate: float, sockets: int, seconds: float) -> Seen:
    """So many WebSockets that take what comes; each message says when it was sent."""

    async def load() -> Seen:
        seen = Seen()
        began = time.monotonic()

        async def one(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
            writer.write(
                f"GET /ws?size={size}&rate={rate}&clientId=bench{number} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(f"events: {answer[:80]!r}")
            while time.monotonic() < began + seconds:
                length = (await reader.readexactly(2))[1]
                if length >= 126:
                    length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
                sent = struct.unpack(">d", await reader.readexactly(8))[0]
                left = length - 8
                while left:
                    left -= len(await reader.read(left))
                seen.latencies.append(time.monotonic() - sent)
                seen.count += 1
            writer.transport.abort()

        await asyncio.gather(*(one(number) for number in range(sockets)))
        seen.seconds = time.monotonic() - began
        return seen

    return go(load())


def page(port: int, targets: Sequence[str], connections: int = 6) -> Seen:
    """Fetch a page as a browser with an empty cache does: in this order, over as many connections as browsers open."""

    async def load() -> Seen:
        seen = Seen()
        began = time.perf_counter()
        waiting = itertools.chain(targets)

        async def one() -> None:
            link = Link(port)
            for target in waiting:
                await link.ask(Ask(target), "", seen)
            await link.close()

        await asyncio.gather(*(one() for _ in range(connections)))
        seen.seconds = time.perf_counter() - began
        return seen

    return go(load())
