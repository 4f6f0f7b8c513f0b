"""What is no acceptable request: told so in JSON, before the backend hears of it."""

import pytest

from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import splits, stack, stop_the_clock
from tests.doubles.wait import until

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"

BAD = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "empty host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
    "bad host": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "cl and te": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "te and cl": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
    ),
    **{
        f"length {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\nhello" % value, 400)
        for value in (b"+5", b"5, 5", b"0x5", b"-1", b"1_0", b"", b"5 5", b"9" * 30)
    },
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "same lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    **{
        f"coding {value!r}": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % value, status)
        for value, status in [
            (b"xchunked", 501),
            (b"gzip, chunked", 501),
            (b"identity", 501),
            (b"chunked, identity", 400),
            (b"chunked, chunked", 400),
            (b'"chunked"', 400),
            (b"", 400),
        ]
    },
    "coding twice": (b"POST / HTTP/1.1\r\nHost: a\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "coding in 1.0": (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
    "coding before colon": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),
    "nul": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", 400),
    "bare cr": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400),
    "bare lf": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "one bare lf": (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n", 400),
    "empty name": (b"GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    "control": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", 400),
    "name beyond ascii": (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: 1\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "lower case method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "proxy protocol 1": (b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "proxy protocol 2": (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), 400),
    "http 1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    **{
        f"target {target!r}": (b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target, 400)
        for target in (
            b"/a b",
            b"/a\tb",
            b"/\xc3\xa9",
            b"a",
            b"/a#b",
            b"*",
            b"ftp://a/",
            b"http://",
            b"http://u@h/",
            b"/\x7f",
        )
    },
    "trace": (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "expectation": (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\nx", 417),
    "websocket with a body": (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
        400,
    ),
    "websocket with chunks": (
        UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "long line": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "endless line": (b"GET /" + b"a" * 80_000, 414),
    "large head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 70 + b"\r\n", 431),
    "endless head": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"a" * 1000) * 70, 431),
    "many fields": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 200 + b"\r\n", 431),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_request_is_refused_and_the_connection_closed(case):
    """Each gets its status as JSON; a request smuggled behind it reaches nobody."""
    data, status = BAD[case]
    async with stack() as made, made.client() as client:
        smuggled = b"" if case.startswith("endless") else request("/smuggled")
        await client.send(data + smuggled)
        got = await client.answer()
        assert got.status == status
        assert got.error["type"]
        assert got.all("content-type") == [b"application/json; charset=utf-8"]
        if status != 405:
            assert got.all("connection") == [b"close"]
            assert await client.closed()
            assert made.backend.seen == []
        assert not [seen for seen in made.backend.seen if seen.target != b"/smuggled"]


async def test_a_refusal_does_not_depend_on_how_the_bytes_come():
    """Whole, byte by byte, or cut anywhere: the same refusal."""
    async with stack() as made:
        for pieces in splits(b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n"):
            async with made.client() as client:
                await client.send(*pieces)
                assert (await client.answer()).status == 400
        assert made.backend.seen == []


async def test_methods_that_are_refused_say_which_are_not():
    """405 carries Allow, and the connection goes on."""
    async with stack() as made, made.client() as client:
        await client.send(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await client.answer()
        assert b"GET" in got.all("allow")[0]
        assert (await client.get("/")).body == b"ok"
        assert len(made.backend.seen) == 1


async def test_options_star_is_about_the_gateway():
    """``OPTIONS *`` is answered here; ``OPTIONS /`` is the backend's."""
    async with stack() as made, made.client() as client:
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await client.answer()
        assert (got.status, got.names) == (204, ["allow", "x-request-id"])
        assert (await client.get("/", method="OPTIONS")).body == b"ok"
        assert [seen.line for seen in made.backend.seen] == [b"OPTIONS / HTTP/1.1"]


@pytest.mark.parametrize("method", ["PURGE", "PROPFIND", "REPORT", "BREW"])
async def test_unknown_methods_are_the_backends_business(method):
    """They pass."""
    async with stack() as made, made.client() as client:
        assert (await client.get("/", method=method)).status == 200
        assert made.backend.seen[0].method == method.encode()


async def test_errors_have_comfyuis_shape_and_are_never_stored():
    """A client written for ComfyUI finds the message where it looks for it."""
    async with stack(limits={"body": 1000}) as made, made.client() as client:
        got = await client.get("/prompt", method="POST", body=b"x" * 1001)
        assert got.status == 413
        assert got.error["extra_info"] == {"limit": 1000}
        assert "1000" in got.error["message"]
        assert "[limits] body" in got.error["details"]
        assert "--max-upload-size" in got.error["details"]
        assert got.all("cache-control") == [b"no-store"]
        assert len(got.all("x-request-id")) == 1


async def test_a_slow_head_is_cut_off():
    """From its first byte a head has its time; a connection without a byte is closed without a word."""
    async with stack(timeouts={"client_head": 10.0}) as made:
        clock = stop_the_clock(made)
        async with made.client() as client:
            await client.send(b"GET / HTTP/1.1\r\n")
            await until(lambda: [each for each in made.proxy.clients if each._in_head])
            clock.advance(11.0)
            got = await client.answer()
            assert (got.status, got.error["type"]) == (408, "request_timeout")
            assert await client.closed()
        await until(lambda: not made.proxy.clients)
        async with made.client() as client:
            await until(lambda: made.proxy.clients)
            clock.advance(11.0)
            assert await client.closed()


async def test_trickling_does_not_extend_a_heads_time():
    """Slowloris: a byte now and then does not keep a connection."""
    async with stack(timeouts={"client_head": 10.0}) as made, made.client() as client:
        clock = stop_the_clock(made)
        for number in range(1, 10):
            await client.send(b"G")
            await until(lambda: [len(each._ahead) for each in made.proxy.clients] == [number])  # noqa: B023 (awaited)
            clock.advance(1.0)
        assert made.metrics._requests == {}
        clock.advance(2.0)
        assert (await client.answer()).status == 408


async def test_an_idle_connection_is_closed_without_a_word():
    """Keep-alive ends after its time."""
    async with stack(timeouts={"client_idle": 75.0}) as made, made.client() as client:
        clock = stop_the_clock(made)
        assert (await client.get("/")).status == 200
        clock.advance(70.0)
        assert (await client.get("/")).status == 200
        clock.advance(76.0)
        assert await client.closed()


async def test_too_many_connections_are_told_so():
    """The one above the limit gets 503 and is closed; the others go on."""
    async with stack(listen={"max_connections": 1}) as made, made.client() as first:
        assert (await first.get("/")).status == 200
        async with made.client() as second:
            got = await second.answer()
            assert (got.status, got.all("retry-after")) == (503, [b"1"])
        assert (await first.get("/")).status == 200


async def test_a_backend_that_is_down_is_503_at_once():
    """Known to be down, or refusing connections: the same kind of answer, with Retry-After."""

    async def script(peer: Peer) -> None:
        await peer.gone()

    async with stack(script, up=False) as made, made.client() as client:
        got = await client.get("/prompt", method="POST", body=b"{}")
        assert (got.status, got.all("retry-after")) == (503, [b"7"])
        assert got.error["details"] == "it is starting"
        assert (await client.get("/")).status == 503
    async with stack(url="http://127.0.0.1:9") as made, made.client() as client:
        got = await client.get("/")
        assert (got.status, got.error["type"]) == (503, "backend_unavailable")
        assert got.all("retry-after") == [b"1"]
        assert (await client.get("/prompt", method="POST", body=b"{}")).status == 503


async def test_a_browser_that_opens_a_page_gets_a_page():
    """While the backend starts, a person reads a sentence and waits; scripts and programs get JSON."""
    async with stack(up=False) as made, made.client() as client:
        got = await client.get("/", "Accept: text/html,*/*;q=0.8", "Sec-Fetch-Mode: navigate")
        assert (got.status, got.all("content-type")) == (503, [b"text/html; charset=utf-8"])
        assert (got.all("refresh"), got.all("retry-after"), got.all("cache-control")) == ([b"7"], [b"7"], [b"no-store"])
        assert b"it is starting" in got.body
        assert (await client.get("/", "Accept: */*")).error["type"] == "backend_unavailable"
