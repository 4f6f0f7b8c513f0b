"""Which GPU a request is for, who may ask how often, the front door, and what is counted."""

import asyncio
import logging

import pytest

from gateway.config import Rate
from gateway.errors import NOT_FOUND, GatewayError
from gateway.request import Kind, Request
from gateway.wire.answer import Answer
from tests.doubles.bridges import echo_bytes, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import Stack, stack
from tests.doubles.wait import until

PROMPT = request("/prompt", method="POST", body=b"{}")


async def test_the_front_door_spreads_submissions_before_any_is_answered():
    """Each submission goes to the least busy lane, counted from before it is sent."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            await peer.reply(b"{}")

    async with stack(script) as made:
        clients = [made.client(None) for _ in range(8)]
        opened = [await client.__aenter__() for client in clients]
        for client in opened:
            await client.send(PROMPT)
        await until(lambda: len(made.backend.seen) == 8)
        gpus = sorted(seen.all("x-target-gpu")[0] for seen in made.backend.seen)
        assert gpus == [b"0", b"0", b"1", b"1", b"2", b"2", b"3", b"3"]
        assert [made.fleet.load(gpu) for gpu in range(4)] == [2, 2, 2, 2]
        go.set()
        for client in opened:
            assert (await client.answer()).status == 200
        assert [made.fleet.lane(gpu).since for gpu in range(4)] == [2, 2, 2, 2]
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_a_slow_body_holds_its_place():
    """Whose body is still on its way is counted already: four heads at the front door are for four lanes."""
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"{}")

    async with stack(script) as made:
        clients = [made.client(None) for _ in range(4)]
        opened = [await client.__aenter__() for client in clients]
        for client in opened:
            await client.send(PROMPT[:-2])
        await until(lambda: [made.fleet.load(gpu) for gpu in range(4)] == [1, 1, 1, 1])
        for client in opened[:3]:
            await client.send(b"{}")
            assert (await client.answer()).status == 200
        opened[3].reset()
        await until(lambda: sum(made.fleet.lane(gpu).sending for gpu in range(4)) == 0)
        assert sum(made.fleet.load(gpu) for gpu in range(4)) == 3
        for client in clients:
            await client.__aexit__(None, None, None)


async def test_an_early_refusal_is_counted_for_its_gpu():
    """What is refused at its head on a GPU's port has that GPU's label and its own kind."""

    async def script(peer: Peer) -> None:
        await peer.request()

    async with stack(script) as made, made.client(1) as client:
        await client.send(b"POST /upload/image HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
        assert (await client.answer()).status == 413
        assert b'requests_total{gpu="1",kind="upload",status="413"} 1.0' in made.metrics.text()


async def test_a_refused_submission_gives_its_place_back():
    """What the backend does not take is not counted as a job."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.reply(b"{}", status="400 Bad Request")

    async with stack(script) as made, made.client(2) as client:
        await client.send(PROMPT)
        assert (await client.answer()).status == 400
        assert made.fleet.load(2) == 0


async def test_everything_else_on_the_front_door_names_no_gpu():
    """Reads go to the backend as a whole, whatever the client claims."""
    async with stack() as made, made.client(None) as client:
        for target in ("/queue", "/gpu9/queue", "/gpu00/x", "/gpu0x", "/%67pu0/x", "/GPU0/x"):
            await client.get(target, "X-Target-Gpu: 2")
            seen = made.backend.seen[-1]
            assert seen.target == target.encode()
            assert seen.all("x-target-gpu") == []


async def test_a_prefix_without_its_slash_is_redirected():
    """The query stays."""
    async with stack() as made, made.client(None) as client:
        for target, location in (("/gpu2", b"/gpu2/"), ("/gpu0?a=%2F", b"/gpu0/?a=%2F")):
            got = await client.get(target)
            assert (got.status, got.all("location")) == (308, [location])
        assert made.backend.seen == []


async def test_a_prefix_means_nothing_on_a_gpus_port():
    """Port 8181 has no other GPUs behind paths."""
    async with stack() as made, made.client(0) as client:
        await client.get("/gpu2/x")
        seen = made.backend.seen[0]
        assert (seen.target, seen.all("x-target-gpu")) == (b"/gpu2/x", [b"0"])


async def test_own_routes_are_the_front_doors_alone():
    """They are matched on the decoded path without query; the GPU ports ask the backend."""
    asked: list[Request] = []

    async def health(request: Request) -> Answer:
        asked.append(request)
        return Answer(200, ((b"Content-Type", b"text/plain"),), b"fine")

    async with stack(own_routes={b"/health": health}, up=False) as made, made.client(None) as client:
        for target in ("/health", "/health?x", "/%68ealth"):
            got = await client.get(target, "X-Request-ID: me")
            assert (got.status, got.body, got.all("x-request-id")) == (200, b"fine", [b"me"])
        assert (asked[0].client, asked[0].gpu, asked[0].request_id) == ("127.0.0.1", None, "me")
        got = await client.get("/health", method="HEAD")
        assert got.all("content-length") == [b"4"]
        assert (await client.get("/health/")).status == 503
    async with stack(own_routes={b"/health": health}) as made:
        async with made.client(0) as client:
            assert (await client.get("/health")).body == b"ok"
        async with made.client(None) as client:
            assert (await client.get("/gpu0/health")).body == b"ok"


async def test_own_routes_that_fail_say_so(caplog):
    """A known error is its status, any other 500 with a trace in the log; the connection goes on."""

    async def missing(request: Request) -> Answer:
        raise GatewayError(NOT_FOUND, "There is no such thing.")

    async def broken(request: Request) -> Answer:
        raise ZeroDivisionError

    async with stack(own_routes={b"/a": missing, b"/b": broken}) as made, made.client(None) as client:
        assert (await client.get("/a")).error["type"] == "not_found"
        with caplog.at_level(logging.CRITICAL, "gateway.proxy"):
            assert (await client.get("/b")).error["type"] == "internal_error"
        assert (await client.get("/c")).status == 200


async def test_an_own_route_ends_with_its_client():
    """Its task is cancelled when nobody waits for it."""
    began = asyncio.Event()
    ended: list[str] = []

    async def forever(request: Request) -> Answer:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("yes")
        raise AssertionError

    async with stack(own_routes={b"/a": forever}) as made, made.client(None) as client:
        await client.send(request("/a"))
        await began.wait()
        client.reset()
        await until(lambda: ended and made.idle)


async def test_sixty_posts_at_once_are_21_and_39_on_each_gpu():
    """As nginx with rate=10r/s burst=20 nodelay; one GPU's refusals are not another's."""

    async def count(made: Stack, gpu: int | None) -> list[int]:
        async with made.client(gpu) as client:
            await client.send(PROMPT * 60)
            return [(await client.answer()).status for _ in range(60)]

    async with stack(rate={"submit": Rate(0.001, 20)}) as made:
        for gpu in (0, 1):
            statuses = await count(made, gpu)
            assert (statuses.count(200), statuses.count(429)) == (21, 39)
        assert made.metrics._denied == {("0", "submit"): 39, ("1", "submit"): 39}
        async with made.client(None) as client:
            await client.send(request("/gpu0//api/%70rompt", method="POST", body=b"{}"))
            got = await client.answer()
            assert (got.status, got.error["type"]) == (429, "rate_limited")
            assert int(got.all("retry-after")[0]) >= 1
            assert len(got.all("ratelimit")) == len(got.all("ratelimit-policy")) == 1
            await client.send(request("/gpu2/prompt", method="POST", body=b"{}"))
            assert (await client.answer()).status == 200
        assert len(made.backend.seen) == 43


async def test_a_delayed_request_waits_and_can_be_left():
    """Above the burst a handshake is held, not refused; a client that leaves meanwhile leaves nothing."""
    slow = Rate(0.01, 0, 0, refuse=False)
    async with stack(rate={"read": slow}) as made, made.client() as client:
        assert (await client.get("/queue")).status == 200
        await client.send(request("/queue"))
        await until(lambda: made.metrics.in_flight == 1)
        assert len(made.backend.seen) == 1
        client.reset()
        await until(lambda: made.idle)
        assert len(made.backend.seen) == 1
    async with stack(rate={"read": Rate(5, 0, 0, refuse=False)}) as made, made.client() as client:
        assert [(await client.get("/queue")).status for _ in range(3)] == [200, 200, 200]


async def test_requests_are_counted_with_gpu_kind_and_status():
    """Bytes, times and statuses end in the metrics, once per request."""
    async with stack() as made:
        async with made.client(1) as client:
            await client.get("/view?x", method="GET")
            await client.get("/prompt", method="POST", body=b"12345")
        async with made.client(None) as client:
            await client.get("/")
            await client.send(b"nonsense\r\n\r\n")
            await client.answer()
        counted = made.metrics._requests
        assert counted[("1", Kind.READ, 200)] == 1
        assert counted[("1", Kind.SUBMIT, 200)] == 1
        assert counted[("front", Kind.UI, 200)] == 1
        assert counted[("front", Kind.READ, 400)] == 1
        assert made.metrics._received["1"] == 5
        assert made.metrics._sent["1"] == 2 + 5
        assert made.metrics.in_flight == 0


async def test_one_line_per_request_in_the_access_log(caplog):
    """Also for those that left; what clients send cannot make a second line."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    with caplog.at_level(logging.INFO, "gateway.access"):
        async with stack() as made, made.client(3) as client:
            await client.get('/a"\\', "X-Request-ID: me")
            await client.send(b"GET /\x1b[31m HTTP/1.1\r\n\r\n")
            await client.answer()
        async with stack(script) as made, made.client(0) as client:
            await client.send(request("/left"))
            await until(lambda: made.backend.seen)
            client.reset()
            await until(lambda: made.idle)
    lines = [line for record in caplog.records for line in record.getMessage().split("\n")]
    assert len(lines) == 3
    assert '"GET /a\\x22\\x5c" 200' in lines[0]
    assert "gpu=3" in lines[0]
    assert "id=me" in lines[0]
    assert " 400 " in lines[1]
    assert "/left" in lines[2]
    assert " 499 " in lines[2]


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_access_log_can_be_off(caplog, wanted):
    """Nothing is made that nobody wants."""
    with caplog.at_level(logging.INFO, "gateway.access"):
        async with stack(log={"access": wanted}) as made, made.client() as client:
            await client.get("/")
    assert bool(caplog.records) == wanted


async def test_a_client_cannot_choose_the_bucket_it_is_counted_in():
    """Inventing an address for each request changes nothing; behind a trusted proxy each address has its own."""

    async def statuses(made: Stack) -> list[int]:
        async with made.client() as client:
            return [(await client.get("/queue", f"X-Forwarded-For: 6.6.6.{number}")).status for number in range(4)]

    rate = {"read": Rate(0.001, 1)}
    async with stack(rate=rate) as made:
        assert await statuses(made) == [200, 200, 429, 429]
    async with stack(rate=rate, forwarded={"trusted_proxies": ("127.0.0.1/32",)}) as made:
        assert await statuses(made) == [200] * 4


async def test_the_number_of_metrics_does_not_grow_with_what_clients_send():
    """Paths, methods, ids and statuses that nobody has seen before make no new series."""

    async def script(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            await peer.reply(status=f"{600 + int(seen.target.split(b'/')[1]) % 300} Odd")

    async with stack(script) as made, made.client() as client:
        for number in range(3):
            await client.get(f"/{number}/x", method="BREW")
        before = made.metrics.text().count(b"\n")
        for number in range(300):
            await client.get(f"/{number}/x", f"X-Request-ID: id{number}", method="BREW" + "X" * (number % 20))
        assert made.metrics.text().count(b"\n") == before


async def test_a_bridge_is_in_the_access_log_when_it_opens_and_when_it_ends(caplog):
    """Two lines with one id: the second says what has passed."""
    with caplog.at_level(logging.INFO, "gateway.access"):
        async with stack(echo_bytes) as made, made.client(1) as client:
            await opened(client, "/ws?clientId=me", "X-Request-ID: mine")
            await client.send(b"hello")
            assert await client.reader.readexactly(5) == b"hello"
            client.close()
            await until(lambda: not made.proxy.bridges.open)
    lines = [line for record in caplog.records for line in record.getMessage().split("\n")]
    assert [" 101 in=0 out=0 " in lines[0], " 101 in=5 out=5 " in lines[1]] == [True, True]
    assert all("id=mine" in line and "gpu=1" in line for line in lines)
    assert lines[1].endswith("bridge closed")


async def test_own_routes_are_answered_while_all_connections_are_taken():
    """What the gateway knows itself needs no backend."""

    async def health(request: Request) -> Answer:
        return Answer(200, (), b"fine")

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    limits = {"pool_connections": 1}
    async with stack(script, own_routes={b"/health": health}, limits=limits) as made, made.client() as hung:
        await hung.send(request("/object_info"))
        await until(lambda: made.proxy.pools[0].busy == 1)
        async with made.client(None) as client:
            assert (await client.get("/health")).body == b"fine"
