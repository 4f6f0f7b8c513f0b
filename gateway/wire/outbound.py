"""A client's field lines as they go to the backend, and the address that they say the client has.

Pure. Owns whose ``X-Forwarded-*`` is believed. Both results depend only on the connection and on what the client
repeats with each request, so that they are made once for both.
"""

from gateway.forwarded import TrustedNetworks, client_address
from gateway.wire.fields import forwarding_lines, request_lines, values_of
from gateway.wire.head import Fields


def outbound(
    fields: Fields, peer: str, own_address: object, trusted: TrustedNetworks, proto: bytes = b"http"
) -> tuple[bytes, str, bool]:
    """The lines without ``X-TARGET-GPU`` and ``X-Request-ID``, the address that limits are keyed by, and whose it is.

    The last is true when the address is the client's, false when it is that of a trusted proxy which names no client.
    ``peer`` is the connection's address without port, ``own_address`` its other end as the socket names it, ``proto``
    what it speaks.
    """
    chain = peer.encode()
    host = fields.host or b""
    address, named = peer, True
    if trusted and peer in trusted:
        xff = values_of(fields.special, b"x-forwarded-for")
        address, named = client_address(peer, xff, trusted)
        chain = b", ".join([*xff, chain])
        proto = (values_of(fields.special, b"x-forwarded-proto") or [proto])[-1]
        host = (values_of(fields.special, b"x-forwarded-host") or [host])[-1]
    lines = request_lines(fields)
    if fields.host is None:
        lines = b"Host: %b\r\n" % authority(own_address) + lines
    lines += forwarding_lines(client=address.encode(), chain=chain, proto=proto, host=host)
    if fields.chunked:
        lines += b"Transfer-Encoding: chunked\r\n"
    if fields.upgrade:
        lines += b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    return lines, address, named


def authority(address: object) -> bytes:
    """What a client that sends no ``Host`` (HTTP/1.0) has connected to."""
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}".encode()
    return b"localhost"
