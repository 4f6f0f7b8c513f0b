"""What a request wants of a shared answer: which one, in which form, how fresh (RFC 9111 §5.2.1, RFC 9110 §13).

Pure. Owns the lists of targets that may be shared and of fields that do not change an answer: every field that is not
known to be harmless is a part of the key, so that cookies, other users and unknown middlewares never meet each other.
"""

import re
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.request import Kind

# What ComfyUI computes from its nodes and folders, whoever asks.
_LISTING = re.compile(rb"(?:/api)?/(?:object_info(?:/[^/?%]+)?|models(?:/[^/?%]+)?|embeddings|extensions)")

# Web files by their suffix; the page itself. Never a route that names something a user made.
_FILE = re.compile(
    rb"/(?:[^?]+\.(?:js|mjs|cjs|css|map|json|wasm|woff2?|ttf|otf|eot|png|jpe?g|gif|webp|avif|svg|ico|html|txt|md))?"
    rb"(?:\?[^?]*)?"
)

_ENCODINGS: Final = rb"accept-encoding"
_CONDITIONS: Final = rb"if-(?:none-match|modified-since|range)|range"
_WISHES: Final = rb"cache-control|pragma"

# Nothing that ComfyUI or a middleware before it answers by: what a browser says of itself, and what is said anew.
_HARMLESS: Final = (
    rb"accept(?:-language)?|user-agent|referer|dnt|connection|priority|upgrade-insecure-requests|save-data|via"
    rb"|sec-fetch-(?:dest|mode|user)|sec-gpc|sec-ch-[a-z-]+|traceparent|tracestate"
    rb"|x-real-ip|x-forwarded-(?:for|proto|host)"
)
_LINE_OF: Final = rb"(?im)^(?:%b):[^\r]*\r\n"
NOT_IN_KEY = re.compile(_LINE_OF % b"|".join((_ENCODINGS, _CONDITIONS, _WISHES, _HARMLESS)))
"""Lines on which no answer depends."""

_NOT_FORWARDED = re.compile(_LINE_OF % b"|".join((_ENCODINGS, _CONDITIONS)))
_HOST_OR_ORIGIN = re.compile(_LINE_OF % b"host|origin")
_READ = re.compile(
    rb"^(" + rb"|".join((_ENCODINGS, _CONDITIONS, _WISHES)) + rb"|host|origin):[ \t]*([^\r]*?)[ \t]*\r\n",
    re.IGNORECASE | re.MULTILINE,
)
# Who asks these wants to be judged by the backend itself.
_NOT_SHARED = re.compile(rb"^(?:authorization|if-match|if-unmodified-since|expect):", re.IGNORECASE | re.MULTILINE)

IGNORED: Final = re.compile(rb"(?:" + _HARMLESS + rb"|host|origin|cache-control|pragma)", re.IGNORECASE)
"""Names of fields of a request that the key may lack: an answer that varies with one of them is not shared."""

_DIRECTIVE = re.compile(
    rb"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:\"((?:[^\"\\]|\\.)*)\"|([^\",;\s]*)))?[ \t]*(?:,|$)"
)
_CODING = re.compile(rb"(?:^|,)[ \t]*(?:x-)?(?:gzip|\*)[ \t]*(?:;[ \t]*q=([0-9.]+)[ \t]*)?(?=,|$)", re.IGNORECASE)

SHAREABLE: Final = frozenset({Kind.READ, Kind.UI})
"""Kinds among whose requests there are some whose answers may be shared."""

NEVER: Final = float("inf")


class Asking(NamedTuple):
    """One request's wishes. Times in seconds."""

    key: bytes
    """What else of the request an answer may depend on."""
    lines: bytes
    """Its field lines for the backend, without conditions: they ask for the whole answer, not compressed."""
    gzip: bool
    none_match: bytes
    """``If-None-Match``; empty: none."""
    modified_since: bytes
    asks_anew: bool
    """Whether the backend itself must be asked, for ``Cache-Control: no-cache`` or the like."""
    max_age: float
    min_fresh: float
    only_if_cached: bool


class Group(Enum):
    """What of the answers that may be shared a target names."""

    LISTING = "listing"
    """What ComfyUI computes from its nodes and folders."""
    FILE = "file"
    """A web file."""


def group_of(kind: Kind, target: bytes) -> Group | None:
    """What a target names; ``None``: nothing that may be shared."""
    if kind is Kind.READ:
        return Group.LISTING if _LISTING.fullmatch(target) else None
    return Group.FILE if kind is Kind.UI and _FILE.fullmatch(target) else None


@lru_cache(maxsize=512)
def read(lines: bytes) -> Asking | None:
    """Read a request's lines, each with its CR LF, as they go to the backend; ``None``: it is not to be shared."""
    if _NOT_SHARED.search(lines):
        return None
    said: dict[bytes, bytes] = {}
    for name, value in _READ.findall(lines):
        lower = name.lower()
        said[lower] = said[lower] + b", " + value if lower in said else value
    if b"range" in said and not said.get(b"if-range", b"").startswith(b"W/"):
        return None
    wishes = directives(said.get(b"cache-control", b""))
    if b"no-store" in wishes:
        return None
    anew = b"no-cache" in wishes or (b"cache-control" not in said and b"no-cache" in said.get(b"pragma", b"").lower())
    return Asking(
        _key(lines, said.get(b"host", b""), said.get(b"origin", b"")),
        _NOT_FORWARDED.sub(b"", lines) + b"Accept-Encoding: identity\r\n",
        accepts_gzip(said.get(b"accept-encoding", b"")),
        said.get(b"if-none-match", b""),
        said.get(b"if-modified-since", b"") if b"if-none-match" not in said else b"",
        anew,
        seconds(wishes.get(b"max-age"), NEVER),
        seconds(wishes.get(b"min-fresh"), 0.0),
        b"only-if-cached" in wishes,
    )


def _key(lines: bytes, host: bytes, origin: bytes) -> bytes:
    kept = NOT_IN_KEY.sub(b"", lines)
    # ComfyUI compares Origin with Host: without the one, or where they agree, the other changes nothing.
    if not origin or origin.partition(b"://")[2] == host:
        kept = _HOST_OR_ORIGIN.sub(b"", kept)
    return kept


def directives(value: bytes) -> dict[bytes, bytes]:
    """The members of a ``Cache-Control``, names in lower case; of a repeated one the first counts."""
    found: dict[bytes, bytes] = {}
    for name, quoted, plain in _DIRECTIVE.findall(value):
        found.setdefault(name.lower(), quoted or plain)
    return found


def seconds(value: bytes | None, otherwise: float) -> float:
    """A delta in seconds; one that is no number is none at all: 0."""
    if value is None:
        return otherwise
    return float(min(int(value), 1 << 31)) if value.isdigit() else 0.0


def accepts_gzip(value: bytes) -> bool:
    """Whether an ``Accept-Encoding`` lets a gzip pass."""
    return any(not weight or weight.strip(b"0.") for weight in _CODING.findall(value))


def matches(none_match: bytes, etag: bytes) -> bool:
    """Whether an ``If-None-Match`` names this ``ETag`` (weak comparison, RFC 9110 §13.1.2)."""
    if none_match.strip() == b"*":
        return True
    opaque = etag.removeprefix(b"W/")
    return bool(opaque) and opaque in re.findall(rb'"[^"]*"', none_match)
