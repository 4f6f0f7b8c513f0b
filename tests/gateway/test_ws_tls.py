"""Bridges to clients over TLS, which knows no half-closed connection: they end as without it, and nothing is logged."""

import asyncio
import logging
import ssl

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.auth.certificate import Certificate
from tests.doubles.bridges import SWITCH, UPGRADE
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack
from tests.doubles.wait import until
from tests.gateway.auth.test_certificate import made as certificate_in
from tests.gateway.auth.test_certificate import needs_openssl

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A certificate, and a context that trusts it."""
    files = certificate_in(tmp_path_factory.mktemp("tls"), "cert", 30)
    return files, ssl.create_default_context(cafile=files.certificate)


@pytest.fixture(autouse=True)
def silence(caplog):
    """The event loop has nothing to complain about."""
    caplog.set_level(logging.WARNING, "asyncio")
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []


@pytest.mark.parametrize("who", ["client closes", "backend closes", "backend breaks off", "gateway stops"])
async def test_a_bridge_over_tls_ends_as_without_it(tls, who, monkeypatch):
    """Codes arrive on both sides; a loss is 1006."""
    monkeypatch.setattr("gateway.server._PARTING", 60.0)
    files, trust = tls
    heard: list[int | None] = []

    async def handler(connection: ServerConnection) -> None:
        await connection.send("hello")
        if who == "backend closes":
            await connection.close(4001, "because")
        elif who == "backend breaks off":
            await connection.recv()
            connection.transport.abort()
        await connection.wait_closed()
        heard.append(connection.close_code)

    codes = {"client closes": 4001, "backend closes": 4001, "backend breaks off": 1006, "gateway stops": 1001}
    async with serve(handler, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with stack(url=url, certificate=Certificate(files)) as made:
            address = f"wss://127.0.0.1:{made.port(0)}/ws"
            async with connect(address, ssl=trust, proxy=None) as client:
                assert await client.recv() == "hello"
                if who == "client closes":
                    await client.close(4001, "because")
                elif who == "backend breaks off":
                    await client.send("now")
                elif who == "gateway stops":
                    await made.server.drain(60.0)
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == codes[who]
            await until(lambda: heard)
            assert heard == [codes[who]]
            await until(lambda: not made.proxy.bridges.open)


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_a_side_that_sends_no_more_ends_the_bridge(tls, side):
    """What has been sent before arrives; then the connection ends, on both sides."""
    files, trust = tls
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(SWITCH + b"\x81\x05hello")
        if side == "backend":
            peer.writer.write_eof()
        await peer.gone()
        ended.set()

    async with stack(script, certificate=Certificate(files)) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port(0), ssl=trust)
        writer.write(request("/ws", *UPGRADE))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(7) == b"\x81\x05hello"
        if side == "client":
            writer.close()
        else:
            async with asyncio.timeout(30):
                assert await reader.read() == b""
            writer.close()
        await until(ended.is_set)
        await until(lambda: not made.proxy.bridges.open)
