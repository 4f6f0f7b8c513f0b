"""A backend with every fault that backends have: ``python -m bench.soak_backend PORT``.

The path says what happens: ``/ok``, ``/big``, ``/echo`` (the body), ``/reset`` (before an answer), ``/half`` and
``/half-chunks`` (an answer that breaks off), ``/stall`` (no answer), ``/drip`` (a slow one), ``/early`` (an answer
before the body), ``/ws`` (echoes) and ``/ws-reset`` (breaks off after the first bytes).
"""

import asyncio
import socket
import struct
import sys

from bench.bridge_ends import SWITCH
from bench.files import allow_files

BIG = bytes(2 * 1024 * 1024)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection off."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """A request's body; uploads of the load have a length."""
    _, found, rest = head.lower().partition(b"\r\ncontent-length: ")
    return await reader.readexactly(int(rest.split(b"\r\n", 1)[0])) if found else b""


async def talk(path: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bridge's other end."""
    writer.write(SWITCH)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
        if path.startswith(b"/ws-reset"):
            reset(writer)
            return


async def one(path: bytes, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request, in its manner; whether the connection goes on."""
    if path == b"/early":
        writer.write(answer(b"no", b"413 Too Large"))
        await writer.drain()
        return False
    body = await body_of(head, reader)
    if path == b"/reset":
        reset(writer)
        return False
    if path == b"/half":
        writer.write(answer(BIG)[:100_000])
    elif path == b"/half-chunks":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhe")
    elif path == b"/stall":
        await reader.read()
    elif path == b"/drip":
        data = answer(b"0123456789")
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(0.01)
        return True
    else:
        writer.write(answer(BIG if path == b"/big" else body if path == b"/echo" else b"ok"))
        await writer.drain()
        return True
    await writer.drain()
    return False


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, until a fault or the other side ends it."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].partition(b"?")[0]
            if path.startswith(b"/ws"):
                await talk(path, reader, writer)
                return
            if not await one(path, head, reader, writer):
                return
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve(port: int) -> None:
    """Run until the process is ended."""
    server = await asyncio.start_server(serve_one, "127.0.0.1", port, limit=1 << 20, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    allow_files()
    asyncio.run(serve(int(sys.argv[1])))
