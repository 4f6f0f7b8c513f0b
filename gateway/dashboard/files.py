"""The page and its files: read once, and sent with an ETag and a policy that lets nothing else be loaded or run.

Owns their headers. Must never put a value of anybody's into a file: the page asks for its data.
"""

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from gateway.api.route import Call
from gateway.errors import NOT_FOUND, GatewayError
from gateway.wire.answer import Answer, Made

_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALL: Final = (
    (b"Cache-Control", b"no-cache"),
    (b"Content-Security-Policy", POLICY),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)
_PAGE: Final = "index.html"


@cache
def contents() -> dict[str, tuple[bytes, bytes]]:
    """Every file by its name: its bytes and its ETag."""
    found = {}
    for file in files("gateway.dashboard").joinpath("web").iterdir():
        if file.name.rpartition(".")[2] in _TYPES:
            body = file.read_bytes()
            found[file.name] = body, b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    return found


async def page(call: Call) -> Made:
    """``GET /dashboard``."""
    return _answer(call, _PAGE)


async def file(call: Call) -> Made:
    """``GET /dashboard/{file}``."""
    name = call.given["file"]
    if name == _PAGE or name not in contents():
        raise GatewayError(NOT_FOUND, "The dashboard has no such file.", "Its page is /dashboard.")
    return _answer(call, name)


def _answer(call: Call, name: str) -> Answer:
    body, tag = contents()[name]
    headers = (*_ALL, (b"ETag", tag))
    known = call.field(b"if-none-match").encode("latin-1")
    if known and (known.strip() == b"*" or tag in [each.strip().removeprefix(b"W/") for each in known.split(b",")]):
        return Answer(304, headers)
    return Answer(200, ((b"Content-Type", _TYPES[name.rpartition(".")[2]]), *headers), body)
