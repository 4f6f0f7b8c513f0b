"""Heads: what they say about framing and connections, and that no two readers can read them differently."""

import contextlib

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.wire.head import (
    RequestReader,
    block_of,
    check_unfinished,
    check_unfinished_answer,
    pairs_of,
    read_answer,
    tokens,
)


def read(data: bytes):
    """Read one request head with the usual limits."""
    return RequestReader(max_line=1000, max_fields=20).read(data, len(data))


def get(*lines: bytes, line: bytes = b"GET / HTTP/1.1"):
    """A request with ``Host`` and these lines."""
    return read(b"\r\n".join([line, b"Host: a", *lines]) + b"\r\n\r\n")


def answer(*lines: bytes, line: bytes = b"HTTP/1.1 200 OK"):
    """An answer with these lines."""
    data = b"\r\n".join([line, *lines]) + b"\r\n\r\n"
    return read_answer(data, len(data), 20)


@pytest.mark.parametrize(
    ("lines", "line", "keep"),
    [
        ([], b"GET / HTTP/1.1", True),
        ([b"Connection: close"], b"GET / HTTP/1.1", False),
        ([b"Connection: X, Close"], b"GET / HTTP/1.1", False),
        ([b"Connection: X", b"connection: ,close ,"], b"GET / HTTP/1.1", False),
        ([b"Connection: closed"], b"GET / HTTP/1.1", True),
        ([], b"GET / HTTP/1.0", False),
        ([b"Connection: keep-alive"], b"GET / HTTP/1.0", True),
        ([b"Connection: keep-alive, close"], b"GET / HTTP/1.0", False),
    ],
)
def test_keep_alive(lines, line, keep):
    """RFC 9112 §9.3."""
    assert get(*lines, line=line).keep_alive == keep


@pytest.mark.parametrize(
    ("lines", "length", "chunked"),
    [
        ([], None, False),
        ([b"Content-Length: 0"], 0, False),
        ([b"content-length:5\t"], 5, False),
        ([b"Transfer-Encoding:\tCHUNKED "], None, True),
    ],
)
def test_framing(lines, length, chunked):
    """How long the body is."""
    head = get(*lines)
    assert (head.fields.length, head.fields.chunked) == (length, chunked)
    assert head.has_body == bool(length or chunked)


@pytest.mark.parametrize("length", [b"+5", b"5,5", b"5, 5", b"0x5", b"-1", b"1_0", b"", b"5 5", b"\xb2", b"9" * 19])
def test_no_other_length_is_one(length):
    """Digits, and not too many."""
    with pytest.raises(GatewayError) as error:
        get(b"Content-Length: " + length)
    assert error.value.kind.status == 400
    with pytest.raises(GatewayError) as error:
        answer(b"Content-Length: " + length)
    assert error.value.kind.status == 502


def test_upgrades_are_websockets_only():
    """One token, named by Connection, on a GET of HTTP/1.1."""
    assert get(b"Connection: x, UPGRADE", b"Upgrade: WebSocket").fields.upgrade
    for lines, line in [
        ([b"Upgrade: websocket"], b"GET / HTTP/1.1"),
        ([b"Connection: upgrade", b"Upgrade: h2c"], b"GET / HTTP/1.1"),
        ([b"Connection: upgrade", b"Upgrade: websocket, h2c"], b"GET / HTTP/1.1"),
        ([b"Connection: upgrade", b"Upgrade: websocket"], b"POST / HTTP/1.1"),
        ([b"Connection: upgrade", b"Upgrade: websocket"], b"GET / HTTP/1.0"),
    ]:
        assert not get(*lines, line=line).fields.upgrade


def test_a_connection_that_repeats_itself_is_read_once():
    """Equal lines give the same object, whatever the request line; others do not."""
    reader = RequestReader(max_line=1000, max_fields=20)

    def one(line: bytes, value: bytes):
        data = line + b" HTTP/1.1\r\nHost: a\r\nX: " + value + b"\r\n\r\n"
        return reader.read(data, len(data)).fields

    first = one(b"GET /a", b"1")
    assert one(b"POST /b", b"1") is first
    assert one(b"POST /b", b"2") is not first
    assert one(b"GET /a", b"a" * 3000) is not one(b"GET /a", b"a" * 3000)


def test_special_requests_do_not_spoil_the_memory():
    """An absolute target or HTTP/1.0 changes the fields of its own request only."""
    reader = RequestReader(max_line=1000, max_fields=20)
    lines = b"\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: 1\r\n\r\n"

    def one(line: bytes):
        return reader.read(line + lines, len(line + lines))

    assert one(b"GET / HTTP/1.1").fields.upgrade
    assert not one(b"POST / HTTP/1.1").fields.upgrade
    absolute = one(b"GET http://b/x HTTP/1.1")
    assert (absolute.target, absolute.fields.host) == (b"/x", b"b")
    assert absolute.fields.pairs[0] == (b"Host", b"b")
    assert (b"X", b"1") in absolute.fields.pairs
    assert not one(b"GET / HTTP/1.0").fields.upgrade
    again = one(b"GET / HTTP/1.1")
    assert again.fields.upgrade
    assert again.fields.host == b"a"


def test_blocks_and_pairs_are_the_same_thing():
    """Fields survive being taken apart and put together."""
    pairs = [(b"A", b"1"), (b"a", b""), (b"B", b"x: y")]
    assert pairs_of(block_of(pairs)) == pairs
    assert pairs_of(block_of([])) == []


@pytest.mark.parametrize("data", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r", b"P"])
def test_unfinished_heads_may_go_on(data):
    """What can still become a head is not refused."""
    check_unfinished(data, len(data), max_head=100, max_line=50)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 200, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 200, 431),
        (b"GET / HTTP/1.1\nHost: a", 400),
        (b"GET / HTTP/1.1\rHost: a", 400),
        (b"\x16\x03\x01", 400),
        (b"get /", 400),
    ],
)
def test_unfinished_heads_that_are_none(data, status):
    """What can never become a head is refused before it is complete."""
    with pytest.raises(GatewayError) as error:
        check_unfinished(data, len(data), max_head=100, max_line=50)
    assert error.value.kind.status == status


def test_unfinished_answers():
    """The same for the backend."""
    check_unfinished_answer(b"HTTP/1.", 100)
    check_unfinished_answer(b"HTTP/1.1 200 OK\r\nX", 100)
    for data in (b"HTTQ", b"HTTP/2 200", b"HTTP/1.1 200 OK\nX", b"HTTP/1.1 200 OK\r\n" + b"X" * 100):
        with pytest.raises(GatewayError):
            check_unfinished_answer(data, 100)


def test_answers_say_when_their_connection_ends():
    """RFC 9112 §9.3, the other direction; several Connection fields count as one."""
    assert answer().keep_alive
    assert not answer(b"Connection: close").keep_alive
    assert not answer(b"Connection: x", b"Connection: close").keep_alive
    assert not answer(line=b"HTTP/1.0 200 OK").keep_alive
    assert answer(b"Connection: keep-alive", line=b"HTTP/1.0 200 OK").keep_alive
    assert answer(b"Connection: x", b"Connection: y").connection == {b"x", b"y"}


def test_reasons_are_kept():
    """Also none, and strange ones."""
    assert answer(line=b"HTTP/1.1 299 Caf\xe9 is fine").reason == b"Caf\xe9 is fine"
    assert answer(line=b"HTTP/1.1 200 ").reason == answer(line=b"HTTP/1.1 200").reason == b""


def test_tokens_are_lists():
    """RFC 9110 §5.6.1: empty members do not count."""
    assert tokens(b" a ,, B\t,") == [b"a", b"b"]


names = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"X-A",
        b"TE",
        b"Upgrade",
        b"x_target_gpu",
        b"A b",
        b"",
    ]
)
values = st.one_of(
    st.sampled_from([b"a", b"5", b"chunked", b"close", b"gzip, chunked", b"websocket"]), st.binary(max_size=12)
)
separators = st.sampled_from([b": ", b":", b" :", b":\t", b""])
ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\n "])
some_lines = st.lists(st.tuples(names, separators, values, ends).map(b"".join), max_size=6)


class Listener:
    """What llhttp makes of the same bytes."""

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.done = True


@given(some_lines)
def test_what_we_take_llhttp_takes_alike(lines):
    """Accepted heads have the same fields for us and for llhttp, and the same framing."""
    data = b"GET / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n"
    end = data.find(b"\r\n\r\n") + 4
    try:
        head = RequestReader(max_line=1000, max_fields=20).read(data[:end], end)
    except GatewayError:
        return
    listener = Listener()
    with contextlib.suppress(httptools.HttpParserUpgrade):
        httptools.HttpRequestParser(listener).feed_data(data[:end])
    assert listener.done
    assert [pair for pair in listener.pairs if pair[0].lower() != b"expect"] == head.fields.pairs
    lengths = [value for name, value in listener.pairs if name.lower() == b"content-length"]
    assert [head.fields.length] == [int(value) for value in lengths] or not lengths
    assert head.fields.chunked == any(name.lower() == b"transfer-encoding" for name, _ in listener.pairs)


@given(some_lines, st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 204\r\n", b"HTTP/1.1 99\r\n", b"\r\n"]))
def test_any_answer_is_taken_or_502(lines, line):
    """Never another exception."""
    data = line + b"".join(lines) + b"\r\n\r\n"
    end = data.find(b"\r\n\r\n") + 4
    refused: GatewayError | None = None
    try:
        read_answer(data, end, 20)
    except GatewayError as error:
        refused = error
    assert refused is None or refused.kind.status == 502
