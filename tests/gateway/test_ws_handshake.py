"""The handshake of a WebSocket: the backend's own 101 or refusal, and nothing else upgraded."""

import asyncio
import contextlib

import pytest

from gateway.config import Config
from tests.doubles.bridges import SWITCH, UPGRADE, echo_bytes, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack
from tests.doubles.wait import until


async def test_the_handshake_passes_end_to_end():
    """What the client offers and what the backend agrees to are theirs, with our fields added."""

    async def script(peer: Peer) -> None:
        await peer.head()
        agreed = SWITCH[:-2] + b"Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        await peer.send(agreed)
        await peer.gone()

    offers = (
        "Sec-WebSocket-Protocol: x, y",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Origin: http://gate:8181",
    )
    async with stack(script) as made, made.client(3) as client:
        await client.send(request("/ws", *UPGRADE, *offers, "Cookie: c", "X-Target-Gpu: 1"))
        got = await client.head()
        assert (got.status, got.all("upgrade"), got.all("connection")) == (101, [b"websocket"], [b"Upgrade"])
        assert got.all("sec-websocket-accept") == [b"x"]
        assert got.all("sec-websocket-protocol") == [b"x"]
        assert got.all("sec-websocket-extensions") == [b"permessage-deflate"]
        seen = made.backend.seen[0]
        assert (seen.all("upgrade"), seen.all("connection")) == ([b"websocket"], [b"Upgrade"])
        for line in (*UPGRADE[2:], *offers, "Cookie: c", "Host: gate:8181", "X-TARGET-GPU: 3"):
            name, _, value = line.partition(": ")
            assert seen.all(name) == [value.encode()]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "200 OK"])
async def test_a_refused_handshake_is_the_backends_refusal(status):
    """Its status, fields and body arrive, and the connection goes on as HTTP."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"no", status=status, extra=b"WWW-Authenticate: x\r\n")

    async with stack(script) as made, made.client() as client:
        got = await client.get("/ws", *UPGRADE)
        assert (got.status, got.body, got.all("www-authenticate")) == (int(status[:3]), b"no", [b"x"])
        assert (await client.get("/")).body == b"no"
        assert made.metrics.bridges_open == 0


async def test_what_is_sent_behind_a_refused_handshake_is_nothing():
    """Bytes meant for a bridge never become a request."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.05)
            await peer.reply(b"no", status="403 Forbidden")

    async with stack(script) as made, made.client() as client:
        await client.send(request("/ws", *UPGRADE) + request("/p/smug"))
        got = await client.answer()
        assert (got.status, got.all("connection")) == (403, [b"close"])
        assert await client.closed()
        assert [seen.target for seen in made.backend.seen] == [b"/ws"]


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: websocket, h2c"),
        ("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"),
        ("Upgrade: websocket",),
    ],
)
async def test_nothing_but_a_websocket_is_upgraded(lines):
    """Anything else is a plain request without any word of upgrading."""
    async with stack() as made, made.client() as client:
        assert (await client.get("/", *lines)).body == b"ok"
        seen = made.backend.seen[0]
        assert seen.all("upgrade") + seen.all("connection") + seen.all("http2-settings") == []


async def test_a_post_is_not_upgraded():
    """It goes on as what else it is."""
    async with stack() as made, made.client() as client:
        assert (await client.get("/", *UPGRADE, method="POST")).body == b"ok"
        assert not made.backend.seen[0].all("upgrade")


async def test_bridges_do_not_take_the_pools_places():
    """Any number of sockets may be open beside the requests."""
    async with stack(echo_bytes, limits={"pool_connections": 1}) as made, contextlib.AsyncExitStack() as many:
        for number in range(5):
            client = await many.enter_async_context(made.client())
            await opened(client, f"/ws?clientId={number}")
        assert made.proxy.pools[0].busy == 0
        assert made.metrics.bridges_open == 5


async def test_leaving_during_a_handshake_frees_the_id():
    """Nobody waits for a client that has gone."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await go.wait()
        await peer.send(SWITCH)
        await peer.gone()

    async with stack(script) as made, made.client() as first, made.client() as second:
        await first.send(request("/ws?clientId=me", *UPGRADE))
        await until(lambda: made.backend.seen)
        first.reset()
        await until(lambda: made.idle)
        go.set()
        await opened(second, "/ws?clientId=me")
        assert not made.proxy.bridges._claims[("0", "me")][0].waiting


async def test_fifty_tabs_come_back_at_once():
    """After a restart of the backend every page asks again at the same moment: none is refused."""
    config = Config()
    async with stack(echo_bytes, rate={"events": config.rate.events}) as made, contextlib.AsyncExitStack() as many:
        clients = [await many.enter_async_context(made.client()) for _ in range(55)]
        for number, client in enumerate(clients):
            await client.send(request(f"/ws?clientId={number}", *UPGRADE))
        assert [(await client.head()).status for client in clients] == [101] * 55
