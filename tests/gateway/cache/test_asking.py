"""What a request wants of a shared answer, read off its lines."""

import pytest

from gateway.cache.asking import Group, accepts_gzip, group_of, matches, read
from gateway.request import Kind, classify

BASE = b"Host: gate:8181\r\nUser-Agent: x\r\n"


def lines(*more: bytes) -> bytes:
    return BASE + b"".join(line + b"\r\n" for line in more)


@pytest.mark.parametrize(
    ("target", "file", "listing"),
    [
        (b"/", True, False),
        (b"/assets/lib/primevue/button/index.mjs", True, False),
        (b"/assets/index-BKeTeXLp.js?v=1", True, False),
        (b"/extensions/core/a%20b.js", True, False),
        (b"/user.css", True, False),
        (b"/object_info", False, True),
        (b"/api/object_info", False, True),
        (b"/api/object_info/KSampler", False, True),
        (b"/api/models", False, True),
        (b"/api/models/loras", False, True),
        (b"/embeddings", False, True),
        (b"/extensions", False, True),
        (b"/object_info?x=1", False, False),
        (b"/api/userdata/user.css", False, False),
        (b"/userdata/workflows%2Fa.json", False, False),
        (b"/view?filename=a.png", False, False),
        (b"/api/view?filename=a.png&type=output", False, False),
        (b"/history", False, False),
        (b"/queue", False, False),
        (b"/system_stats", False, False),
        (b"/settings", False, False),
        (b"/assets/../userdata/a.json", False, False),
        (b"/assets/no-suffix", False, False),
    ],
)
def test_only_web_files_and_listings_are_shared(target: bytes, file: bool, listing: bool):
    """What a user made, what has a name that is used again, and what changes by itself is never shared."""
    kind = classify(b"GET", target, upgrade=False)
    assert group_of(kind, target) is (Group.FILE if file else Group.LISTING if listing else None)


def test_writes_are_no_listings():
    """Only reads are looked at."""
    assert group_of(Kind.CONTROL, b"/object_info") is None
    assert group_of(Kind.UPLOAD, b"/assets/a.js") is None


def test_browsers_that_differ_in_nothing_that_counts_share():
    """Another browser, language, referring page or address asks for the same answer."""
    one = read(lines(b"Accept: */*", b"Referer: http://gate:8181/", b"X-Real-IP: 10.0.0.1", b"sec-fetch-dest: script"))
    two = read(lines(b"Accept-Language: de", b'If-None-Match: "a"', b"X-Real-IP: 10.0.0.2", b"Cache-Control: no-cache"))
    assert one is not None
    assert two is not None
    assert one.key == two.key


@pytest.mark.parametrize(
    "line",
    [b"Cookie: session=1", b"Comfy-User: ann", b"X-Api-Key: k", b"Sec-Fetch-Site: cross-site", b"X-Unknown: 1",
     b"Origin: http://elsewhere"],
)
def test_whoever_may_get_another_answer_does_not_share(line: bytes):
    """Cookies, users, foreign pages and every field that is not known to be harmless keep answers apart."""
    plain, special = read(lines()), read(lines(line))
    assert plain is not None
    assert special is not None
    assert plain.key != special.key


def test_own_origin_is_no_difference():
    """A page's own scripts come with Origin or without, on any of the ports."""
    plain = read(lines())
    own = read(lines(b"Origin: http://gate:8181"))
    other_port = read(b"Host: gate:8182\r\nUser-Agent: x\r\nOrigin: http://gate:8182\r\n")
    assert plain is not None
    assert own is not None
    assert other_port is not None
    assert plain.key == own.key == other_port.key


@pytest.mark.parametrize(
    "line", [b"Authorization: Bearer x", b"Range: bytes=0-1", b"If-Match: \"a\"", b"If-Unmodified-Since: x",
             b"Cache-Control: no-store"]
)
def test_what_the_backend_must_judge_itself_is_not_shared(line: bytes):
    """Credentials, parts and preconditions go to the backend."""
    assert read(lines(line)) is None


def test_a_range_of_a_weak_form_is_the_whole():
    """If-Range with a weak ETag matches nothing, so that the range does not count (RFC 9110 §13.1.5)."""
    asking = read(lines(b"Range: bytes=5-", b'If-Range: W/"a"'))
    assert asking is not None
    assert b"Range" not in asking.lines
    assert read(lines(b"Range: bytes=5-", b'If-Range: "a"')) is None


def test_the_backend_is_asked_for_the_whole_and_plain_answer():
    """One client's conditions and codings are not those of the others."""
    asking = read(lines(b"Accept-Encoding: br", b'If-None-Match: "a"', b"If-Modified-Since: x", b"Cookie: a=b"))
    assert asking is not None
    assert asking.lines == lines(b"Cookie: a=b", b"Accept-Encoding: identity")


@pytest.mark.parametrize(
    ("line", "anew"),
    [
        (b"Cache-Control: no-cache", True),
        (b"cache-control: max-age=0, No-Cache", True),
        (b"Pragma: no-cache", True),
        (b"Cache-Control: max-age=5", False),
        (b"X: no-cache", False),
    ],
)
def test_a_refresh_is_seen(line: bytes, anew: bool):
    """The frontend's refresh and a browser's hard reload say no-cache."""
    asking = read(lines(line))
    assert asking is not None
    assert asking.asks_anew is anew


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (b"gzip, deflate, br", True),
        (b"br;q=1.0, gzip;q=0.8", True),
        (b"x-gzip", True),
        (b"*", True),
        (b"GZIP", True),
        (b"", False),
        (b"identity", False),
        (b"gzip;q=0", False),
        (b"gzip;q=0.000", False),
        (b"br, deflate", False),
        (b"notgzip", False),
        (b"gzipped", False),
    ],
)
def test_gzip_is_for_those_who_accept_it(value: bytes, accepted: bool):
    """A weight of zero is a no."""
    assert accepts_gzip(value) is accepted


@pytest.mark.parametrize(
    ("none_match", "etag", "found"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'"x", W/"a" , "y"', b'"a"', True),
        (b"*", b'"a"', True),
        (b'"ab"', b'"a"', False),
        (b"a", b'"a"', False),
        (b'"a"', b"", False),
    ],
)
def test_etags_are_compared_weakly(none_match: bytes, etag: bytes, found: bool):
    """Whether a client has it does not depend on the coding in which it got it."""
    assert matches(none_match, etag) is found
