"""Bridges between real WebSocket libraries."""

import asyncio
import os

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.doubles.bridges import chat, echo_messages
from tests.doubles.wait import until


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


async def test_a_stopping_gateway_is_a_clean_goodbye_to_both_sides(monkeypatch):
    """A library on either side sees 1001, and no error."""
    monkeypatch.setattr("gateway.server._PARTING", 60.0)
    heard: list[int | None] = []

    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()
        heard.append(connection.close_code)

    async with chat(handler) as made:
        async with connect(f"ws://127.0.0.1:{made.port(0)}/ws", proxy=None) as client:
            await made.server.drain(60.0)
            await client.wait_closed()
            assert client.close_code == 1001
        await until(lambda: heard)
        assert heard == [1001]
