"""Request bodies: streamed, framed as sent, bounded, never completed when they are not."""

import asyncio

import pytest

from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import blocked, rss, splits, stack, stop_the_clock
from tests.doubles.wait import until

CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "DELETE"])
async def test_framing_stays_what_it_was(method):
    """A length stays that length, chunks stay chunks, none stays none, 0 stays 0."""
    async with stack() as made, made.client() as client:
        assert (await client.get("/", method=method, body=b"hello")).body == b"hello"
        assert (await client.get("/", method=method)).body == b"ok"
        assert (await client.get("/", "Content-Length: 0", method=method)).body == b"ok"
        await client.send(request("/", CHUNKED, method=method) + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n")
        assert (await client.answer()).body == b"hello"
        framing = [(seen.all("content-length"), seen.all("transfer-encoding")) for seen in made.backend.seen]
        assert framing == [([b"5"], []), ([], []), ([b"0"], []), ([], [b"chunked"])]


async def test_a_body_does_not_depend_on_how_its_bytes_come():
    """Whole, byte by byte, or cut anywhere, with the next request behind it: the same two requests."""
    data = request("/a", CHUNKED, method="POST") + b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n" + request("/b")
    async with stack() as made:
        for pieces in splits(data):
            async with made.client() as client:
                await client.send(*pieces)
                assert (await client.answer()).body == b"hello world"
                assert (await client.answer()).body == b"ok"
                assert [seen.target for seen in made.backend.seen[-2:]] == [b"/a", b"/b"]


async def test_an_upload_is_streamed():
    """The backend has the first part before the client has sent the last."""
    first = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        assert await peer.reader.readexactly(5) == b"hello"
        first.set()
        assert await peer.reader.readexactly(6) == b" world"
        await peer.reply()

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", "Content-Length: 11", method="POST") + b"hello")
        async with asyncio.timeout(30):
            await first.wait()
        await client.send(b" world")
        assert (await client.answer()).status == 200


async def test_a_declared_body_that_is_too_large_is_413_at_the_head():
    """The backend hears nothing, and nothing of the body is waited for."""
    async with stack(limits={"body": 1000}) as made, made.client() as client:
        await client.send(request("/", "Content-Length: 1001", method="POST"))
        assert (await client.answer()).status == 413
        assert made.backend.opened == 0
    async with stack(limits={"body": 1000}) as made, made.client() as client:
        assert (await client.get("/", method="POST", body=b"x" * 1000)).status == 200


async def test_a_chunked_body_is_cut_at_the_limit():
    """The client gets 413; the backend sees a body that never ends, and the connection's end."""
    rest: list[bytes] = []
    cut = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        rest.append(await peer.gone())
        cut.set()

    async with stack(script, limits={"body": 1000}) as made, made.client() as client:
        await client.send(request("/", CHUNKED, method="POST") + b"300\r\n" + b"x" * 0x300 + b"\r\n")
        await until(lambda: made.backend.seen)
        await client.send(b"300\r\n" + b"x" * 0x300 + b"\r\n")
        got = await client.answer()
        assert (got.status, got.all("connection")) == (413, [b"close"])
        async with asyncio.timeout(30):
            await cut.wait()
        assert not rest[0].endswith(b"0\r\n\r\n")


BAD_CHUNKS = {
    "bare lf": b"5\nhello\r\n0\r\n\r\n",
    "hex prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "seventeen digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "too long": b"5\r\nhello world\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "space": b"5 \r\nhello\r\n0\r\n\r\n",
    "newline in a quoted extension": b'5;a="\r\nhello"\r\nhello\r\n0\r\n\r\n',
    "endless extension": b"5;" + b"a" * 2000,
    "bad trailer": b"0\r\nX : 1\r\n\r\n",
    "control in a trailer": b"0\r\nX: \x00\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
async def test_broken_chunks_are_400_and_never_completed(case):
    """What is wrong in the middle does not become a whole request; what follows is no request."""
    ends: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        ends.append(await peer.gone())

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", CHUNKED, method="POST") + BAD_CHUNKS[case] + request("/smuggled"))
        got = await client.answer()
        assert (got.status, got.all("connection")) == (400, [b"close"])
        assert await client.closed()
        await until(lambda: made.idle)
        assert all(seen.target != b"/smuggled" for seen in made.backend.seen)
    assert not any(end.endswith(b"0\r\n\r\n") for end in ends)


async def test_a_slow_upload_lives_and_a_stalled_one_ends():
    """The time is between reads, not in all."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply()

    async with stack(script, timeouts={"client_body": 60.0, "read": 60.0}) as made:
        clock = stop_the_clock(made)
        async with made.client() as client:
            await client.send(request("/", "Content-Length: 8", method="POST"))
            for number in range(8):
                await until(lambda: [each.received for each in made.proxy.running] == [number])  # noqa: B023 (awaited)
                clock.advance(50.0)
                await client.send(b"x")
            assert (await client.answer()).status == 200
        async with made.client() as client:
            await client.send(request("/", "Content-Length: 8", method="POST") + b"x")
            await until(lambda: [each.received for each in made.proxy.running] == [1])
            clock.advance(61.0)
            got = await client.answer()
            assert (got.status, got.error["type"]) == (408, "request_timeout")


@pytest.mark.parametrize("lines", [["Content-Length: 100"], [CHUNKED]])
async def test_a_client_that_dies_in_its_upload_aborts_the_backends_request(lines):
    """The backend never sees a completed body."""
    ends: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        ends.append(await peer.gone())

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", *lines, method="POST") + b"5\r\nhello\r\n")
        await until(lambda: made.backend.seen)
        client.reset()
        await until(lambda: ends)
        assert not ends[0].endswith(b"0\r\n\r\n")
        await until(lambda: made.idle)


async def test_a_backend_that_does_not_read_does_not_fill_memory():
    """An upload stops flowing when the backend stops taking it."""
    release = asyncio.Event()
    size = 90_000_000

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await release.wait()
        peer.writer.transport.resume_reading()
        await peer.head()
        got = 0
        while got < size:
            got += len(await peer.reader.read(1 << 20))
        await peer.reply(b"%d" % got)

    async with stack(script) as made, made.client() as client:
        before = rss()
        piece = bytes(1 << 16)
        sent = 0
        client.writer.write(request("/", f"Content-Length: {size}", method="POST"))

        async def upload() -> None:
            nonlocal sent
            while sent < size:
                client.writer.write(piece[: size - sent])
                sent += min(len(piece), size - sent)
                await client.writer.drain()
                await asyncio.sleep(0)

        task = asyncio.get_running_loop().create_task(upload())
        await until(lambda: made.proxy.clients)
        (connection,) = made.proxy.clients
        await until(lambda: sent == size or (connection._read_holds and blocked(client.writer.transport)))
        assert sent < 30_000_000
        assert rss() - before < 20_000_000
        release.set()
        assert (await client.answer()).body == b"%d" % size
        await task


async def test_expect_continue_is_the_backends_to_answer():
    """Its 100 comes through, once; then the body goes and the final answer comes."""

    async def script(peer: Peer) -> None:
        seen = await peer.head()
        assert seen.all("expect") == [b"100-continue"]
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        body = await peer.reader.readexactly(5)
        await peer.reply(body)

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        assert (await client.head()).status == 100
        await client.send(b"hello")
        got = await client.answer()
        assert (got.status, got.body) == (200, b"hello")


async def test_expect_continue_refused_by_the_backend():
    """Its refusal comes without a 100, and the connection ends: nobody knows whether the body is coming."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.reply(b"no", status="417 No")

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        got = await client.answer()
        assert (got.status, got.body, got.all("connection")) == (417, b"no", [b"close"])
        assert await client.closed()


async def test_expect_continue_refused_here():
    """413 and 429 come without a 100."""
    async with stack(limits={"body": 10}) as made, made.client() as client:
        await client.send(request("/", "Expect: 100-continue", "Content-Length: 50", method="POST"))
        assert (await client.answer()).status == 413
        assert await client.closed()
        assert made.backend.opened == 0


async def test_a_client_that_does_not_wait_for_100():
    """A body that comes at once goes at once; a backend that knows no 100 just answers."""
    async with stack() as made, made.client() as client:
        got = await client.get("/", "Expect: 100-continue", method="POST", body=b"hello")
        assert got.body == b"hello"
        assert (await client.get("/")).status == 200


@pytest.mark.parametrize("status", ["413 Too Large", "417 Expectation Failed", "401 Unauthorized", "200 OK"])
@pytest.mark.parametrize("framing", ["Content-Length: 50000000", CHUNKED])
@pytest.mark.parametrize("end", ["close", "reset when read", "stay"])
async def test_an_early_final_answer_reaches_the_client(status, framing, end):
    """The backend answers in the middle of an upload, then closes or goes on: the client gets that answer."""
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.reader.readexactly(1000)
        await peer.reply(b"no more", status=status)
        if end == "close":
            peer.close()
        elif end == "stay":
            await over.wait()
        else:
            # What has come and was not read makes this close a reset.
            peer.writer.transport.abort()

    async with stack(script) as made, made.client() as client:
        await client.send(request("/", framing, method="POST"))

        async def upload() -> None:
            piece = bytes(100_000)
            try:
                for _ in range(500):
                    await client.send(b"186a0\r\n%b\r\n" % piece if framing == CHUNKED else piece)
            except OSError:
                return

        task = asyncio.get_running_loop().create_task(upload())
        got = await client.answer()
        assert (got.status, got.body, got.complete) == (int(status[:3]), b"no more", True)
        assert got.all("connection") == [b"close"]
        over.set()
        task.cancel()
        await asyncio.wait([task])


async def test_a_small_refused_body_is_swallowed_and_the_connection_kept():
    """A refusal of what is small anyway does not cost the client its connection."""

    async with stack(up=False) as made, made.client() as client:
        got = await client.get("/prompt", method="POST", body=b"x" * 5000)
        assert (got.status, got.all("connection")) == (503, [])
        got = await client.get("/prompt", method="POST", body=b"x" * 5000)
        assert got.status == 503
        assert made.backend.opened == 0


async def test_a_compressed_body_stays_compressed():
    """Content-Encoding of a request and its bytes pass untouched, even when they are no gzip."""
    async with stack() as made, made.client() as client:
        got = await client.get("/", "Content-Encoding: gzip", method="POST", body=b"\x1f\x8bno gzip")
        assert got.body == b"\x1f\x8bno gzip"
        assert made.backend.seen[0].all("content-encoding") == [b"gzip"]
