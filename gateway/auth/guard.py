"""The gate's keeper: reads the keys, notices when their file changes, and logs browsers in.

Owns the files below ``[auth] folder`` while the gateway runs, and the pages under ``/gateway/``. Decides nothing: that
is ``gate.py``.
"""

import html
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from gateway.auth.gate import LOGIN_PATH, Gate
from gateway.auth.keys import KeyFile, KeyFileError, Ring
from gateway.auth.session import COOKIE, Sessions, secret_in
from gateway.config import Config
from gateway.config_auth import Auth
from gateway.errors import FORBIDDEN, NOT_FOUND, UNAUTHORIZED, GatewayError
from gateway.forwarded import is_loopback
from gateway.wire.answer import Answer, json_answer
from gateway.wire.head import RequestHead

log = logging.getLogger("gateway.auth")

PAGES: Final = b"/gateway/"
"""Below it are the gateway's own pages, on every port."""


class Guard:
    """Everything of ``[auth]`` that touches files or browsers."""

    def __init__(self, config: Config) -> None:
        """Read the keys. Raises ``KeyFileError``, also when others could come in and there is none."""
        self._auth = config.auth
        self._secure = bool(config.tls.certificate)
        self._file = KeyFile(Path(config.auth.folder))
        self._stamp = self._file.stamp()
        ring = self._file.load()
        if (problem := open_without_keys(config, ring)) is not None:
            raise KeyFileError(problem)
        self._keyed = bool(ring)
        """Whether there has been a key since the start: from then on no key means nobody, not everybody."""
        self.gate = Gate(config.auth, ring, self._sessions(config.auth, ring), socket.gethostname())

    def renew(self, auth: Auth) -> None:
        """Take other settings and read the keys again; raises ``KeyFileError``, and then nothing has changed."""
        stamp, ring = self._file.stamp(), self._file.load()
        self._keyed = self._keyed or bool(ring)
        closed = self._keyed and not ring
        self.gate.renew(auth, _NOBODY_IN if closed else ring, self._sessions(auth, ring))
        self._auth, self._stamp = auth, stamp

    def apply(self, config: Config) -> None:
        """Go by these settings from now on; keys that cannot be read stay as they were."""
        if config.auth == self._auth:
            return
        try:
            self.renew(config.auth)
        except KeyFileError as error:
            log.warning("%s; the keys stay as they were", error)

    def look(self) -> None:
        """Read the keys again if their file has changed; what cannot be read changes nothing."""
        self.gate.sweep(time.time())
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.renew(self._auth)
            if self.gate.ring is _NOBODY_IN:
                log.warning("the last key is gone: requests from other machines are refused until there is one")
                return
            log.info("the keys have changed; %d are good", sum(not key.revoked for key in self.gate.ring.all))
        except KeyFileError as error:
            log.warning("%s; the keys stay as they were", error)

    # Pages

    def page(self, head: RequestHead, address: str) -> Awaitable[Answer]:
        """The gateway's own pages, on every port; raises ``GatewayError``."""
        path, _, query = head.target.partition(b"?")
        handlers: dict[bytes, Callable[[RequestHead, str, bytes], Awaitable[Answer]]] = {
            LOGIN_PATH: self._login,
            b"/gateway/logout": self._logout,
        }
        if path not in handlers:
            raise GatewayError(NOT_FOUND, "The gateway has no such page.")
        return handlers[path](head, address, query)

    async def _login(self, head: RequestHead, address: str, query: bytes) -> Answer:
        if head.method in {b"GET", b"HEAD"}:
            return Answer(200, _PAGE_FIELDS, login_page(next_of(query)).encode())
        now = time.time()
        who = self.gate.who(head, address, now)
        sessions = self.gate.sessions
        if who is None or who.key is None or sessions is None:
            raise GatewayError(UNAUTHORIZED, "A key is needed.", "Send it as X-API-Key.")
        cookie = f"{COOKIE}={sessions.make(who.key.id, now)}; {self._attributes(int(sessions.lasting))}"
        return json_answer(200, b'{"ok": true}', ((b"Set-Cookie", cookie.encode()), _NO_STORE))

    async def _logout(self, head: RequestHead, address: str, query: bytes) -> Answer:
        if head.method != b"POST":
            raise GatewayError(FORBIDDEN, "Logging out is a POST.", "Other sites could otherwise do it.")
        return json_answer(
            200, b'{"ok": true}', ((b"Set-Cookie", f"{COOKIE}=; {self._attributes(0)}".encode()), _NO_STORE)
        )

    def _attributes(self, age: int) -> str:
        # Lax: a link from elsewhere finds one logged in, another site's POST does not.
        secure = "; Secure" if self._secure else ""
        return f"Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}"

    @staticmethod
    def _sessions(auth: Auth, ring: Ring) -> Sessions | None:
        return Sessions(secret_in(Path(auth.folder)), auth.session) if ring else None


class _Closed(Ring):
    """No key is good, and yet keys are needed."""

    def __bool__(self) -> bool:
        return True


_NOBODY_IN: Final = _Closed()

_NO_STORE: Final = (b"Cache-Control", b"no-store")
_PAGE_FIELDS: Final = (
    (b"Content-Type", b"text/html; charset=utf-8"),
    _NO_STORE,
    (
        b"Content-Security-Policy",
        (
            b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
            b"form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
        ),
    ),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)


def open_without_keys(config: Config, ring: Ring) -> str | None:
    """Why the gateway does not start: others could come in and there is no key. ``None``: it may."""
    others = [host for host in config.listen.host if not is_loopback(host)]
    if not others or ring or config.auth.allow_open:
        return None
    return (
        f"[listen] host: {', '.join(others)} can be reached from other machines and there are no keys: everybody who "
        "can connect could run workflows, read and delete results. Make a key (comfy-gateway keys add NAME), or keep "
        "127.0.0.1, or set [auth] allow_open = true where a firewall or an authenticating proxy stands before it"
    )


def next_of(query: bytes) -> str:
    """Where a login leads: a path on this host, never another host's address."""
    wanted = parse_qs(query.decode("latin-1")).get("next", ["/"])[0]
    parts = urlsplit(wanted)
    safe = wanted.startswith("/") and not parts.netloc and not parts.scheme and "\\" not in wanted
    return wanted if safe and not wanted.startswith("//") else "/"


def login_page(target: str) -> str:
    """The login page, whole."""
    return _PAGE.replace("NEXT", html.escape(target, quote=True))


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; min-height: 100vh; margin: 0; display: grid; place-items: center; }
form { width: min(22rem, 90vw); display: grid; gap: .75rem; }
input, button { font: inherit; padding: .5rem .75rem; }
output { color: #c62828; min-height: 1.5em; }
</style>
<form data-next="NEXT">
<h1>comfy-gateway</h1>
<label for="key">Your key</label>
<input id="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>
<output role="alert"></output>
</form>
<script>
const form = document.querySelector("form");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = form.querySelector("output");
  said.textContent = "";
  try {
    const headers = { "X-API-Key": form.querySelector("input").value.trim() };
    const answer = await fetch("/gateway/login", { method: "POST", headers });
    if (answer.ok) { location.replace(form.dataset.next); return; }
    const told = await answer.json();
    said.textContent = told.error.message + " " + told.error.details;
  } catch (error) {
    said.textContent = "The gateway does not answer.";
  }
});
</script>
</html>
"""
