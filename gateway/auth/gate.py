"""The gate: whether a request may pass, and as whom.

Pure: time is a parameter, keys are given. Owns which request needs which scope, where a credential may stand, and what
of it the backend must not see. Must never know how keys are kept or what a job is.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from gateway.auth.keys import Key, Ring, Scope
from gateway.auth.origin import Origins, host_of
from gateway.auth.session import COOKIE, Sessions, cookie_in
from gateway.config import Rate
from gateway.config_auth import Auth
from gateway.errors import FORBIDDEN, LOGIN, RATE_LIMITED, UNAUTHORIZED, GatewayError
from gateway.forwarded import is_loopback
from gateway.ratelimit import Zone, clientkey
from gateway.request import Kind
from gateway.wire.fields import values_of
from gateway.wire.head import RequestHead

LOGIN_PATH: Final = b"/gateway/login"

_FAILURES: Final = Rate(0.2, 10)
"""Wrong keys from one address: ten at once, then one in five seconds."""

_EVERYBODYS: Final = re.compile(rb"/(?:api/)*(?:queue/|debug/|dashboard|status$|assets)", re.IGNORECASE)
"""What lists jobs or files of all and is not filtered."""

_REMEMBERED: Final = 30.0
"""Seconds for which a connection that repeats its fields need not be asked again."""

_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_SCOPES: Final = {
    Kind.READ: Scope.READ,
    Kind.EVENTS: Scope.READ,
    Kind.UI: Scope.READ,
    Kind.SUBMIT: Scope.SUBMIT,
    Kind.UPLOAD: Scope.SUBMIT,
    Kind.CONTROL: Scope.SUBMIT,
}
# What concerns everybody: memory, settings of the machine, installing code (ComfyUI-Manager's routes).
_ADMIN: Final = re.compile(
    rb"/+(?:api/+)?(?:free|preload|admin|internal|manager|customnode|comfyui_manager|externalmodel|snapshot|v2/+manager"
    rb"|v2/+customnode|v2/+snapshot)(?:/.*)?",
    re.IGNORECASE | re.DOTALL,
)
# What anybody may ask, for those who look after the service know no key.
_OPEN: Final = frozenset({b"/health", b"/live", b"/ready"})

_CREDENTIALS: Final = re.compile(
    rb"(?:\A|(?<=\r\n))(authorization|x[-_]api[-_]key|cookie):[ \t]*([^\r]*)\r\n", re.IGNORECASE
)
_SITE: Final = re.compile(rb"(?:\A|(?<=\r\n))(?:origin|sec-fetch-site):[^\r]*\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Principal:
    """Whom a request comes from."""

    name: str
    """The key's name; empty: somebody who needs no key."""
    scope: Scope
    key: Key | None = None

    def need(self, scope: Scope) -> None:
        """Raise ``GatewayError`` (403) unless it may do what needs ``scope``."""
        if self.scope.rank < scope.rank:
            details = f"It needs the scope {scope.value}; {self.name} has {self.scope.value}."
            raise GatewayError(FORBIDDEN, "This key may not do that.", details)


ANYBODY: Final = Principal("", Scope.ADMIN)
"""Whoever needs no key may do everything."""


class Gate:
    """Looks at each request once."""

    def __init__(self, auth: Auth, ring: Ring, sessions: Sessions | None, hostname: str = "localhost") -> None:
        """``sessions``: ``None`` when there are no keys and so nobody logs in; ``hostname`` is this machine's."""
        self.ring = ring
        self.generation = object()
        """Another one whenever what the gate has said may no longer hold."""
        self._auth = auth
        self.sessions = sessions
        """Who makes and reads the cookies of browsers."""
        self._origins = Origins(auth.origins)
        self._failures = Zone("login", _FAILURES, max_keys=20_000, idle=600.0, longest=0.0)
        self._hosts = frozenset({b"localhost", hostname.lower().encode()})

    def renew(self, auth: Auth, ring: Ring, sessions: Sessions | None) -> None:
        """Other settings or other keys are in force from now on."""
        self.ring, self._auth, self.sessions = ring, auth, sessions
        self._origins = Origins(auth.origins)
        self.generation = object()

    def passes(self, head: RequestHead, path: bytes, address: str, kind: Kind, now: float) -> Principal:
        """Whom the request comes from; raises ``GatewayError`` (303, 401, 403, 429) when it may not pass.

        ``path`` is decoded and without ``/gpuN``; ``address`` is the client's; ``now`` in seconds since 1970.
        """
        guarded = kind is Kind.EVENTS or head.method not in _SAFE
        if not guarded and _ADMIN.fullmatch(path) and self._lured(head):
            raise _foreign(_one(head, b"origin") or b"another site")
        if not guarded and not self.ring:
            return ANYBODY
        origins = values_of(head.fields.pairs, b"origin") if guarded else []
        for origin in origins:
            if self._origins.foreign(origin, head.fields.host):
                raise _foreign(origin)
        if path in _OPEN or path.startswith(LOGIN_PATH):
            return ANYBODY
        who = self.who(head, address, now)
        if who is None:
            raise self._unknown(head, kind)
        if who.key is None and origins and self._rebound(origins[0]):
            raise _foreign(origins[0])
        who.need(needed(head.method, path, kind))
        if self.confines(who) and _EVERYBODYS.match(path):
            text = "This shows everybody's jobs, and this key sees its own only."
            raise GatewayError(FORBIDDEN, text, "A key with the scope admin sees all.")
        return who

    def _lured(self, head: RequestHead) -> bool:
        """Whether a page of another site makes a browser ask: a link or picture sends no ``Origin``, but says this."""
        return (_one(head, b"sec-fetch-site") or b"").strip().lower() == b"cross-site" and not self.granted(head)

    def confines(self, who: Principal) -> bool:
        """Whether somebody meets only the jobs of their own key."""
        return self._auth.isolate and who.key is not None and who.scope is not Scope.ADMIN

    def who(self, head: RequestHead, address: str, now: float) -> Principal | None:
        """Whom the request comes from by what it shows; ``None``: it shows nothing. Raises ``GatewayError``."""
        if not self.ring:
            return ANYBODY
        known = head.fields.who
        if known is not None and known[0] is self.generation and known[1] > now:
            found: Principal | None = known[2]
            return found
        who = self._who(head, address, now)
        head.fields.who = (self.generation, now + _REMEMBERED, who)
        return who

    def _who(self, head: RequestHead, address: str, now: float) -> Principal | None:
        token = credential(head)
        if token is not None:
            return self._holder(token, address, now)
        value = cookie_in(values_of(head.fields.pairs, b"cookie"))
        if value is not None and self.sessions is not None:
            key_id = self.sessions.key_id(value, now)
            key = self.ring.by_id(key_id) if key_id else None
            if key is not None:
                return Principal(key.name, key.scope, key)
        # A proxy's own address says nothing of who stands behind it.
        local = self._auth.loopback and head.fields.named and is_loopback(address)
        return ANYBODY if local else None

    def granted(self, head: RequestHead) -> bytes:
        """The origin that may read the answer across sites; empty when none is allowed or none was named."""
        if not self._origins:
            return b""
        origins = values_of(head.fields.pairs, b"origin")
        return origins[0] if len(origins) == 1 and self._origins.allowed(origins[0]) else b""

    def for_backend(self, head: RequestHead, lines: bytes) -> bytes:
        """A request's lines as the backend may see them."""
        lines = without_credentials(lines)
        return without_site(lines) if self.granted(head) else lines

    def sweep(self, now: float) -> None:
        """Forget addresses whose wrong keys are long past."""
        self._failures.sweep(int(now * 1000), 1000)

    def _holder(self, token: str, address: str, now: float) -> Principal:
        key = self.ring.find(token)
        if key is not None:
            # Even from where wrong ones came: 256 bits are not guessed, and nobody shall lock a neighbour out.
            return Principal(key.name, key.scope, key)
        if not self._failures.take(clientkey(address), int(now * 1000))[0]:
            raise GatewayError(RATE_LIMITED, "Too many wrong keys from this address.", "Try later.", retry_after=30)
        raise GatewayError(UNAUTHORIZED, "This key is not known here.", "It may have been revoked.", headers=_ASK)

    def _unknown(self, head: RequestHead, kind: Kind) -> GatewayError:
        page = kind in {Kind.UI, Kind.READ} and head.method == b"GET" and b"text/html" in (_one(head, b"accept") or b"")
        if page:
            there = b"%b?next=%b" % (LOGIN_PATH, quote(head.target).encode())
            return GatewayError(LOGIN, "A key is needed.", "Log in.", headers=((b"Location", there),))
        details = "Send it as Authorization: Bearer KEY or X-API-Key: KEY; a browser logs in at /gateway/login."
        return GatewayError(UNAUTHORIZED, "A key is needed.", details, headers=_ASK)

    def _rebound(self, origin: bytes) -> bool:
        """Whether a page that needs no key has a name that anybody may have given this machine (DNS rebinding)."""
        host = host_of(origin)
        known = host in self._hosts or host.endswith(b".localhost") or _is_address(host)
        return not (known or self._origins.allowed(origin))


_ASK: Final = ((b"WWW-Authenticate", b'Bearer realm="comfy-gateway"'),)


def needed(method: bytes, path: bytes, kind: Kind) -> Scope:
    """The scope that a request needs; ``path`` is decoded and without ``/gpuN``."""
    if _ADMIN.fullmatch(path):
        return Scope.ADMIN
    return _SCOPES[kind] if method in _SAFE or kind is not Kind.READ else Scope.SUBMIT


def credential(head: RequestHead) -> str | None:
    """The key that a request shows in a field of its own; the cookie is another matter.

    An ``Authorization`` that is no key of ours is not for us: a custom node may want it.
    """
    pairs = head.fields.pairs
    for value in values_of(pairs, b"x-api-key"):
        return value.decode("latin-1").strip()
    for value in values_of(pairs, b"authorization"):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer" and token.strip().startswith(b"cgw_"):
            return token.strip().decode("latin-1")
    return None


def without_credentials(lines: bytes) -> bytes:
    """A request's lines as the backend may see them: without our keys and our cookie, all else as it was."""
    lowered = lines.lower()
    # Three looks for a word cost a tenth of one for the pattern.
    if b"cookie" in lowered or b"authorization" in lowered or b"api" in lowered:
        return _CREDENTIALS.sub(_kept, lines)
    return lines


def without_site(lines: bytes) -> bytes:
    """The lines of a page that is allowed here: ComfyUI itself refuses what comes from another site on loopback."""
    return _SITE.sub(b"", lines)


def _kept(match: re.Match[bytes]) -> bytes:
    name, value = match[1].lower(), match[2]
    if name == b"cookie":
        rest = [pair for pair in value.split(b";") if pair.strip().partition(b"=")[0] != COOKIE.encode()]
        return match[1] + b": " + b";".join(rest).strip() + b"\r\n" if rest else b""
    ours = name != b"authorization" or value.partition(b" ")[2].strip().startswith(b"cgw_")
    return b"" if ours else match[0]


def _one(head: RequestHead, name: bytes) -> bytes | None:
    found = values_of(head.fields.pairs, name)
    return found[0] if found else None


def _foreign(origin: bytes) -> GatewayError:
    shown = origin.decode("latin-1")
    return GatewayError(
        FORBIDDEN,
        "A page of another site may not do this.",
        f"The request says it comes from {shown}. If that page is yours, add it to [auth] origins.",
    )


def _is_address(host: bytes) -> bool:
    return host.startswith(b"[") or bool(re.fullmatch(rb"[0-9.]+", host))
