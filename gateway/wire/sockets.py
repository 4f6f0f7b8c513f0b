"""What is asked of sockets directly: who is at the other end, and two options.

Owns nothing. Must never read or write.
"""

import asyncio
import socket
import struct


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The other end's address without port, IPv4-mapped ones as IPv4; ``local`` for a Unix socket."""
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple) or not address:
        return "local"
    host = str(address[0])
    return host.removeprefix("::ffff:") if "." in host else host


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Let the close that follows be a reset, which nobody can take for the end of a body."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Let the system notice a peer that is gone without a word; a bridge may be silent for days."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def end_sending(transport: asyncio.Transport) -> None:
    """Send no more, once what was written is sent; TLS knows no half-closed connection, so there it is closed."""
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()
