"""WebSocket bridges: the backend's own 101, bytes untouched both ways, and one bridge per client."""

import asyncio
import contextlib
import os

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from gateway.wire.frames import close_frame
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient, request
from tests.doubles.http_stack import Stack, rss, stack
from tests.doubles.wait import until

UPGRADE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Key: a2V5",
    "Sec-WebSocket-Version: 13",
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


async def echo_bytes(peer: Peer) -> None:
    """Accept, then echo bytes until the end, and end, too."""
    await peer.head()
    await peer.send(SWITCH)
    while data := await peer.reader.read(65536):
        await peer.send(data)


async def opened(client: RawClient, target: str = "/ws?clientId=a", *lines: str) -> None:
    """Ask for a bridge and get it."""
    await client.send(request(target, *UPGRADE, *lines))
    assert (await client.head()).status == 101


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


@contextlib.asynccontextmanager
async def chat(handler, **options):
    """A real WebSocket server behind the gateway."""
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        port = server.sockets[0].getsockname()[1]
        async with stack(url=f"http://127.0.0.1:{port}") as made:
            yield made


async def echo_messages(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_messages_of_a_real_library_are_echoed_and_counted():
    """Text, binary, fragments and large previews, compressed end to end; counted once each way."""
    async with chat(echo_messages, max_size=None) as made:
        url = f"ws://127.0.0.1:{made.port(2)}/ws?clientId=a"
        async with connect(url, max_size=None, proxy=None) as client:
            large = os.urandom(8_000_000)
            for message in ("hello", b"\x00\xff" * 100, large, ""):
                await client.send(message)
                assert await client.recv() == message
            await client.send(["frag", "men", "ted"])
            assert await client.recv() == "fragmented"
            await (await client.ping(b"x"))
            assert client.protocol.extensions
        await until(lambda: made.metrics.bridges_open == 0)
        counted = made.metrics._bridge_messages
        assert (counted["2", "to_backend"], counted["2", "to_client"]) == (5, 5)
        assert made.metrics._bridge_bytes["2", "to_backend"] > 8_000_000


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_close_codes_and_reasons_arrive(side):
    """4001 stays 4001, whoever says it."""
    heard: list[tuple[int, str]] = []

    async def handler(connection: ServerConnection) -> None:
        if side == "backend":
            await connection.close(4001, "because")
        await connection.wait_closed()
        heard.append((connection.close_code, connection.close_reason))

    async with chat(handler) as made:
        async with connect(f"ws://127.0.0.1:{made.port(0)}/ws", proxy=None) as client:
            if side == "client":
                await client.close(4001, "because")
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (4001, "because")
        await until(lambda: heard)
        assert heard == [(4001, "because")]


async def test_a_lost_backend_is_no_clean_close():
    """A crash behind the bridge is 1006 in front of it."""

    async def handler(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with chat(handler) as made, connect(f"ws://127.0.0.1:{made.port(0)}/ws", proxy=None) as client:
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == 1006


async def test_a_refusal_arrives_as_one():
    """A WebSocket library sees the backend's status."""

    def deny(connection, request):
        return connection.respond(403, "no")

    async with chat(echo_messages, process_request=deny) as made:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{made.port(0)}/ws", proxy=None)
        assert refused.value.response.status_code == 403


async def test_pings_prove_the_backend_alive():
    """The gateway answers no ping itself: a backend that is silent is silent."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH)
        await peer.gone()

    async with stack(script) as made, made.client() as client:
        await opened(client)
        await client.send(b"\x89\x80\0\0\0\0")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.read(1)


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
        getattr(client, how)()
        async with asyncio.timeout(1):
            await left.wait()
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

    async with stack(script, timeouts={"bridge_close": 0.3}) as made, made.client() as client:
        await opened(client)
        await client.send(b"hello")
        client.writer.write_eof()
        assert await client.reader.readexactly(9) == b"got hello"
        assert made.metrics.bridges_open == 1
        assert await client.closed()
        await until(lambda: made.metrics.bridges_open == 0)


async def test_idle_bridges_are_not_cut():
    """No time-out of requests or connections touches a bridge."""
    short = {"read": 0.1, "client_idle": 0.1, "client_head": 0.1, "client_body": 0.1, "backend_idle": 0.1, "send": 0.1}
    async with stack(echo_bytes, timeouts=short) as made, made.client() as client:
        await opened(client)
        await asyncio.sleep(0.5)
        await client.send(b"still here")
        assert await client.reader.readexactly(10) == b"still here"
        (bridge,) = made.proxy.bridges.open
        for end in (bridge.client, bridge.backend):
            sock = end.transport.get_extra_info("socket")
            assert sock.getsockopt(1, 9) == 1  # SO_KEEPALIVE


async def test_bridges_do_not_take_the_pools_places():
    """Any number of sockets may be open beside the requests."""
    async with stack(echo_bytes, limits={"pool_connections": 1}) as made, contextlib.AsyncExitStack() as many:
        for number in range(5):
            client = await many.enter_async_context(made.client())
            await opened(client, f"/ws?clientId={number}")
        assert made.proxy.pool.busy == 0
        assert made.metrics.bridges_open == 5


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
        while data := await peer.reader.read(65536):
            await peer.send(data)

    async with stack(script) as made, made.client(receive_buffer=65536) as slow, made.client() as quick:
        before = rss()
        await opened(slow, "/ws?clientId=slow")
        slow.writer.transport.pause_reading()
        stalled_at = -1
        while stalled_at != sent:
            stalled_at = sent
            await asyncio.sleep(0.3)
        assert sent < 40_000_000
        assert rss() - before < 20_000_000
        await opened(quick, "/ws?clientId=quick")
        await quick.send(b"x")
        assert await quick.reader.readexactly(1) == b"x"
        slow.reset()
        await until(lambda: made.metrics.bridges_open == 1)


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
async def test_the_same_client_takes_over(answers_close, monkeypatch):
    """The old socket's backend side has ended before the new handshake is sent, even when the old client is dead."""
    monkeypatch.setattr("gateway.ws_bridge._EVICTION", 0.2)
    order: list[str] = []
    script = taking_over(order, answers_close=answers_close)
    async with stack(script, timeouts={"client_head": 1.0}) as made, made.client() as old, made.client() as new:
        await opened(old, "/ws?a&clientId=me")
        await opened(new, "/api/ws?client%49d=m%65")
        assert order[:3] == ["open 1", "end 1", "open 2"]
        await new.send(b"x")
        assert await new.reader.readexactly(1) == b"x"
        await until(lambda: made.metrics.bridges_open == 1)


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame as clients send it, with a mask that changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


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


async def test_a_synchronous_client_library_works():
    """websocket-client, as ComfyUI's own examples use it, in a thread."""
    import websocket  # noqa: PLC0415 - its import starts threads' locks only where it is used

    async with chat(echo_messages) as made:

        def talk() -> str:
            client = websocket.create_connection(f"ws://127.0.0.1:{made.port(1)}/ws?clientId=a", timeout=5)
            client.send("hello")
            heard = client.recv()
            client.close()
            return str(heard)

        assert await asyncio.to_thread(talk) == "hello"
        assert websockets.__version__
