"""Fields on their way through: what is taken out, whatever its spelling, and what must stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.fields import (
    HOP_BY_HOP,
    OWN,
    answer_lines,
    clean_trailers,
    forwarding_lines,
    is_sane_id,
    request_lines,
    under_prefix,
    values_of,
)
from gateway.wire.head import RequestReader, read_answer


def outgoing(*lines: bytes) -> bytes:
    """A client's lines as they go on."""
    data = b"\r\n".join([b"GET / HTTP/1.1", b"Host: a", *lines]) + b"\r\n\r\n"
    return request_lines(RequestReader(max_line=1000, max_fields=100).read(data, len(data)).fields)


def returning(*lines: bytes, drop_length: bool = False) -> bytes:
    """A backend's lines as they come back."""
    data = b"\r\n".join([b"HTTP/1.1 200 OK", *lines]) + b"\r\n\r\n"
    return answer_lines(read_answer(data, len(data), 100), drop_length=drop_length)


def cased(name: bytes) -> st.SearchStrategy[bytes]:
    """Every spelling of a name in letters of either case, and with underscores for dashes."""
    letters = [
        st.sampled_from([b"-", b"_"]) if c == 45 else st.sampled_from([bytes([c]).lower(), bytes([c]).upper()])
        for c in name
    ]
    return st.tuples(*letters).map(b"".join)


@given(st.sampled_from(sorted(OWN)).flatmap(cased), st.booleans())
def test_no_spelling_of_our_own_fields_passes(name, nominate):
    """The quick way and the thorough one agree."""
    lines = [b"X-A: 1", name + b": 9", *([b"Connection: x-b"] if nominate else [])]
    assert outgoing(*lines) == b"Host: a\r\nX-A: 1\r\n"


@given(st.sampled_from(sorted(HOP_BY_HOP - {b"transfer-encoding"})), st.booleans())
def test_no_hop_by_hop_field_passes(name, nominate):
    """In either direction, whatever else is nominated."""
    value = b"h2c" if name == b"upgrade" else b"x-b" if nominate else b"close"
    lines = [b"X-A: 1", name.title() + b":" + value, b"X-B: 2", *([b"Connection: x-b"] if nominate else [])]
    gone = nominate or (name == b"connection" and value == b"x-b")
    kept = b"X-A: 1\r\n" + (b"" if gone else b"X-B: 2\r\n")
    assert outgoing(*lines) == b"Host: a\r\n" + kept
    assert returning(*lines) == b"\r\n" + kept


def test_what_is_kept_is_kept_byte_for_byte():
    """Order, case, duplicates and spacing; names that only look like ours pass."""
    lines = [
        b"x-a:1",
        b"X-A:  2 ",
        b"X-Target-Gpus: 1",
        b"XX-Target-Gpu: 1",
        b"Tea: 1",
        b"Hosts: b",
        b"Accept: te: chunked",
    ]
    assert outgoing(*lines) == b"\r\n".join([b"Host: a", *lines]) + b"\r\n"
    assert returning(*lines) == b"\r\n" + b"\r\n".join(lines) + b"\r\n"


def test_what_makes_the_message_cannot_be_nominated():
    """Host and the length stay whatever Connection says."""
    lines = [b"Connection: host, content-length, x-a", b"Content-Length: 5", b"X-A: 1"]
    assert outgoing(*lines) == b"Host: a\r\nContent-Length: 5\r\n"
    assert returning(*lines) == b"\r\nContent-Length: 5\r\n"


def test_lengths_are_dropped_where_there_is_no_body():
    """204 has none."""
    assert returning(b"Content-Length: 0", b"X-A: 1", drop_length=True) == b"\r\nX-A: 1\r\n"
    assert returning() == b"\r\n"


@pytest.mark.parametrize(
    "name", [b"X-Target-Gpu", b"x_target_gpu", b"Host", b"CONTENT-LENGTH", b"Connection", b"Cookie"]
)
def test_trailers_do_not_steer(name):
    """They may only carry what nobody acts upon."""
    assert clean_trailers([(name, b"1"), (b"X-Sum", b"7")]) == [(b"X-Sum", b"7")]


def test_forwarding_fields():
    """All of them, the host only where there is one."""
    lines = forwarding_lines(client=b"1.2.3.4", chain=b"5.6.7.8, 1.2.3.4", proto=b"http", host=b"")
    assert lines == b"X-Real-IP: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8, 1.2.3.4\r\nX-Forwarded-Proto: http\r\n"
    assert forwarding_lines(client=b"a", chain=b"a", proto=b"http", host=b"h:1").endswith(b"X-Forwarded-Host: h:1\r\n")


def test_values_of_a_field():
    """All of them, in order, whatever the case of the name."""
    assert values_of([(b"A", b"1"), (b"b", b"2"), (b"a", b"3")], b"a") == [b"1", b"3"]


@pytest.mark.parametrize(
    ("value", "sane"), [(b"a-b_c.9", True), (b"a" * 128, True), (b"", False), (b"a" * 129, False), (b"a\n", False)]
)
def test_sane_ids(value, sane):
    """Letters, digits and three signs, up to 128."""
    assert is_sane_id(value) == sane


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"Location: /x?y#z", b"Location: /gpu1/x?y#z"),
        (b"location:/", b"location:/gpu1/"),
        (b"Location: http://Gate:8181/x", b"Location: http://Gate:8181/gpu1/x"),
        (b"Location: //gate:8181/x", b"Location: //gate:8181/gpu1/x"),
        (b"Location: https://gate:8181", b"Location: https://gate:8181/gpu1"),
        (b"Location: http://other/x", b"Location: http://other/x"),
        (b"Location: //other/x", b"Location: //other/x"),
        (b"Location: http://gate:81/x", b"Location: http://gate:81/x"),
        (b"Location: x/y", b"Location: x/y"),
        (b"Location: ?a=/b", b"Location: ?a=/b"),
        (b"Location: ", b"Location: "),
        (b"Content-Location: /x", b"Content-Location: /gpu1/x"),
        (b"Refresh: 5", b"Refresh: 5"),
        (b"Refresh: 5; url=/x", b"Refresh: 5; url=/gpu1/x"),
        (b"Refresh: 0;URL='/x'", b"Refresh: 0;URL='/gpu1/x'"),
        (b"Refresh: 1, url=http://other/x", b"Refresh: 1, url=http://other/x"),
        (b"Set-Cookie: a=b", b"Set-Cookie: a=b"),
        (b"Set-Cookie: a=/b; Path=/", b"Set-Cookie: a=/b; Path=/gpu1/"),
        (b"Set-Cookie: path=/b; Secure; PATH = /c; HttpOnly", b"Set-Cookie: path=/b; Secure; PATH = /gpu1/c; HttpOnly"),
        (b"Set-Cookie: a=b; Path=c", b"Set-Cookie: a=b; Path=c"),
        (b"Link: </x>; rel=preload", b"Link: </x>; rel=preload"),
        (b"X-Location: /x", b"X-Location: /x"),
    ],
)
def test_what_points_to_this_host_is_put_under_the_prefix(line, expected):
    """Paths and this host's addresses; another host's, relative ones and values that only look so stay."""
    lines = b"\r\nA: 1\r\n%b\r\nB: 2\r\n"
    assert under_prefix(lines % line, b"/gpu1", b"gate:8181") == lines % expected
