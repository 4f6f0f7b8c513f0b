"""A loopback server that sends prepared bytes: for each target its answer, whatever that does to a client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field


@dataclass
class Canned:
    """Where it listens, and what it has been asked for so far."""

    port: int
    answers: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def ok(body: bytes, content_type: str = "application/json") -> bytes:
    """A complete 200."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
SILENT = b""


@contextlib.asynccontextmanager
async def canned(answers: Mapping[str, bytes]) -> AsyncIterator[Canned]:
    """Serve ``answers`` by target, 404 for all others; ``SILENT`` keeps the connection open without a word."""
    told = Canned(0, dict(answers))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            told.asked.append(target)
            answer = told.answers.get(target, NOT_FOUND)
            writer.write(answer)
            if answer is SILENT:
                await reader.read()
            else:
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()
        await server.wait_closed()
