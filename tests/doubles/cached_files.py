"""A gateway with its cache before a backend of web files and listings whose state a test holds in its hand."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from tests.doubles.http_backend import Peer, Seen
from tests.doubles.http_client import Got
from tests.doubles.http_stack import Stack, stack
from tests.doubles.wait import until

SCRIPT = b"export const a = 1;\n" * 400
LIST = b'{"KSampler": {"input": {}}}' * 60


@dataclass
class Files:
    """A backend with a few files, as ComfyUI serves them, and a listing whose making can be held up."""

    body: bytes = SCRIPT
    etag: bytes = b'"1-2"'
    listing: bytes = LIST
    lines: bytes = b"Content-Type: text/javascript; charset=utf-8\r\n"
    status: str = "200 OK"
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    age: float = 10_000.0
    """Seconds since the file was last changed."""
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, peer: Peer) -> None:
        while True:
            seen = await peer.request()
            self.seen.append(seen)
            listing = seen.target.removeprefix(b"/api").startswith((b"/object_info", b"/models"))
            if listing:
                body, etag = self.listing, b""
                await self.gate.wait()
                lines = b"Content-Type: application/json; charset=utf-8\r\n"
            else:
                body, etag = self.body, self.etag
                lines = self.lines + b"ETag: %b\r\n" % etag + self._dates()
            if etag and seen.all("if-none-match") == [etag]:
                await peer.send(b"HTTP/1.1 304 Not Modified\r\nETag: %b\r\n\r\n" % etag)
            elif seen.method == b"HEAD":
                await peer.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (lines, len(body)))
            elif seen.all("range") and not listing:
                part = b"Content-Range: bytes 0-1/%d\r\n" % len(body)
                await peer.reply(body[:2], "206 Partial Content", lines + part)
            else:
                await peer.reply(body, self.status, lines)

    def _dates(self) -> bytes:
        now = time.time()
        changed = formatdate(now - self.age, usegmt=True)
        return f"Date: {formatdate(now, usegmt=True)}\r\nLast-Modified: {changed}\r\n".encode()


@dataclass
class Cached(Files):
    """The same, with the gateway before it."""

    made: Stack = None  # type: ignore[assignment]  # set by ``cached``

    async def get(self, target: str = "/a.mjs", *lines: str, gpu: int | None = 0, method: str = "GET") -> Got:
        """One request on a connection of its own."""
        async with self.made.client(gpu) as client:
            return await client.get(target, *lines, method=method)

    @property
    def outcomes(self) -> dict[str, int]:
        assert self.made.proxy.cache is not None
        return {name: count for name, count in self.made.proxy.cache.outcomes.items() if count}

    def waiting(self) -> int:
        """Requests that wait for a shared answer."""
        return sum(getattr(each, "_line", None) is not None for each in self.made.proxy.running)


@contextlib.asynccontextmanager
async def cached(*, open_gate: bool = True, **cache: Any) -> AsyncIterator[Cached]:
    files = Cached()
    if open_gate:
        files.gate.set()
    async with stack(files, cache={"enabled": True, **cache}) as made:
        files.made = made
        yield files
        files.gate.set()
    assert made.proxy.cache is not None
    assert made.proxy.cache.waiting == 0
    assert made.proxy.cache._reserved == 0


async def together(files: Cached, count: int, target: str, *lines: str) -> list[Got]:
    """As many requests at once, each on its own connection, let go when all of them wait."""
    tasks = [asyncio.create_task(files.get(target, *lines)) for _ in range(count)]
    await until(lambda: files.waiting() == count)
    files.gate.set()
    return await asyncio.gather(*tasks)


# Files
