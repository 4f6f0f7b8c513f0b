"""Open bridges: bytes untouched both ways, bounded memory, and ends that are what they were."""

import asyncio
import os

import pytest

from tests.doubles.bridges import SWITCH, UPGRADE, echo_bytes, masked, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import blocked, rss, stack, stop_the_clock
from tests.doubles.wait import until


async def test_any_bytes_pass_untouched_both_ways():
    """Also those that are no frames, and those that came with the heads, on either side."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH + b"early\x00\xff")
        while data := await peer.reader.read(65536):
            await peer.send(data)

    blob = os.urandom(300_000)
    async with stack(script) as made, made.client() as client:
        await client.send(request("/ws", *UPGRADE) + b"\x81\x00with the head")
        assert (await client.head()).status == 101
        assert await client.reader.readexactly(7) == b"early\x00\xff"
        assert await client.reader.readexactly(15) == b"\x81\x00with the head"
        await client.send(blob)
        assert await client.reader.readexactly(len(blob)) == blob
        (bridge,) = made.proxy.bridges.open
        assert (bridge.client.passed, bridge.backend.passed) == (15 + len(blob), 22 + len(blob))


async def test_pings_prove_the_backend_alive():
    """The gateway answers no ping itself: a backend that is silent is silent."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH)
        assert await peer.reader.readexactly(6) == masked(9, b"")
        await peer.send(b"\x81\x02hi")
        await peer.gone()

    async with stack(script) as made, made.client() as client:
        await opened(client)
        await client.send(masked(9, b""))
        assert await client.reader.readexactly(4) == b"\x81\x02hi"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_drops_takes_the_backend_along(how):
    """At once, with or without a reset; nothing is left."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH)
        await peer.gone()
        left.set()

    async with stack(script) as made, made.client() as client:
        await opened(client)
        stop_the_clock(made)
        getattr(client, how)()
        await until(left.is_set)
        await until(lambda: made.metrics.bridges_open == 0)
        assert not made.proxy.bridges.open


async def test_half_closed_bridges_flow_on_and_end():
    """What one side ends leaves the other direction open until it ends, too, or its time is over."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH)
        data = await peer.gone()
        await peer.send(b"got " + data)
        await asyncio.Event().wait()

    async with stack(script, timeouts={"bridge_close": 10.0}) as made, made.client() as client:
        clock = stop_the_clock(made)
        await opened(client)
        await client.send(b"hello")
        client.writer.write_eof()
        assert await client.reader.readexactly(9) == b"got hello"
        clock.advance(9.0)
        assert made.metrics.bridges_open == 1
        clock.advance(2.0)
        assert await client.closed()
        await until(lambda: made.metrics.bridges_open == 0)


async def test_idle_bridges_are_not_cut():
    """No time-out of requests or connections touches a bridge."""
    async with stack(echo_bytes) as made, made.client() as client:
        clock = stop_the_clock(made)
        await opened(client)
        clock.advance(3600.0)
        await client.send(b"still here")
        assert await client.reader.readexactly(10) == b"still here"
        (bridge,) = made.proxy.bridges.open
        for end in (bridge.client, bridge.backend):
            sock = end.transport.get_extra_info("socket")
            assert sock.getsockopt(1, 9) == 1  # SO_KEEPALIVE


async def test_a_client_that_stalls_holds_no_memory():
    """The backend's stream is not read further than the client takes it; others go on."""
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        seen = await peer.head()
        await peer.send(SWITCH)
        while seen.target.endswith(b"slow"):
            await peer.send(bytes(1 << 16))
            sent += 1 << 16
            await asyncio.sleep(0)
        while data := await peer.reader.read(65536):
            await peer.send(data)

    async with stack(script) as made, made.client(receive_buffer=65536) as slow, made.client() as quick:
        def sender() -> asyncio.WriteTransport:
            return made.backend.peers[0].writer.transport

        before = rss()
        await opened(slow, "/ws?clientId=slow")
        slow.writer.transport.pause_reading()
        (bridge,) = made.proxy.bridges.open
        await until(lambda: sent > 1_000_000_000 or (not bridge.backend.transport.is_reading() and blocked(sender())))
        assert sent < 40_000_000
        assert rss() - before < 20_000_000
        await opened(quick, "/ws?clientId=quick")
        await quick.send(b"x")
        assert await quick.reader.readexactly(1) == b"x"
        slow.reset()
        await until(lambda: made.metrics.bridges_open == 1)
