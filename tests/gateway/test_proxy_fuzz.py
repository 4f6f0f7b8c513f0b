"""Whatever bytes come: an answer or a close; never another exception, never a hang, nothing left behind."""

import asyncio
import contextlib
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import stack
from tests.doubles.wait import until

TOKENS = [
    b"GET ",
    b"POST ",
    b"/",
    b"/prompt",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Host: a\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"abc",
    b"\n",
    b"\r",
    b"\x00",
    b":",
    b" ",
]
ANSWER_TOKENS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    b"HTTP/1.0 204 None\r\n",
    *TOKENS[7:9],
    *TOKENS[10:],
]


def streams(tokens: list[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Packets put together from what matters, and from anything."""
    return st.lists(st.one_of(st.sampled_from(tokens), st.binary(max_size=20)), max_size=12)


class Errors(logging.Handler):
    """Collects what asyncio and the gateway log as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextlib.contextmanager
def no_errors():
    """Fail when anything was logged as an error, uncaught exceptions in callbacks included."""
    errors = Errors()
    for name in ("asyncio", "gateway"):
        logging.getLogger(name).addHandler(errors)
    try:
        yield
    finally:
        for name in ("asyncio", "gateway"):
            logging.getLogger(name).removeHandler(errors)
    assert errors.found == []


async def whatever_the_client_sends(pieces: list[bytes]) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.reply(b"ok")

    async with stack(script) as made:
        async with made.client() as client:
            with contextlib.suppress(OSError):
                await client.send(*pieces)
                client.writer.write_eof()
            data = await client.rest()
            assert not data or data.startswith(b"HTTP/1.1 ")
        await until(lambda: made.idle and not made.proxy.clients)


async def whatever_the_backend_sends(pieces: list[bytes]) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        for piece in pieces:
            await peer.send(piece)
        peer.close()

    async with stack(script, timeouts={"read": 1.0}) as made, made.client() as client:
        await client.send(request("/", "Connection: close"))
        data = await client.rest()
        assert data.startswith(b"HTTP/1.1 ")
        await until(lambda: made.idle)


@pytest.mark.parametrize("new_loop", ["uvloop", "asyncio"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=streams(TOKENS))
def test_any_request_bytes(new_loop, pieces):
    """A client may send anything."""
    run(new_loop, whatever_the_client_sends(pieces))


@pytest.mark.parametrize("new_loop", ["uvloop", "asyncio"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=streams(ANSWER_TOKENS))
def test_any_answer_bytes(new_loop, pieces):
    """A backend may send anything."""
    run(new_loop, whatever_the_backend_sends(pieces))


def run(name, work):
    """Run a coroutine on one of the two loops, with all errors seen."""
    import uvloop  # noqa: PLC0415 - where it is missing, only this test cannot run

    factory = uvloop.new_event_loop if name == "uvloop" else asyncio.SelectorEventLoop
    with no_errors(), asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
