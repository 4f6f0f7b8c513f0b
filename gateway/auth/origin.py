"""Which web pages a browser may let talk to the gateway.

Pure. A page of another site can make a visitor's browser send requests, WebSocket handshakes included, and behind a
firewall or on loopback the visitor is trusted (CSRF, DNS rebinding). A browser says where the page is from.
"""

import re
from typing import Final

_ORIGIN: Final = re.compile(rb"(https?)://([^/\s]+)", re.IGNORECASE)
_THEIRS: Final = re.compile(rb"\r\naccess-control-[a-z-]+:[^\r]*", re.IGNORECASE)
_PORTS: Final = {b"http": b":80", b"https": b":443"}


class Origins:
    """The origins beside the gateway's own that may use it."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        """``allowed``: as browsers write them, ``https://studio.example``; ``*`` is every one."""
        self.every = "*" in allowed
        self._allowed = frozenset(each.encode().lower().rstrip(b"/") for each in allowed)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.every or bool(self._allowed)

    def foreign(self, origin: bytes, host: bytes | None) -> bool:
        """Whether a page of ``origin`` is neither the gateway's own (same host and port as ``Host``) nor allowed."""
        return not (self.allowed(origin) or same(origin, host or b""))

    def allowed(self, origin: bytes) -> bool:
        """Whether it is on the list, so that its scripts may read answers (CORS)."""
        return self.every or origin.lower() in self._allowed


def same(origin: bytes, host: bytes) -> bool:
    """Whether an ``Origin`` names the host and port that the request went to."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    scheme, authority = match[1].lower(), match[2].lower()
    default = _PORTS[scheme]
    return authority.removesuffix(default) == host.lower().removesuffix(default)


def granted(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer to an allowed page carries (Fetch standard, CORS protocol)."""
    return (
        (b"Access-Control-Allow-Origin", origin),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Expose-Headers", b"*, X-Request-ID, Retry-After, Location"),
        (b"Vary", b"Origin"),
    )


PREFLIGHT: Final = (
    (b"Access-Control-Allow-Methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (b"Access-Control-Allow-Headers", b"Authorization, Content-Type, Comfy-User, Idempotency-Key, Prefer, X-API-Key"),
    (b"Access-Control-Max-Age", b"600"),
)


def host_of(origin: bytes) -> bytes:
    """The host of an origin, in lower case, without its port; empty when it names none."""
    match = _ORIGIN.fullmatch(origin)
    return re.sub(rb":[0-9]*\Z", b"", match[2].lower()) if match else b""


def shared_lines(lines: bytes, origin: bytes) -> bytes:
    """An answer's lines (in the form of ``Fields.block``) with our word on who may read it, not the backend's."""
    rest = _THEIRS.sub(b"", lines)
    return rest + b"".join(b"%b: %b\r\n" % pair for pair in granted(origin))
