"""Answers: passed on as they come, whole or visibly broken, whatever framing the backend chose."""

import asyncio

import pytest

from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient, request
from tests.doubles.http_stack import blocked, rss, splits, stack
from tests.doubles.wait import until


def saying(*pieces: bytes, end: str = "stay") -> object:
    """A script that answers each request with these bytes, and then stays, closes or resets."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for piece in pieces:
                await peer.send(piece)
            if end == "close":
                peer.close()
                return
            if end == "reset":
                peer.reset()
                return

    return script


async def test_an_answer_does_not_depend_on_how_its_bytes_come():
    """Whole, byte by byte, or cut anywhere: the same answer."""
    told = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n5\r\nhello\r\n6;x\r\n world\r\n0\r\n\r\n"
    for pieces in splits(told):
        async with stack(saying(*pieces)) as made, made.client() as client:
            got = await client.get("/")
            assert (got.body, got.complete, got.names) == (
                b"hello world",
                True,
                ["x-a", "transfer-encoding", "x-request-id"],
            )
            assert (await client.get("/")).body == b"hello world"
            assert made.backend.opened == 1


async def test_pieces_are_passed_on_as_they_come():
    """Server-sent events and slow downloads arrive when they are sent, not when they are many."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
        await go.wait()
        await peer.send(b"4\r\ntwo\n\r\n0\r\n\r\n")

    async with stack(script) as made, made.client() as client:
        await client.send(request("/"))
        await client.head()
        async with asyncio.timeout(30):
            assert await client.reader.readexactly(9) == b"4\r\none\n\r\n"
        go.set()
        async with asyncio.timeout(30):
            assert await client.reader.readexactly(14) == b"4\r\ntwo\n\r\n0\r\n\r\n"


async def test_encoded_bodies_pass_untouched():
    """Content-Encoding, ETag and the bytes are the backend's, valid gzip or not."""
    told = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: "x"\r\nContent-Length: 9\r\n\r\n\x1f\x8bno gzip'
    async with stack(saying(told)) as made, made.client() as client:
        got = await client.get("/", "Accept-Encoding: gzip")
        assert got.body == b"\x1f\x8bno gzip"
        assert got.names == ["content-encoding", "etag", "content-length", "x-request-id"]


@pytest.mark.parametrize(
    ("told", "method", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Encoding: gzip\r\n\r\n", "HEAD", [b"1000"]),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 1000\r\n\r\n", "GET", [b"1000"]),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", []),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "GET", []),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", []),
    ],
)
async def test_answers_without_a_body(told, method, length):
    """HEAD, 204 and 304 end with their head, and both connections live on."""
    async with stack(saying(told)) as made, made.client() as client:
        for _ in range(3):
            await client.send(request("/", method=method))
            got = await client.answer(head=True)
            assert got.all("content-length") == length
            assert not got.all("transfer-encoding")
        assert made.backend.opened == 1


async def test_ranges_pass():
    """206 with its Content-Range is the backend's affair."""
    told = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-2/9\r\nContent-Length: 2\r\n\r\nbc"
    async with stack(saying(told)) as made, made.client() as client:
        got = await client.get("/", "Range: bytes=1-2", 'If-Range: "x"')
        assert (got.status, got.body, got.all("content-range")) == (206, b"bc", [b"bytes 1-2/9"])
        assert made.backend.seen[0].all("range") == [b"bytes=1-2"]


async def test_early_hints_come_through():
    """1xx are passed on, a 100 that nobody asked for is not."""
    told = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    async with stack(saying(told)) as made, made.client() as client:
        await client.send(request("/"))
        hints = await client.head()
        assert (hints.status, hints.fields) == (103, [(b"Link", b"</a>")])
        assert (await client.answer()).body == b"ok"
        await client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert (await client.answer()).status == 200


async def test_trailers_go_to_those_who_want_them():
    """With ``TE: trailers`` they pass, otherwise they are dropped; they never become fields."""
    told = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a\r\n\r\n"
    async with stack(saying(told)) as made, made.client() as client:
        got = await client.get("/", "TE: trailers", "Connection: TE")
        assert (got.body, got.trailers) == (b"ok", [b"X-Sum: 7\r\n"])
        got = await client.get("/")
        assert (got.body, got.trailers) == (b"ok", [])
        assert "x-sum" not in got.names


async def test_a_body_that_ends_with_its_connection():
    """It is delivered, and ends the client's connection, too."""
    async with stack(saying(b"HTTP/1.1 200 OK\r\n\r\nhello", b" world", end="close")) as made, made.client() as client:
        got = await client.get("/")
        assert (got.body, got.all("connection"), got.all("content-length")) == (b"hello world", [b"close"], [])
        assert got.complete


async def test_old_clients_get_no_chunks():
    """For HTTP/1.0 the body ends with the connection; keep-alive is granted only where a length is known."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    async with stack(saying(chunked)) as made, made.client() as client:
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        got = await client.answer()
        assert (got.body, got.all("connection"), got.all("transfer-encoding")) == (b"hello", [b"close"], [])
        assert made.backend.seen[0].line == b"GET / HTTP/1.1"
        assert made.backend.seen[0].all("host") == [f"127.0.0.1:{made.port(0)}".encode()]
    async with stack() as made, made.client() as client:
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).all("connection") == [b"keep-alive"]
        await client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert (await client.answer()).all("connection") == [b"close"]
        assert await client.closed()


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    ("told", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", b"hello"),
    ],
)
async def test_a_broken_answer_stays_broken(told, body, end):
    """The client gets no byte that the backend did not send, no last chunk, and the connection's end."""
    async with stack(saying(told, end=end)) as made, made.client() as client:
        got = await client.get("/")
        assert not got.complete
        assert body.startswith(got.body)
        if end == "close":
            assert got.body == body
        await until(lambda: made.idle)
        assert made.proxy.pools[0].idle == 0


async def test_broken_chunks_of_the_backend():
    """Before anything was passed on they are a 502, afterwards the answer is broken off."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    async with stack(saying(head + b"5\r\nhelloXX9\r\n")) as made, made.client() as client:
        assert (await client.get("/")).status == 502
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await go.wait()
        await peer.send(b"5\r\nhelloXX9\r\n")
        await peer.gone()

    async with stack(script) as made, made.client() as client:
        await client.send(request("/"))
        await client.head()
        await client.reader.readexactly(10)
        go.set()
        assert await client.closed()


async def test_a_reset_of_an_unframed_answer_is_a_reset():
    """Where only the connection's end marks the body's end, a broken one must not look like a clean one."""
    async with stack(saying(b"HTTP/1.1 200 OK\r\n\r\nhello", end="reset")) as made, made.client() as client:
        await client.send(request("/"))
        async with asyncio.timeout(30):
            with pytest.raises(ConnectionResetError):
                await client.reader.read(-1)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 80 + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200,
    ],
)
async def test_an_ambiguous_answer_is_502(told):
    """No guess is made; the connection is not used again."""
    async with stack(saying(told, end="close")) as made, made.client() as client:
        await client.send(request("/prompt", "Content-Length: 0", method="POST"))
        while (got := await client.answer()).status == 103:
            pass
        assert (got.status, got.error["type"]) == (502, "backend_broke")
        assert len(made.backend.seen) == 1
        assert made.proxy.pools[0].idle == 0


@pytest.mark.parametrize(("count", "size"), [(1, 20_000), (1, 60_000), (100, 500)])
async def test_large_answer_heads_pass(count, size):
    """Long cookies and policies: as much as a request may have."""
    told = b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: %b\r\n" % (b"a" * size) * count + b"Content-Length: 2\r\n\r\nok"
    async with stack(saying(told)) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port(0), limit=1 << 20)
        got = await RawClient(reader, writer).get("/")
        assert (got.status, got.body, got.all("set-cookie")) == (200, b"ok", [b"a" * size] * count)
        writer.close()
        await writer.wait_closed()


async def test_bytes_behind_an_answer_poison_nothing():
    """A connection with more on it than was asked for is not used again."""
    told = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with stack(saying(told)) as made, made.client() as client:
        for turn in range(3):
            assert (await client.get("/")).body == b"ok"
            assert made.backend.opened == turn + 1


async def test_bytes_on_an_idle_connection_poison_nothing():
    """An answer that nobody asked for ends the connection that it comes on."""
    async with stack() as made, made.client() as client:
        await client.get("/")
        assert made.proxy.pools[0].idle == 1
        await made.backend.peers[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await until(lambda: made.proxy.pools[0].idle == 0)
        assert (await client.get("/")).body == b"ok"


async def test_a_client_that_does_not_read_does_not_fill_memory():
    """A large answer stops flowing when the client stops taking it, and is complete when it goes on."""
    size = 200_000_000
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(1 << 16)
        while sent < size:
            await peer.send(piece[: size - sent])
            sent += min(len(piece), size - sent)
            await asyncio.sleep(0)

    async with stack(script) as made, made.client(receive_buffer=65536) as client:
        before = rss()
        client.writer.transport.pause_reading()
        await client.send(request("/"))
        await until(lambda: made.backend.seen)
        (connection,) = made.proxy.pools[0]._open
        sender = made.backend.peers[0].writer.transport
        await until(lambda: sent == size or (not connection._reading and blocked(sender)))
        assert sent < 30_000_000
        assert rss() - before < 20_000_000
        client.writer.transport.resume_reading()
        head = await client.head()
        assert head.status == 200
        got = 0
        while got < size:
            got += len(await client.reader.read(1 << 20))


async def test_a_client_that_never_reads_is_cut_off():
    """No progress for the whole of ``client_write`` ends the connection and the backend's work."""
    size = 100_000_000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await peer.send(bytes(1 << 16))

    async with stack(script, timeouts={"client_write": 0.3}) as made, made.client(receive_buffer=65536) as client:
        client.writer.transport.pause_reading()
        await client.send(request("/"))
        await until(lambda: made.backend.seen)
        await until(lambda: made.idle and not made.proxy.clients)
        await until(lambda: made.backend.left == [1])
