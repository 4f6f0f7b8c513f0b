"""Listening, draining and stopping."""

import asyncio
import contextlib
import socket

import pytest

from gateway.config import Timeouts
from gateway.server import step_of
from gateway.wire.frames import close_frame, frame
from tests.doubles.bridges import SWITCH, echo_bytes, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient, raw, request
from tests.doubles.http_stack import stack
from tests.doubles.wait import until


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up late, because this machine is busy, still hangs up."""
    monkeypatch.setattr("gateway.server._PARTING", 60.0)


async def test_one_port_per_gpu_and_the_front_door():
    """The addresses say which is which."""
    async with stack() as made:
        assert [bound.gpu for bound in made.server.bound] == [None, 0, 1, 2, 3]
        assert made.server.ports == [bound.port for bound in made.server.bound]
        for gpu in range(4):
            async with made.client(gpu) as client:
                await client.get("/")
            assert made.backend.seen[-1].all("x-target-gpu") == [b"%d" % gpu]


async def test_both_address_families():
    """Several hosts mean several sockets per port; an IPv6 client is known by its address."""
    async with stack(listen={"host": ("127.0.0.1", "::1")}) as made:
        assert len(made.server.bound) == 10
        assert len(made.server.ports) == 5
        six = next(bound for bound in made.server.bound if bound.host == "::1" and bound.gpu == 1)
        reader, writer = await asyncio.open_connection("::1", six.port)
        writer.write(request("/", host=f"[::1]:{six.port}"))
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert made.backend.seen[0].all("x-real-ip") == [b"::1"]


async def test_a_busy_port_is_named():
    """One line says which address cannot be had, and nothing is left listening."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            async with stack(listen={"gpu_ports": (0, port)}):
                pass


async def test_draining_lets_requests_finish():
    """No new connection, idle ones closed, the answer in flight complete and the last."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.reply(b"done")

    async with stack(script) as made, made.client() as busy, made.client() as idle:
        await busy.send(request("/"))
        await until(lambda: made.backend.seen)
        await until(lambda: made.server.clients == 2)
        drained = asyncio.get_running_loop().create_task(made.server.drain(60.0))
        assert await idle.closed()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            async with raw(made.port(0)):
                pass
        go.set()
        got = await busy.answer()
        assert (got.body, got.all("connection")) == (b"done", [b"close"])
        await drained
        assert not made.server.busy


async def test_draining_takes_the_first_request_of_a_connection_that_is_there():
    """Its client was let in and knows of no end; one that asks for nothing is not waited for long."""
    async with stack() as made, made.client() as early, made.client() as silent:
        await until(lambda: made.server.clients == 2)
        drained = asyncio.get_running_loop().create_task(made.server.drain(60.0))
        await until(lambda: made.proxy.draining)
        await early.send(request("/"))
        got = await early.answer()
        assert (got.status, got.all("connection")) == (200, [b"close"])
        assert await silent.closed()
        await drained
        assert not made.server.busy


async def test_draining_says_goodbye_to_bridges():
    """They get a Close frame with 1001 and end in order."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        assert await peer.reader.readexactly(8) == b"\x88\x82\0\0\0\0\x03\xe9"

    async with stack(script) as made, made.client() as client:
        await opened(client)
        drained = asyncio.get_running_loop().create_task(made.server.drain(60.0))
        assert await client.reader.readexactly(4) == b"\x88\x02\x03\xe9"
        client.close()
        await drained
        assert not made.server.busy


async def test_draining_waits_for_the_end_of_a_frame():
    """The Close frame comes between two frames, never inside one; what comes after it is dropped."""
    go = asyncio.Event()
    event = frame(2, bytes(100_000))

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH + event[:50_000])
        await go.wait()
        await peer.send(event[50_000:] + frame(1, b"too late"))
        await peer.gone()

    async with stack(script) as made, made.client() as client:
        await opened(client)
        assert await client.reader.readexactly(50_000) == event[:50_000]
        drained = asyncio.get_running_loop().create_task(made.server.drain(60.0))
        (bridge,) = made.proxy.bridges.open
        await until(lambda: bridge.concluding)
        go.set()
        rest = event[50_000:] + close_frame(1001, masked=False)
        assert await client.reader.readexactly(len(rest)) == rest
        client.close()
        await drained
        assert not made.server.busy


async def test_a_frame_that_never_ends_does_not_hold_the_drain_for_ever():
    """Half a frame, and then nothing: the bridge ends with its time."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH + frame(2, bytes(1000))[:500])
        await peer.gone()

    async with stack(script, timeouts={"bridge_close": 0.2}) as made, made.client() as client:
        await opened(client)
        await client.reader.readexactly(500)
        await made.server.drain(60.0)
        assert not made.server.busy
        assert await client.closed()


async def test_draining_under_load_loses_nothing():
    """Twenty uploads half sent, twenty answers waited for and twenty bridges: all end in order, nothing is refused."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        seen = await peer.head()
        if seen.all("upgrade"):
            await peer.send(SWITCH)
            assert await peer.gone() == close_frame(1001, masked=True)
            return
        body = await peer.reader.readexactly(int((seen.all("content-length") or [b"0"])[0]))
        await go.wait()
        await peer.reply(body or b"ok")

    async def bridge(client: RawClient) -> bytes:
        told = await client.reader.readexactly(4)
        client.close()
        return told

    async with stack(script) as made, contextlib.AsyncExitStack() as many:
        clients = [await many.enter_async_context(made.client(number % 4)) for number in range(60)]
        uploads, waiting, bridges = clients[:20], clients[20:40], clients[40:]
        body = bytes(100_000)
        for client in uploads:
            await client.send(request("/upload/image", f"Content-Length: {len(body)}", method="POST") + body[:50_000])
        for client in waiting:
            await client.send(request("/view"))
        for number, client in enumerate(bridges):
            await opened(client, f"/ws?clientId={number}")
        await until(lambda: len(made.backend.seen) == 60)
        drained = asyncio.get_running_loop().create_task(made.server.drain(60.0))
        for client in uploads:
            await client.send(body[50_000:])
        go.set()
        told = asyncio.gather(*[bridge(client) for client in bridges])
        assert [(await client.answer()).body for client in uploads] == [body] * 20
        assert [(await client.answer()).body for client in waiting] == [b"ok"] * 20
        assert await told == [close_frame(1001, masked=False)] * 20
        await drained
        assert not made.server.busy
        assert {status for _, _, status in made.metrics._requests} == {200, 101}


async def test_draining_has_an_end():
    """What does not finish in time is ended by ``close``."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with stack(script) as made, made.client() as client:
        await client.send(request("/"))
        await until(lambda: made.backend.seen)
        await made.server.drain(0.1)
        assert made.server.busy
        await made.server.close()
        assert not made.server.busy
        assert await client.closed()


async def test_closing_ends_bridges_and_requests_at_once():
    """Nothing is waited for."""
    async with stack(echo_bytes) as made, made.client() as client, made.client() as other:
        await opened(client)
        await other.send(b"GET / HTTP/1.1\r\n")
        await until(lambda: made.server.clients == 1)
        await made.server.close()
        assert await client.closed()
        assert await other.closed()


def test_deadlines_are_looked_at_often_enough():
    """A quarter of the shortest time, but not all the time."""
    assert step_of(Timeouts()) == 0.5
    assert step_of(Timeouts(client_idle=0.2)) == 0.05
