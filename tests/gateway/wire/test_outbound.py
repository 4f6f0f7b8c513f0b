"""The client's lines for the backend, by whom they are believed."""

from gateway.forwarded import TrustedNetworks
from gateway.wire.head import RequestReader
from gateway.wire.outbound import authority, outbound


def lines_of(*lines: bytes, peer: str = "192.0.2.1", trusted: tuple[str, ...] = (), line: bytes = b"GET / HTTP/1.1"):
    """What goes out for these lines."""
    data = b"\r\n".join([line, *lines]) + b"\r\n\r\n"
    fields = RequestReader(max_line=1000, max_fields=100).read(data, len(data)).fields
    return outbound(fields, peer, ("192.0.2.9", 8181), TrustedNetworks(trusted))


def test_strangers_are_not_believed():
    """Their chain is replaced by their address."""
    lines, address, named = lines_of(b"Host: a", b"X-Forwarded-For: 6.6.6.6")
    assert (address, named) == ("192.0.2.1", True)
    assert lines == (
        b"Host: a\r\nX-Real-IP: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: a\r\n"
    )


def test_trusted_proxies_are_continued():
    """The chain grows by one, and the client is the first stranger from the right."""
    sent = (b"Host: a", b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https")
    lines, address, named = lines_of(*sent, trusted=("192.0.2.0/24",))
    assert (address, named) == ("6.6.6.6", True)
    assert b"X-Forwarded-For: 1.1.1.1, 6.6.6.6, 192.0.2.1\r\n" in lines
    assert b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n" in lines


def test_a_trusted_proxy_may_name_nobody():
    """Its own address is then the one that counts, and is known not to be the client's."""
    for line in (b"X-Forwarded-For: unknown", b"Forwarded: for=203.0.113.9", b"X-A: 1"):
        assert lines_of(b"Host: a", line, trusted=("192.0.2.0/24",))[1:] == ("192.0.2.1", False)


def test_framing_and_upgrade_are_said_anew():
    """They belong to this connection, so they are put in after the client's were taken out."""
    assert lines_of(b"Host: a", b"Transfer-Encoding: chunked")[0].endswith(b"Transfer-Encoding: chunked\r\n")
    upgrade = lines_of(b"Host: a", b"Connection: upgrade", b"Upgrade: WebSocket")[0]
    assert upgrade.endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")


def test_a_missing_host_is_what_was_connected_to():
    """HTTP/1.0 alone may leave it out; the backend is spoken to in 1.1."""
    lines, *_ = lines_of(b"X-A: 1", line=b"GET / HTTP/1.0")
    assert lines.startswith(b"Host: 192.0.2.9:8181\r\nX-A: 1\r\n")
    assert authority(("::1", 80, 0, 0)) == b"[::1]:80"
    assert authority("") == b"localhost"
