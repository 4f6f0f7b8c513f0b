"""Bodies end where they end, however their bytes come, and broken ones are never taken for whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.body import Body, BodyError, Chunked, Counted, UntilClose, chunk, last_chunk
from tests.gateway.wire.feeding import feed_every_way


def read(body: Body, pieces: list[bytes]) -> tuple[bytes, bool, bytes, list[tuple[bytes, bytes]]]:
    """Feed pieces until the body is done: payload, whether it is, what is left over, trailers."""
    payload, rest = b"", b""
    for piece in pieces:
        if body.done:
            rest += piece
        else:
            payload += body.feed(piece)
    return payload, body.done, body.rest + rest, body.trailers


@pytest.mark.parametrize("tail", [b"", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_counted_body_has_its_length(tail):
    """Not a byte more, not one less."""
    assert feed_every_way(b"hello" + tail, lambda pieces: read(Counted(5), pieces)) == (b"hello", True, tail, [])


def test_a_counted_body_that_is_short_is_not_done():
    """And an empty one is at once."""
    assert feed_every_way(b"hell", lambda pieces: read(Counted(5), pieces)) == (b"hell", False, b"", [])
    assert Counted(0).done


@pytest.mark.parametrize("tail", [b"", b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize(
    ("data", "payload", "trailers"),
    [
        (b"0\r\n\r\n", b"", []),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
        (b"00005\r\nhello\r\n00\r\n\r\n", b"hello", []),
        (b"5;a=b\r\nhello\r\n6 ; c\r\n world\r\n0;x\r\n\r\n", b"hello world", []),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, []),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", []),
        (b"1\r\nx\r\n0\r\nX-A: 1 \r\nX-B:\t\r\n\r\n", b"x", [(b"X-A", b"1"), (b"X-B", b"")]),
    ],
)
def test_chunks_are_read(data, payload, trailers, tail):
    """Sizes, extensions, trailers; what follows is left alone."""
    assert feed_every_way(data + tail, lambda pieces: read(Chunked(), pieces)) == (payload, True, tail, trailers)


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"00000000000000005\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5;a=\x00\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5;" + b"a" * 600 + b"\r\nhello\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\n: 1\r\n\r\n",
        b"0\r\nX: 1\r\n 2\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\n" + b"X: 1\r\n" * 65 + b"\r\n",
        b"0\r\n" + b"X: %b\r\n" % (b"a" * 9000) + b"\r\n",
        b"0\r\n" + b"X: %b\r\n" % (b"a" * 3000) * 3 + b"\r\n",
        b"g\r\n",
    ],
)
def test_broken_chunks_are_errors(data):
    """However they come."""

    def outcome(pieces: list[bytes]) -> str:
        try:
            read(Chunked(), pieces)
        except BodyError:
            return "refused"
        return "taken"

    whole = outcome([data])
    single = outcome([data[at : at + 1] for at in range(len(data))])
    assert (whole, single) == ("refused", "refused")


def test_a_body_until_the_end_is_never_done():
    """Only its connection can say so."""
    assert read(UntilClose(), [b"a", b"b"]) == (b"ab", False, b"", [])


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.binary(max_size=20), st.integers(1, 30))
def test_what_we_frame_we_read(parts, tail, step):
    """Our own chunks give the payload back, at any granularity, and leave the tail."""
    data = b"".join(chunk(part) for part in parts) + last_chunk([(b"X-T", b"1")]) + tail
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert read(Chunked(), pieces) == (b"".join(parts), True, tail, [(b"X-T", b"1")])


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"\r\n", b"5", b"0", b";", b"0\r\n\r\n"])), max_size=10)
)
def test_any_bytes_are_taken_or_refused(pieces):
    """Never another exception."""
    try:
        read(Chunked(), pieces)
    except BodyError:
        return
