"""What an answer allows."""

import pytest

from gateway.cache.worth import Worth, worth_of
from gateway.wire.head import read_answer

DATE = b"Date: Sat, 21 Nov 2026 12:00:00 GMT"
OLD = b"Last-Modified: Sat, 21 Nov 2026 11:50:00 GMT"
ETAG = b'ETag: "a"'


def worth(*lines: bytes, status: bytes = b"200 OK", listing: bool = False, length: bytes = b"2") -> Worth | None:
    head = b"\r\n".join((b"HTTP/1.1 " + status, b"Content-Length: " + length, *lines)) + b"\r\n\r\n"
    return worth_of(read_answer(head, len(head), 100), listing=listing)


def lifetime(*lines: bytes) -> float:
    found = worth(ETAG, *lines)
    assert found is not None
    return found.lifetime


@pytest.mark.parametrize(
    "line",
    [
        b"Set-Cookie: a=b",
        b"Cache-Control: private, max-age=9",
        b"Cache-Control: no-store",
        b"Cache-Control: No-Store, must-revalidate",
        b"Content-Encoding: gzip",
        b"Content-Range: bytes 0-1/2",
        b"Content-Location: /x",
        b"Refresh: 3",
        b"Vary: *",
        b"Vary: User-Agent",
        b"Vary: Accept-Encoding, Origin",
    ],
)
def test_what_is_somebodys_own_is_not_kept(line: bytes):
    """Cookies, private and unstorable answers, parts, and those that vary with what is not looked at."""
    assert worth(ETAG, line) is None
    assert worth(ETAG, line, listing=True) is None


@pytest.mark.parametrize("status", [b"206 Partial Content", b"301 Moved", b"404 Not Found", b"500 Oops", b"203 X"])
def test_only_a_200_is_kept(status: bytes):
    """Errors and the like are for now."""
    assert worth(ETAG, status=status) is None


def test_a_file_needs_something_to_ask_by():
    """Without validator and lifetime it could never be used; a listing is named by its bytes."""
    assert worth() is None
    assert worth(listing=True) is not None
    assert worth(ETAG) is not None
    assert worth(OLD) is not None
    assert worth(b"Cache-Control: max-age=5") is not None


def test_a_body_of_unknown_length_is_not_kept():
    """Nobody can say beforehand whether there is room for it."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + ETAG + b"\r\n\r\n"
    assert worth_of(read_answer(head, len(head), 100), listing=False) is None


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ((), 0),
        ((DATE, OLD), 60),
        ((OLD,), 0),
        ((DATE, OLD, b"Cache-Control: no-cache"), 0),
        ((DATE, OLD, b"Cache-Control: public"), 0),
        ((DATE, OLD, b"Pragma: no-cache"), 0),
        ((b"Cache-Control: max-age=30",), 30),
        ((b"Cache-Control: max-age=30, s-maxage=5",), 5),
        ((b"Cache-Control: max-age=30", b"Age: 10"), 20),
        ((b"Cache-Control: max-age=30", b"Age: 100"), 0),
        ((b"Cache-Control: max-age=30", b"Age: 0, 0"), 0),
        ((b"Cache-Control: max-age=30", b"Age: 0", b"Age: 0"), 0),
        ((b"Cache-Control: max-age=30", b"Age: -5"), 0),
        ((b"Cache-Control: max-age=x",), 0),
        ((b"Cache-Control: max-age=-1",), 0),
        ((b'Cache-Control: max-age="30"',), 30),
        ((DATE, b"Expires: Sat, 21 Nov 2026 12:00:40 GMT"), 40),
        ((DATE, b"Expires: 0"), 0),
        ((DATE, b"Expires: Sat, 21 Nov 2026 11:00:00 GMT"), 0),
        ((b"Expires: Sat, 21 Nov 2026 12:00:40 GMT",), 0),
        ((DATE, b"Expires: Sat, 21 Nov 2026 12:00:40 GMT", b"Cache-Control: max-age=7"), 7),
    ],
)
def test_how_long_it_holds(lines: tuple[bytes, ...], seconds: float):
    """What the backend says; when it says nothing, a tenth of the file's age; in doubt, not at all."""
    assert lifetime(*lines) == seconds
