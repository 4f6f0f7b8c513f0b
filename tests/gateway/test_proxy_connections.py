"""Connections: kept, pooled, waited for, given back; cancelled when nobody wants the answer."""

import asyncio
import contextlib
import socket

import pytest

from gateway.build import compiled
from gateway.wire.backend import BackendConnection
from gateway.wire.pool import Ticket
from tests.doubles.http_backend import Peer, echo
from tests.doubles.http_client import RawClient, request
from tests.doubles.http_stack import Stack, blocked, stack, stop_the_clock
from tests.doubles.wait import until


async def test_connections_are_kept_on_both_sides():
    """Ten requests of one client use one connection to the backend, with Nagle off."""
    async with stack() as made, made.client() as client:
        for _ in range(10):
            assert (await client.get("/")).body == b"ok"
        assert made.backend.opened == made.proxy.pools[0].opened_total == 1
        assert made.proxy.pools[0].idle == 1
        (kept,) = made.proxy.pools[0]._idle
        (theirs,) = made.proxy.clients
        for transport in (kept.transport, theirs.transport):
            assert transport.get_extra_info("socket").getsockopt(6, 1) != 0


async def test_pipelined_requests_are_answered_in_order():
    """Also when the first takes longest and some are answered here."""
    async with stack(limits={"body": 10}) as made, made.client() as client:
        asked = [request("/a"), request("/b", method="POST", body=b"123"), b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"]
        await client.send(b"".join(asked * 20))
        for _ in range(20):
            assert [(await client.answer()).body for _ in range(2)] == [b"ok", b"123"]
            assert (await client.answer()).status == 405
        assert [seen.target for seen in made.backend.seen] == [b"/a", b"/b"] * 20


async def test_a_flood_of_pipelined_requests_is_bounded():
    """A client that asks and does not read is read from no further than a bound."""
    sent = 0

    async with stack() as made, made.client(receive_buffer=65536) as client:
        client.writer.transport.pause_reading()

        async def flood() -> None:
            nonlocal sent
            while True:
                await client.send(request("/" + "a" * 1000) * 20)
                sent += 20
                await asyncio.sleep(0)

        task = asyncio.get_running_loop().create_task(flood())
        await until(lambda: made.proxy.clients)
        (connection,) = made.proxy.clients
        await until(lambda: sent > 1_000_000 or (connection._read_holds and blocked(client.writer.transport)))
        assert sent < 1_000_000
        assert len(connection._ahead) < 600_000
        assert connection.transport.get_write_buffer_size() < 200_000
        task.cancel()
        await asyncio.wait([task])
        client.reset()
        await until(lambda: made.idle)


async def test_a_long_flood_of_answers_made_here():
    """Thousands of refusals in one packet do not pile up on the stack, and leave others their turn."""
    async with stack() as made, made.client() as client:
        many = 2000
        client.writer.write(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n" * many)
        async with made.client() as other:
            assert (await other.get("/")).status == 200
        for _ in range(many):
            assert (await client.answer()).status == 405


async def waiting(made: Stack, client: RawClient, data: bytes) -> None:
    """Send a request and wait until the backend has it."""
    before = len(made.backend.seen)
    await client.send(data)
    await until(lambda: len(made.backend.seen) > before)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_cancels_its_request(how):
    """The backend's connection is closed at once, and nothing is left behind."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        left.set()

    async with stack(script) as made, made.client() as client:
        await waiting(made, client, request("/object_info"))
        assert made.metrics.in_flight == 1
        stop_the_clock(made)
        getattr(client, how)()
        await until(left.is_set)
        await until(lambda: made.idle)
        assert made.proxy.pools[0].idle == 0


async def test_a_client_that_closes_its_sending_side_has_left():
    """Most that do will read no answer, so the backend's work ends (nginx sees it so, too)."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        left.set()

    async with stack(script) as made, made.client() as client:
        await waiting(made, client, request("/object_info"))
        client.writer.write_eof()
        await until(left.is_set)
        assert await client.closed()


async def test_a_client_that_leaves_while_the_answer_flows():
    """The stream from the backend is cut, too."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.001)

    async with stack(script) as made, made.client() as client:
        await client.send(request("/"))
        await client.head()
        client.reset()
        await until(lambda: made.idle)
        await until(lambda: made.backend.left == [1])


async def test_a_submission_that_was_sent_is_settled_even_without_its_client():
    """Whether it became a job only the backend's answer says, so that is waited for."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.reply(b"{}")

    async with stack(script) as made, made.client(1) as client:
        await waiting(made, client, request("/prompt", method="POST", body=b"{}"))
        assert made.fleet.lane(1).sending == 1
        client.reset()
        await until(lambda: not made.proxy.clients)
        assert made.fleet.lane(1).sending == 1
        go.set()
        await until(lambda: made.idle)
        assert (made.fleet.lane(1).sending, made.fleet.lane(1).since) == (0, 1)
        assert made.proxy.pools[0].idle == 1


async def test_post_is_never_lost_to_a_kept_alive_connection():
    """A backend that closes an idle connection as we send costs no POST: those go on connections nobody used."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(b"ok")
        # The worst moment: the next request is on its way.
        await peer.reader.read(1)
        peer.reset()

    async with stack(script) as made, made.client() as client:
        for turn in range(30):
            assert (await client.get("/warm")).status == 200
            got = await client.get("/prompt", method="POST", body=b"{}")
            assert (got.status, got.body) == (200, b"ok"), turn
        posts = [seen for seen in made.backend.seen if seen.method == b"POST"]
        assert len(posts) == 30


async def test_get_is_sent_again_once_when_its_kept_alive_connection_was_closed():
    """On a fresh connection; counted; the client notices nothing."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(b"ok")
        await peer.reader.read(1)
        peer.reset()

    async with stack(script) as made, made.client() as client:
        for _ in range(10):
            assert (await client.get("/")).status == 200
        assert made.metrics._retried == {"reused_connection": 9}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_is_sent_again_when_the_connection_was_new(method):
    """A backend that drops a request on a fresh connection may have acted on it: 502, tried once."""

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async with stack(script) as made, made.client() as client:
        assert (await client.get("/", method=method)).status == 502
        assert len(made.backend.seen) == 1


async def test_nothing_is_sent_again_after_the_first_byte_of_an_answer():
    """Half an answer on a kept-alive connection is a broken answer."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(b"ok")
        await peer.request()
        await peer.send(b"HTTP/1.1 2")
        peer.close()

    async with stack(script) as made, made.client() as client:
        assert (await client.get("/")).status == 200
        assert (await client.get("/")).status == 502
        assert len(made.backend.seen) == 2


async def test_a_connection_that_the_backend_has_closed_is_not_used():
    """Its end is noticed while it is idle."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reply(b"ok")
        peer.close()

    async with stack(script) as made, made.client() as client:
        for turn in range(5):
            assert (await client.get("/")).status == 200
            await until(lambda: made.proxy.pools[0].idle == 0)
            assert made.backend.opened == turn + 1
        assert not made.metrics._retried


async def test_idle_connections_are_few_and_not_kept_for_long():
    """The bound and the time of kept-alive connections hold."""

    six = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if len(peer.backend.seen) == 6:
                six.set()
            await six.wait()
            await peer.reply(b"ok")

    async with stack(script, limits={"idle_connections": 2}, timeouts={"backend_idle": 15.0}) as made:
        clock = stop_the_clock(made)
        await asyncio.gather(*[one(made) for _ in range(6)])
        assert made.backend.opened == 6
        assert made.proxy.pools[0].idle == 2
        clock.advance(14.0)
        assert made.proxy.pools[0].idle == 2
        clock.advance(2.0)
        assert made.proxy.pools[0].idle == 0


async def one(made: Stack, target: str = "/") -> int:
    """One request on a connection of its own."""
    async with made.client() as client:
        return (await client.get(target)).status


async def test_the_pool_is_bounded_and_waiting_ends_in_503():
    """The request above the bound waits, gets its turn in order, or is told to come again."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.reply(b"ok")

    limits = {"pool_connections": 2, "pool_wait": 10.0}
    async with stack(script, limits=limits) as made:
        clock = stop_the_clock(made)
        async with made.client() as a, made.client() as b, made.client() as c:
            for client in (a, b):
                await waiting(made, client, request("/"))
            assert (await one_waiting(made, c)) == 1
            clock.advance(11.0)
            got = await c.answer()
            assert (got.status, got.error["type"], got.all("retry-after")) == (503, "gateway_busy", [b"1"])
            assert (await one_waiting(made, c)) == 1
            go.set()
            assert [(await client.answer()).status for client in (a, b, c)] == [200, 200, 200]
        assert made.backend.opened == 2


async def one_waiting(made: Stack, client: RawClient) -> int:
    await client.send(request("/"))
    await until(lambda: made.proxy.pools[0].waiting)
    return made.proxy.pools[0].waiting


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue():
    """Neither its place nor a connection is held for it."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.reply(b"ok")

    async with stack(script, limits={"pool_connections": 1}) as made, made.client() as a:
        await waiting(made, a, request("/"))
        async with made.client() as b:
            await one_waiting(made, b)
            b.reset()
            await until(lambda: not made.proxy.pools[0].waiting)
        go.set()
        assert (await a.answer()).status == 200
        assert len(made.backend.seen) == 1


@pytest.mark.skipif(compiled(), reason="a compiled connection cannot be changed by a test")
async def test_a_client_that_leaves_at_the_moment_of_connecting_leaves_nothing():
    """A connection that stands, but that nobody waits for any more, is closed and forgotten."""

    class Nobody:
        def connected(self, connection: BackendConnection) -> None:
            raise AssertionError("it has left")

        unconnected = connected

    async with stack() as made:
        pool = made.server.pools[0]
        tickets: list[Ticket] = []

        class Made(BackendConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                tickets[0].cancel()

        pool._make = lambda: Made(pool)
        for _ in range(3):
            tickets[:] = [pool.acquire(Nobody(), fresh=True)]
            await until(lambda: tickets[0].task is not None and tickets[0].task.done())
        await until(lambda: not pool._open and not made.proxy.deadlines._items)
        assert pool.busy == 0


async def test_a_backend_that_is_silent_is_504():
    """The time from the request to the answer's head, and between two reads of it, is bounded."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with stack(script, timeouts={"read": 0.2}) as made, made.client() as client:
        got = await client.get("/prompt", method="POST", body=b"{}")
        assert (got.status, got.error["type"]) == (504, "backend_timeout")
        assert (await client.get("/")).status == 504
        assert len(made.backend.seen) == 2


async def test_a_backend_that_falls_silent_breaks_the_answer_off():
    """In the middle of an answer there is nothing to say any more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await peer.gone()

    async with stack(script, timeouts={"read": 0.2}) as made, made.client() as client:
        got = await client.get("/")
        assert (got.body, got.complete) == (b"hello", False)


async def test_a_slow_answer_lives():
    """The time is between reads, not in all."""
    go = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            await go.acquire()
            await peer.send(b"x")

    async with stack(script, timeouts={"read": 600.0}) as made, made.client() as client:
        clock = stop_the_clock(made)
        await client.send(request("/"))
        await client.head()
        for _ in range(8):
            clock.advance(500.0)
            go.release()
            assert await client.reader.readexactly(1) == b"x"


async def test_a_backend_that_does_not_accept_is_504():
    """A full backlog is no answer: the time to connect is bounded."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        async with stack(url=url, timeouts={"connect": 0.2}) as made, made.client() as client:
            got = await client.get("/")
            assert (got.status, got.error["type"]) == (504, "backend_timeout")


async def test_an_upload_that_the_backend_does_not_take_is_504():
    """No progress for the whole of ``send`` ends the request."""

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await asyncio.Event().wait()

    async with stack(script, timeouts={"send": 0.3, "client_body": 5.0}) as made, made.client() as client:
        client.writer.write(request("/", "Content-Length: 50000000", method="POST") + bytes(50_000_000))
        got = await client.answer()
        assert (got.status, got.error["type"]) == (504, "backend_timeout")
        client.reset()


async def test_a_unix_socket_can_be_the_backend(tmp_path):
    """``unix:/path`` is a backend's address."""
    path = tmp_path / "backend.sock"

    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    server = await asyncio.start_unix_server(serve, path)
    async with stack(url=f"unix:{path}") as made, made.client() as client:
        assert (await client.get("/")).body == b"unix"
    await over.wait()
    server.close()
    await server.wait_closed()


async def test_the_backend_can_have_an_address_of_the_sixth_protocol():
    """``http://[::1]:8188`` is a backend's address, too."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    server = await asyncio.start_server(serve, "::1", 0)
    async with stack(url=f"http://[::1]:{server.sockets[0].getsockname()[1]}") as made, made.client() as client:
        assert (await client.get("/")).body == b"six"
    await over.wait()
    server.close()
    await server.wait_closed()


async def test_many_clients_at_once():
    """A hundred clients with ten requests each: everyone gets its own answers."""

    async def chat(made: Stack, number: int) -> None:
        async with made.client(number % 4) as client:
            for turn in range(10):
                body = b"%d-%d" % (number, turn)
                assert (await client.get("/", method="POST" if turn % 2 else "PUT", body=body)).body == body

    async with stack(echo, limits={"pool_connections": 20}) as made:
        await asyncio.gather(*[chat(made, number) for number in range(100)])
        assert made.proxy.pools[0].busy == 0
