"""The gateway's own small GETs: whole answers or one clear error, never a hang."""

import asyncio
import socket
from pathlib import Path

import pytest

from gateway.fleet.ask import AskError, asker, get
from tests.doubles.canned import SILENT, canned, ok

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3\r\n{"a\r\n5\r\n": 1}\r\n0\r\n\r\n'
)


@pytest.mark.parametrize(
    "answer",
    [
        ok(b'{"a": 1}'),
        CHUNKED,
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a": 1}',
    ],
    ids=["length", "chunked", "until the end"],
)
async def test_an_answer_is_read_whole_however_it_is_framed(answer: bytes):
    """By length, in chunks, or up to the end of the connection."""
    async with canned({"/x?y=1": answer}) as server:
        reply = await asker(server.url)("/x?y=1")
    assert (reply.status, reply.content_type, reply.body) == (200, "application/json", b'{"a": 1}')


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 20",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
    ids=["short body", "no last chunk", "half a head", "not HTTP"],
)
async def test_half_an_answer_is_an_error(answer: bytes):
    """What broke off or was never HTTP is not taken for an answer."""
    async with canned({"/": answer}) as server:
        with pytest.raises(AskError) as caught:
            await asker(server.url)("/")
    assert not caught.value.refused


async def test_silence_is_an_error_after_the_time():
    """A backend that hangs costs the time-out and no more."""
    async with canned({"/": SILENT}) as server:
        with pytest.raises(AskError, match="did not answer within"):
            await asker(server.url, timeout=0.05)("/")


async def test_nobody_there_is_told_apart():
    """A refused connection says that no backend runs, which a time-out does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AskError, match="Nothing listens") as caught:
        await get(f"http://127.0.0.1:{port}", "/", timeout=5)
    assert caught.value.refused


async def test_an_endless_answer_is_cut():
    """Memory is bounded by the limit."""
    async with canned({"/": ok(b"x" * 100_000)}) as server:
        with pytest.raises(AskError, match="larger than 1000 bytes"):
            await get(server.url, "/", timeout=5, limit=1000)


async def test_a_unix_socket_is_asked_as_well(tmp_path: Path):
    """A backend may listen on a path; one that is not there is nobody."""
    path = tmp_path / "backend.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(b"{}"))
        writer.close()

    with pytest.raises(AskError) as caught:
        await asker(f"unix:{path}")("/")
    assert caught.value.refused
    server = await asyncio.start_unix_server(serve, path)
    async with server:
        assert (await asker(f"unix:{path}")("/")).body == b"{}"
