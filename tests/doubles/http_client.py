"""A raw HTTP client: sends the bytes it is told to and reads answers without correcting anything."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

SECONDS = 30.0
"""Deadline of every read."""


@dataclass
class Got:
    """One answer as it came."""

    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[bytes] = field(default_factory=list)
    complete: bool = True

    def all(self, name: str) -> list[bytes]:
        """Values of a field, in order."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]

    @property
    def names(self) -> list[str]:
        return [name.decode().lower() for name, _ in self.fields]

    @property
    def error(self) -> dict[str, Any]:
        """``error`` of ComfyUI's shape."""
        told: dict[str, Any] = json.loads(self.body)
        assert told["node_errors"] == {}
        error: dict[str, Any] = told["error"]
        assert set(error) == {"type", "message", "details", "extra_info"}
        return error


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)

    async def get(self, target: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> Got:
        """One request with ``Host``, and its answer."""
        await self.send(request(target, *lines, method=method, body=body))
        return await self.answer(head=method == "HEAD")

    async def head(self) -> Got:
        """Read an answer's head."""
        async with asyncio.timeout(SECONDS):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw[:-4].split(b"\r\n")
        version, status, *reason = lines[0].split(b" ", 2)
        assert version == b"HTTP/1.1"
        fields = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
        return Got(int(status), reason[0] if reason else b"", fields)

    async def answer(self, *, head: bool = False) -> Got:
        """Read one answer; ``complete`` is false when the connection ended before it did."""
        got = await self.head()
        if head or got.status in {204, 304} or got.status < 200:
            return got
        async with asyncio.timeout(SECONDS):
            try:
                await self._body(got)
            except asyncio.IncompleteReadError as error:
                got.body += error.partial
                got.complete = False
            except ConnectionError:
                got.complete = False
        return got

    async def _body(self, got: Got) -> None:
        if got.all("transfer-encoding"):
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                got.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                got.trailers.append(line)
        elif length := got.all("content-length"):
            got.body = await self.reader.readexactly(int(length[0]))
        else:
            got.body = await self.reader.read()

    async def rest(self) -> bytes:
        """Everything until the connection ends, however it ends."""
        data = b""
        async with asyncio.timeout(SECONDS):
            try:
                while piece := await self.reader.read(65536):
                    data += piece
            except ConnectionError:
                return data
        return data

    async def closed(self) -> bool:
        """Whether the other side closes without another byte."""
        return await self.rest() == b""

    def reset(self) -> None:
        """Leave with a reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """Leave."""
        self.writer.close()


def request(target: str = "/", *lines: str, method: str = "GET", body: bytes = b"", host: str = "gate:8181") -> bytes:
    """A request with ``Host`` first, then ``lines``; a length is added for a body."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def raw(port: int, *, receive_buffer: int = 0) -> AsyncIterator[RawClient]:
    """Connect to a loopback port; a small ``receive_buffer`` makes a reader that stalls early."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
