"""Real WebSocket libraries on both ends, once directly and once over the bridge: the two must not tell them apart.

What a client hears is compared byte for byte, what the server hears message for message, and how each side sees the
end: by code and reason. A reset is an end like any other: through the bridge it arrives as the connection's close.
"""

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import websocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.wire.frames import FrameFollower
from tests.doubles.bridges import SWITCH, UPGRADE, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient, raw, request
from tests.doubles.http_stack import rss, stack
from tests.doubles.wait import until
from tests.doubles.ws_servers import SERVERS, Heard, told

KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20]


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True, form: int = 0
) -> bytes:
    """Any frame, right or wrong; ``form`` is the length's spelling (126, 127), chosen by size when 0."""
    size = len(payload)
    form = form or (size if size < 126 else 126 if size < 1 << 16 else 127)
    head = bytes((fin << 7 | rsv << 4 | opcode, mask << 7 | form))
    head += b"" if form < 126 else struct.pack(">H" if form == 126 else ">Q", size)
    if not mask:
        return head + payload
    key = b"\x37\xfa\x21\x3d"
    whole = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """A Close frame of a client."""
    return frame(8, b"" if code is None else code.to_bytes(2, "big") + reason)


TEXT, BINARY, CONTINUED, PING, PONG = 1, 2, 0, 9, 10
END = frame(TEXT, b"/close 1000 enough")
"""Ends a case from the server's side, when it has answered all that came before."""

# What is sent after the handshake.
RIGHT: dict[str, bytes] = {
    "nothing": END,
    **{f"text of {size}": frame(TEXT, b"a" * size) + END for size in SIZES},
    **{f"binary of {size}": frame(BINARY, bytes(size)) + END for size in SIZES},
    "every byte": frame(BINARY, bytes(range(256)) * 4) + END,
    "text beyond ascii": frame(TEXT, "κόσμε 🎨".encode()) + END,
    "many": b"".join(frame(TEXT, b"%d" % number) for number in range(500)) + END,
    "fragments": frame(TEXT, b"a", fin=False) + frame(CONTINUED, b"b", fin=False) + frame(CONTINUED, b"c") + END,
    "empty fragments": frame(TEXT, fin=False) + frame(CONTINUED, fin=False) + frame(CONTINUED) + END,
    "a character over two frames": frame(TEXT, b"\xce", fin=False) + frame(CONTINUED, b"\xba") + END,
    "control inside fragments": frame(TEXT, b"a", fin=False) + frame(PING, b"x") + frame(CONTINUED, b"b") + END,
    "close inside fragments": frame(TEXT, b"a", fin=False) + close(1001, b"leaving"),
    "ping": frame(PING) + frame(PING, b"x" * 125) + END,
    "unasked pong": frame(PONG, b"x") + frame(TEXT, b"a") + END,
    "flood of pings": frame(PING, b"12345678") * 3000 + END,
    "flood of empty messages": frame(TEXT) * 1000 + END,
    "length longer than needed": frame(TEXT, b"a" * 10, form=126) + END,
    "the server closes": frame(TEXT, b"/close 4001 because") + END,
    **{f"close {code}": close(code, b"why") for code in (1000, 1001, 1002, 1003, 1007, 1011, 3000, 4999)},
    "close without a code": close(None),
    "close with a long reason": close(1000, b"r" * 123),
    "something after the close": close() + frame(TEXT, b"late"),
}
WRONG: dict[str, bytes] = {
    **{f"reserved bit {bit}": frame(TEXT, b"a", rsv=bit) for bit in (1, 2, 4)},
    **{f"opcode {opcode}": frame(opcode, b"a") for opcode in (3, 7, 11, 15)},
    "not masked": frame(TEXT, b"a", mask=False),
    "not utf-8": frame(TEXT, b"\xff\xfe"),
    "half a character": frame(TEXT, b"\xce"),
    "not utf-8 in a fragment": frame(TEXT, b"a", fin=False) + frame(CONTINUED, b"\xff"),
    "long ping": frame(PING, b"x" * 126),
    "ping in fragments": frame(PING, b"x", fin=False),
    "continued nothing": frame(CONTINUED, b"a"),
    "text inside fragments": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    **{f"close {code}": close(code) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)},
    "close of one byte": frame(8, b"\x03"),
    "close with a broken reason": close(1000, b"\xff"),
    "no frames at all": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10,
}

Play = Callable[[int], Awaitable[Any]]


@contextlib.asynccontextmanager
async def behind(name: str, *, compress: bool = False):
    """A server, and a gateway before it: its record, and the ports of both."""
    async with SERVERS[name](compress=compress) as heard, stack(url=f"http://127.0.0.1:{heard.port}") as made:
        yield heard, (heard.port, made.port(1))


async def both(heard: Heard, ports: tuple[int, int], play: Play) -> list[tuple[Any, Any]]:
    """What client and server say of it, directly and over the bridge."""
    found = []
    for port in ports:
        heard.said.clear()
        ended = heard.ended
        client = await play(port)
        await until(lambda: heard.ended > ended)  # noqa: B023 (awaited)
        found.append((client, list(heard.said)))
    return found


def plainly(data: bytes) -> tuple[int, str, bytes]:
    """Bytes, so that a difference can be read."""
    return len(data), hashlib.sha256(data).hexdigest(), data[:200]


async def spoken(port: int, data: bytes, *lines: str) -> tuple[Any, Any]:
    """Send bytes after a handshake and read to the end: the agreement, and everything that came."""
    async with raw(port) as client:
        await client.send(request("/ws", *UPGRADE[:2], UPGRADE[3], KEY, *lines))
        head = await client.head()
        agreed = [(name.lower(), value) for name, value in head.fields if name.lower().startswith(b"sec-")]
        reading = asyncio.get_running_loop().create_task(answered(client))
        with contextlib.suppress(OSError):
            await client.send(data)
        return (head.status, sorted(agreed)), plainly(await reading)


async def answered(client: RawClient) -> bytes:
    """Everything until the connection ends; a Close is answered with a Close, as clients do."""
    heard, follower, parted = b"", FrameFollower(), False
    async with asyncio.timeout(60):
        with contextlib.suppress(OSError):
            while data := await client.reader.read(1 << 16):
                heard += data
                follower.feed(data)
                if follower.closing and not parted:
                    parted = True
                    await client.send(close())
    return heard


@pytest.mark.parametrize("server", SERVERS)
async def test_every_kind_of_frame_is_the_same_over_the_bridge(server):
    """All kinds and sizes, fragments, control frames and closes, with what was agreed on or without."""
    async with behind(server, compress=True) as (heard, ports):
        for lines in ((), (DEFLATE,)):
            for case, data in RIGHT.items():
                direct, bridged = await both(heard, ports, lambda port: spoken(port, data, *lines))  # noqa: B023 (awaited)
                assert direct == bridged, case
                assert direct[0][0][0] == 101


@pytest.mark.parametrize("server", SERVERS)
async def test_every_mistake_is_the_same_over_the_bridge(server):
    """The server's verdict on a broken frame reaches the client: the bridge has none of its own."""
    async with behind(server) as (heard, ports):
        for case, data in WRONG.items():
            direct, bridged = await both(heard, ports, lambda port: spoken(port, data + END))  # noqa: B023 (awaited)
            assert direct == bridged, case


HANDSHAKES = {
    "no key": (UPGRADE[0], UPGRADE[1], UPGRADE[3]),
    "a short key": UPGRADE,
    "an old version": (UPGRADE[0], UPGRADE[1], KEY, "Sec-WebSocket-Version: 8"),
    "no version": (UPGRADE[0], UPGRADE[1], KEY),
    "no upgrade": (KEY, UPGRADE[3]),
    "a subprotocol nobody speaks": (*UPGRADE[:2], UPGRADE[3], KEY, "Sec-WebSocket-Protocol: x"),
    "an extension nobody knows": (*UPGRADE[:2], UPGRADE[3], KEY, "Sec-WebSocket-Extensions: x-unknown"),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("case", HANDSHAKES)
async def test_every_handshake_is_the_same_over_the_bridge(server, case):
    """Agreed or refused, it is the server's answer."""

    async def ask(port: int) -> Any:
        async with raw(port) as client:
            await client.send(request("/ws", *HANDSHAKES[case]))
            got = await client.head()
            kept = sorted(
                (name.lower(), value) for name, value in got.fields if name.lower().startswith((b"sec-", b"content-"))
            )
            body = b""
            if got.status != 101 and (length := got.all("content-length")):
                body = await client.reader.readexactly(int(length[0]))
            return got.status, kept, body

    async with behind(server) as (_, ports):
        assert await ask(ports[0]) == await ask(ports[1])


MESSAGES: list[str | bytes] = [
    *("a" * size for size in SIZES),
    *(bytes(range(256)) * (size // 256) + bytes(size % 256) for size in SIZES),
    "κόσμε 🎨",
]
FEW = ["hello", b"\x00\xff"]
"""What is said before the other ways to end."""
ENDS = ["close 1000 ", "close 4001 because", "/close 1000 ", "/close 4999 bye", "abort", "/abort"]


async def with_websockets(port: int, end: str, messages: list[str | bytes], *, compress: bool) -> list[Any]:
    """What a client of ``websockets`` hears."""
    heard: list[Any] = []
    options: Any = {} if compress else {"compression": None}
    url = f"ws://127.0.0.1:{port}/ws"
    async with connect(url, max_size=None, proxy=None, ping_interval=None, **options) as client:
        heard.append([str(each) for each in client.protocol.extensions])
        for message in messages:
            await client.send(message)
            heard.append(told(await client.recv()))
        await client.send("/ping")
        await client.send(["frag", "", "ments"])
        heard.append(await client.recv())
        await (await client.ping(b"x"))
        if end.startswith("close"):
            _, code, reason = end.split(" ", 2)
            await client.close(int(code), reason)
        elif end == "abort":
            client.transport.abort()
        else:
            await client.send(end)
        with contextlib.suppress(ConnectionClosed):
            heard.append(await client.recv())
        await client.wait_closed()
    return [*heard, client.close_code, client.close_reason]


async def with_aiohttp(port: int, end: str, messages: list[str | bytes], *, compress: bool) -> list[Any]:
    """What a client of ``aiohttp`` hears."""
    heard: list[Any] = []
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{port}/ws", compress=15 if compress else 0, max_msg_size=0, autoclose=True
        ) as client,
    ):
        heard.append(client.compress)
        for message in messages:
            await (client.send_str(message) if isinstance(message, str) else client.send_bytes(message))
            heard.append(told((await client.receive()).data))
        await client.send_str("/ping")
        await client.send_str("after the ping")
        heard.append((await client.receive()).data)
        if end.startswith("close"):
            _, code, reason = end.split(" ", 2)
            await client.close(code=int(code), message=reason.encode())
        elif end == "abort":
            client._response.connection.transport.abort()  # type: ignore[union-attr]  # it is open
        else:
            await client.send_str(end)
        last = await client.receive()
        heard.append((last.type.name, last.data if last.type is aiohttp.WSMsgType.CLOSE else None, last.extra))
        return [*heard, client.close_code]


async def with_websocket_client(port: int, end: str, messages: list[str | bytes], *, compress: bool) -> list[Any]:
    """What a client of ``websocket-client`` hears, which knows no compression; in a thread, for it waits."""

    def talk() -> list[Any]:
        heard: list[Any] = []
        client = websocket.create_connection(f"ws://127.0.0.1:{port}/ws", timeout=30)
        for message in messages:
            client.send(message) if isinstance(message, str) else client.send_binary(message)
            heard.append(told(client.recv()))
        client.send("/ping")
        client.send("after the ping")
        heard.append(client.recv())
        if end.startswith("close"):
            _, code, reason = end.split(" ", 2)
            client.send_close(int(code), reason.encode())
        elif end == "abort":
            client.shutdown()
            return heard
        else:
            client.send(end)
        try:
            heard.append(client.recv_data(control_frame=True))
        except (OSError, websocket.WebSocketException):
            heard.append("lost")
        client.shutdown()
        return heard

    return await asyncio.to_thread(talk)


CLIENTS = {"websockets": with_websockets, "aiohttp": with_aiohttp, "websocket-client": with_websocket_client}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("client", "compress"),
    [
        ("websockets", True),
        ("websockets", False),
        ("aiohttp", True),
        ("aiohttp", False),
        ("websocket-client", False),
    ],
)
async def test_any_pair_of_libraries_behaves_as_without_the_bridge(server, client, compress):
    """Messages of every kind and size, compressed or not, and every way to end, from either side."""
    async with behind(server, compress=compress) as (heard, ports):
        for number, end in enumerate(ENDS):
            messages = FEW if number else MESSAGES

            def play(port: int) -> Awaitable[Any]:
                return CLIENTS[client](port, end, messages, compress=compress)  # noqa: B023 (awaited)

            direct, bridged = await both(heard, ports, play)
            assert direct == bridged, end


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("how", ["half-close", "abort"])
async def test_leaving_without_a_word_is_the_same_over_the_bridge(server, how):
    """After an answered message the client ends its side, or everything: the server sees what it sees directly."""

    async def play(port: int) -> Any:
        async with raw(port) as client:
            await client.send(request("/ws", *UPGRADE[:2], UPGRADE[3], KEY))
            assert (await client.head()).status == 101
            await client.send(frame(TEXT, b"hello"))
            got = await client.reader.readexactly(7)
            if how == "abort":
                client.reset()
                return got
            client.writer.write_eof()
            return got, await client.rest()

    async with behind(server) as (heard, ports):
        direct, bridged = await both(heard, ports, play)
        assert direct == bridged


async def test_a_message_of_64_mib_passes_in_flat_memory():
    """One frame, there and back: the bridge holds a few reads of it, never the message."""
    size = 64 << 20
    head = b"\x82\xff" + struct.pack(">Q", size) + bytes(4)
    piece = bytes(range(256)) * 256

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH)
        await peer.send(await peer.reader.readexactly(len(head)))
        left = size
        while left:
            data = await peer.reader.read(min(left, 1 << 16))
            left -= len(data)
            await peer.send(data)
        await peer.gone()

    async def upload(client: RawClient) -> None:
        await client.send(head)
        for _ in range(size // len(piece)):
            await client.send(piece)

    async with stack(script) as made, made.client() as client:
        await opened(client)
        before = rss()
        task = asyncio.get_running_loop().create_task(upload(client))
        assert await client.reader.readexactly(len(head)) == head
        seen, left = hashlib.sha256(), size
        while left:
            data = await client.reader.read(min(left, 1 << 16))
            left -= len(data)
            seen.update(data)
        await task
        assert seen.digest() == hashlib.sha256(piece * (size // len(piece))).digest()
        assert rss() - before < 30_000_000
        (bridge,) = made.proxy.bridges.open
        assert (bridge.client.follower.messages, bridge.backend.follower.messages) == (1, 1)
