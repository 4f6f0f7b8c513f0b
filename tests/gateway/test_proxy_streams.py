"""Answers in parts: sent as they come, no faster than they are taken, and ended with their client."""

import asyncio
from collections.abc import AsyncGenerator

from gateway.request import Request
from gateway.wire.answer import Fetch, Stream
from tests.doubles.http_stack import stack
from tests.doubles.wait import until

PART = b"x" * 65536


class Source:
    """Makes parts without end, and knows how many it has made and whether it was closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = False

    async def parts(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                self.made += 1
                yield PART
        finally:
            self.closed = True

    async def __call__(self, request: Request) -> Stream:
        return Stream(200, ((b"Content-Type", b"text/plain"),), self.parts())


async def test_a_slow_reader_makes_nothing_grow():
    """Parts are not made faster than they are taken; when it reads again they come, and when it leaves they end."""
    source = Source()
    async with stack(own_routes={b"/s": source}) as here:
        async with here.client(None, receive_buffer=4096) as client:
            await client.send(b"GET /s HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: any(each.write_blocked for each in here.proxy.clients))
            (slow,) = here.proxy.clients
            made, waiting = source.made, slow.transport.get_write_buffer_size()
            for _ in range(20):
                await asyncio.sleep(0)
            assert waiting < 4 * len(PART)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(client.reader.readexactly((made + 2) * len(PART)), name="reading")
            assert len(reading.result()) == (made + 2) * len(PART)
            assert source.made > made
            assert not source.closed
        await until(lambda: source.closed)


async def test_parts_are_chunks_and_the_connection_stays():
    """Each part arrives by itself; behind the last another request can be sent."""

    async def three(request: Request) -> Stream:
        async def parts() -> AsyncGenerator[bytes]:
            for part in (b"one", b"two", b"three"):
                yield part

        return Stream(200, (), parts())

    async with stack(own_routes={b"/s": three}) as here, here.client(None) as client:
        for _ in range(2):
            await client.send(b"GET /s HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await client.head()
            assert head.all("transfer-encoding") == [b"chunked"]
            rest = await client.reader.readuntil(b"0\r\n\r\n")
            assert rest == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"


async def test_a_source_that_fails_breaks_off():
    """A client can tell that it has not got everything."""

    async def bad(request: Request) -> Stream:
        async def parts() -> AsyncGenerator[bytes]:
            yield b"one"
            raise RuntimeError("no more")

        return Stream(200, (), parts())

    async with stack(own_routes={b"/s": bad}) as here:
        async with here.client(None) as client:
            await client.send(b"GET /s HTTP/1.1\r\nHost: x\r\n\r\n")
            got = await client.answer()
            assert (got.body, got.complete) == (b"one", False)
        async with here.client(None) as client:
            await client.send(b"GET /s HTTP/1.0\r\n\r\n")
            assert not (await client.answer()).complete


async def test_what_is_fetched_is_the_backends_answer():
    """As it came, with what was added; a client that leaves meanwhile leaves nothing behind."""

    async def fetch(request: Request) -> Fetch:
        return Fetch(b"/there?x=1", ((b"X-Added", b"1"),), 2)

    async with stack(own_routes={b"/f": fetch}) as here, here.client(None) as client:
        got = await client.get("/f", "Range: bytes=0-1")
        assert (got.status, got.body, got.all("x-added")) == (200, b"ok", [b"1"])
        (seen,) = here.backend.seen
        assert (seen.target, seen.all("x-target-gpu")) == (b"/there?x=1", [b"2"])
        assert (await client.get("/f", method="HEAD")).status == 200
        assert here.backend.seen[-1].method == b"HEAD"
