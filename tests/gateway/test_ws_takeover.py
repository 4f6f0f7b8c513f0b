"""One client, one bridge: who comes again takes over, and the displaced one stays in silence."""

import asyncio
import contextlib

import pytest

from gateway.wire.frames import close_frame
from tests.doubles.bridges import SWITCH, UPGRADE, echo_bytes, masked, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import Stack, stack, stop_the_clock
from tests.doubles.wait import until


def taking_over(order: list[str], *, answers_close: bool):
    """A backend that notes when each socket opens and ends, and whether it says goodbye."""

    async def script(peer: Peer) -> None:
        await peer.head()
        order.append(f"open {peer.number}")
        await peer.send(SWITCH)
        while data := await peer.reader.read(65536):
            if answers_close and data == close_frame(1001, masked=True):
                await asyncio.sleep(0.05)
                order.append(f"end {peer.number}")
                await peer.send(close_frame(1001, masked=False))
                return
            await peer.send(data)
        order.append(f"end {peer.number}")

    return script


@pytest.mark.parametrize("answers_close", [True, False])
async def test_the_same_client_takes_over(answers_close):
    """The old socket's backend side has ended before the new handshake is sent, even when the old client is dead."""
    order: list[str] = []
    script = taking_over(order, answers_close=answers_close)
    async with stack(script) as made, made.client() as old, made.client() as new:
        clock = stop_the_clock(made)
        await opened(old, "/ws?a&clientId=me")
        (first,) = made.proxy.bridges.open
        await new.send(request("/api/ws?client%49d=m%65", *UPGRADE))
        if not answers_close:
            # The Close frame comes back as if it were nothing, and nothing else happens.
            await until(lambda: first.backend.passed == len(close_frame(1001, masked=True)))
            clock.advance(1.0)
            assert order == ["open 1"]
            clock.advance(2.0)
        assert (await new.head()).status == 101
        assert order[:3] == ["open 1", "end 1", "open 2"]
        await new.send(b"x")
        assert await new.reader.readexactly(1) == b"x"
        await until(lambda: made.metrics.bridges_open == 1)


async def test_a_displaced_client_stays_and_hears_nothing():
    """Two tabs with one id do not fight: the older one's socket stays open, is answered by us, and gets no event."""
    async with stack(echo_bytes) as made, made.client() as old, made.client() as new:
        await opened(old, "/ws?clientId=me")
        await opened(new, "/ws?clientId=me")
        await until(lambda: made.metrics.bridges_open == 1)
        await old.send(masked(1, b"dropped") + masked(9, b"there?"))
        assert await old.reader.readexactly(8) == b"\x8a\x06there?"
        await new.send(b"x")
        assert await new.reader.readexactly(1) == b"x"
        await old.send(masked(8, b"\x03\xe8"))
        assert await old.rest() == b"\x88\x02\x03\xe8"
        await until(lambda: not made.proxy.bridges.silent)
        assert made.metrics.bridges_open == 1


async def test_displaced_clients_are_bounded_and_told_when_the_gateway_stops(monkeypatch):
    """Only so many are kept; the oldest is closed first, the others when the bridges are."""
    monkeypatch.setattr("gateway.ws_bridge._MOST_SILENT", 1)
    async with stack(echo_bytes) as made, contextlib.AsyncExitStack() as many:
        clients = [await many.enter_async_context(made.client()) for _ in range(3)]
        for client in clients:
            await opened(client, "/ws?clientId=me")
        assert await clients[0].rest() == close_frame(1001, masked=False)
        made.proxy.bridges.close()
        assert await clients[1].rest() == close_frame(1001, masked=False)


async def test_other_gpus_and_other_clients_are_not_taken_over():
    """The same id on another port is another client; no id is nobody's."""
    async with stack(echo_bytes) as made, contextlib.AsyncExitStack() as many:
        for gpu, target in [
            (0, "/ws?clientId=me"),
            (1, "/ws?clientId=me"),
            (None, "/ws?clientId=me"),
            (0, "/ws?clientId=you"),
            (0, "/ws"),
            (0, "/ws"),
            (0, "/ws?clientId="),
            (0, "/ws?clientId="),
        ]:
            await opened(await many.enter_async_context(made.client(gpu)), target)
        assert made.metrics.bridges_open == 8
        await opened(await many.enter_async_context(made.client(None)), "/gpu1/ws?clientId=me")
        await until(lambda: made.metrics.bridges_open == 8)


async def test_a_storm_of_one_client_leaves_one_bridge():
    """Ten handshakes at once under one id: all but one end, at the client and at the backend."""
    at_once = 0

    async def script(peer: Peer) -> None:
        nonlocal at_once
        await peer.head()
        at_once += 1
        try:
            await asyncio.sleep(0.02)
            await peer.send(SWITCH)
            while data := await peer.reader.read(65536):
                if data == close_frame(1001, masked=True):
                    return
        finally:
            at_once -= 1

    async def tab(made: Stack, many: contextlib.AsyncExitStack) -> int:
        client = await many.enter_async_context(made.client())
        await client.send(request("/ws?clientId=me", *UPGRADE))
        return (await client.head()).status

    async with stack(script) as made, contextlib.AsyncExitStack() as many:
        statuses = await asyncio.gather(*[tab(made, many) for _ in range(10)])
        assert statuses.count(101) >= 1
        await until(lambda: made.metrics.bridges_open == 1 and at_once == 1)
