"""One POST to an address that a client chose: to where its name leads, when that may be reached, and no further.

Owns the order: look the name up once, judge every address, connect to one that was judged. Nothing is followed, and of
the answer only its status is read. Must never know what is sent.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from gateway.webhook import may_reach

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_LONGEST: Final = 16 * 1024
"""Bytes of an answer that are read."""


class DeliveryError(Exception):
    """It has not been heard, as far as is known; ``str()`` says why in one sentence."""


class Refused(Exception):  # noqa: N818 (what we do)
    """We do not send there; ``str()`` says why in one sentence."""


async def deliver(
    url: str,
    lines: bytes,
    body: bytes,
    *,
    timeout: float,
    allow: Iterable[str],
    context: ssl.SSLContext | None = None,
) -> int:
    """POST ``body`` with these field lines; the status of the answer.

    ``allow``: networks that may be reached although they are not public. ``context``: whom to trust; the system's
    certificates unless given. Raises ``DeliveryError`` or ``Refused``.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _deliver(url, lines, body, tuple(allow), context)
    except TimeoutError:
        raise DeliveryError(f"There was no answer within {timeout:g} s.") from None
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise DeliveryError(f"There was no answer: {error}.") from error


async def _deliver(
    url: str, lines: bytes, body: bytes, allow: tuple[str, ...], context: ssl.SSLContext | None
) -> int:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    address = await _address(host, port, allow)
    if secure and context is None:
        # Reading the system's certificates takes a while.
        context = await asyncio.get_running_loop().run_in_executor(None, ssl.create_default_context)
    reader, writer = await asyncio.open_connection(
        address, port, limit=_LONGEST, ssl=context if secure else None, server_hostname=host if secure else None
    )
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # Without a user: what stands before an @ is not part of the address.
        authority = parts.netloc.rpartition("@")[2]
        head = f"POST {target} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        writer.write(head.encode() + lines + b"\r\n" + body)
        await writer.drain()
        while True:
            answer = await reader.readuntil(b"\r\n\r\n")
            found = _STATUS.match(answer)
            if found is None:
                raise DeliveryError("The answer is no HTTP.")
            if (status := int(found[1])) >= 200:
                return status
    finally:
        writer.transport.abort()


async def _address(host: str, port: int, allow: tuple[str, ...]) -> str:
    """An address of this host that may be reached; raises ``Refused`` when there are others only."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    for address in addresses:
        if may_reach(address, allow):
            return address
    raise Refused(f"{host} is at {', '.join(addresses)}, which is not public; [webhooks] allow says what else is.")
