"""Header fields on their way through: what is taken out, what is put in, and in which order that happens.

Pure. Owns the lists of hop-by-hop fields and of the gateway's own. Strips first and adds last, so that nothing a client
names in ``Connection`` can delete what the gateway sets. Must never know sockets, limits or answers' meaning.
"""

import re
from typing import Final

from gateway.wire.head import AnswerHead, Fields, Pair, block_of, pairs_of

GPU_HEADER: Final = b"X-TARGET-GPU"

# RFC 9110 §7.6.1, and the two that proxies have always taken for it.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-authorization",
        b"proxy-authenticate",
        b"http2-settings",
    }
)

# Only the gateway says these to the backend.
OWN: Final = frozenset(
    {
        b"x-target-gpu",
        b"x-real-ip",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-request-id",
        b"forwarded",
    }
)

# Tokens of Connection that nominate nothing beyond what is taken out anyway.
_HARMLESS = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b"http2-settings"})

# Special fields that pass.
_PLAIN = frozenset({b"host", b"content-length", b"expect"})

_HOP = rb"connection|http2-settings|keep-alive|proxy-(?:authenticate|authorization|connection)|te|trailer"
_HOP += rb"|transfer-encoding|upgrade"
_REQUEST_DROP = re.compile(
    rb"\r\n(?=[cfhkptuxCFHKPTUX])(?:" + _HOP + rb"|forwarded"
    rb"|x[-_](?:forwarded[-_](?:for|host|proto)|real[-_]ip|request[-_]id|target[-_]gpu)):[^\r]*",
    re.IGNORECASE,
)
_ANSWER_DROP = re.compile(rb"\r\n(?=[chkptuxCHKPTUX])(?:" + _HOP + rb"|x-request-id):[^\r]*", re.IGNORECASE)

# What Connection must not be able to take away: without them the message means something else.
_KEPT = frozenset({b"host", b"content-length"})

# RFC 9110 §6.5.1: never in trailers, for they steer framing, routing or who one is.
_NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | OWN
    | {
        b"host",
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"range",
        b"origin",
        b"cache-control",
        b"max-forwards",
    }
)

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")

# Fields of an answer that point to places on its host.
_POINTERS = re.compile(rb"(\r\n((?:content-)?location|refresh|set-cookie):[ \t]*)([^\r]*)", re.IGNORECASE)
_PLACE = re.compile(rb"((?:https?:)?//([^/?#]*))?(/.*)?", re.IGNORECASE | re.DOTALL)
_REFRESH = re.compile(rb"([0-9.\s]*[;,]?\s*url\s*=\s*[\"']?)(.*)", re.IGNORECASE)
_COOKIE_PATH = re.compile(rb"(;[ \t]*path[ \t]*=[ \t]*)(?=/)", re.IGNORECASE)


def request_lines(fields: Fields) -> bytes:
    """The client's lines for the backend, each with its CR LF, without hop-by-hop fields, nominated and our own."""
    if fields.connection <= _HARMLESS:
        if all(name in _PLAIN for name, _ in fields.special):
            return fields.block[2:]
        return _REQUEST_DROP.sub(b"", fields.block)[2:]
    nominated = fields.connection - _KEPT
    kept = []
    for name, value in fields.pairs:
        lower = name.lower()
        # A WSGI-like reader folds "_" into "-", so every such spelling is ours, too.
        if not (lower in HOP_BY_HOP or lower in nominated or lower.replace(b"_", b"-") in OWN):
            kept.append((name, value))
    return block_of(kept)[2:]


def answer_lines(answer: AnswerHead, *, drop_length: bool = False) -> bytes:
    """The backend's lines for the client; its ``X-Request-ID`` gives way to ours. In the form of ``Fields.block``."""
    if not drop_length and answer.connection <= _HARMLESS:
        for name, _ in answer.special:
            if name != b"content-length":
                return _ANSWER_DROP.sub(b"", answer.block)
        return answer.block
    nominated = answer.connection - _KEPT
    kept = []
    for name, value in pairs_of(answer.block):
        lower = name.lower()
        if lower in HOP_BY_HOP or lower in nominated or lower == b"x-request-id":
            continue
        if not (drop_length and lower == b"content-length"):
            kept.append((name, value))
    return block_of(kept)


def under_prefix(lines: bytes, prefix: bytes, host: bytes) -> bytes:
    """An answer's lines for a client that asked ``host`` under ``prefix``, of which the backend knows nothing.

    Moved are paths in ``Location``, ``Content-Location`` and ``Refresh`` (also with this host before them) and the
    ``Path`` of cookies; what names another host stays.
    """

    def place(url: bytes) -> bytes:
        match = _PLACE.fullmatch(url)
        if match is None or (match[1] and match[2].lower() != host.lower()):
            return url
        return (match[1] or b"") + prefix + (match[3] or b"") if match[1] or match[3] else url

    def moved(match: re.Match[bytes]) -> bytes:
        start, name, value = match.groups()
        if name.lower() == b"set-cookie":
            return start + _COOKIE_PATH.sub(rb"\g<1>" + prefix, value)
        if name.lower() == b"refresh":
            return start + _REFRESH.sub(lambda found: found[1] + place(found[2]), value)
        return start + place(value)

    return _POINTERS.sub(moved, lines)


def clean_trailers(pairs: list[Pair]) -> list[Pair]:
    """Trailers that may be passed on."""
    return [pair for pair in pairs if pair[0].lower().replace(b"_", b"-") not in _NOT_IN_TRAILERS]


def forwarding_lines(*, client: bytes, chain: bytes, proto: bytes, host: bytes) -> bytes:
    """``X-Real-IP`` and ``X-Forwarded-For/-Proto/-Host``; ``chain`` is the whole value of ``X-Forwarded-For``."""
    lines = b"X-Real-IP: %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (client, chain, proto)
    return lines + b"X-Forwarded-Host: %b\r\n" % host if host else lines


def values_of(pairs: list[Pair], name: bytes) -> list[bytes]:
    """All values of one field, in order; ``name`` in lower case."""
    return [value for key, value in pairs if key.lower() == name]


def is_sane_id(value: bytes) -> bool:
    """Whether a client's ``X-Request-ID`` can be used as it is."""
    return _SANE_ID.fullmatch(value) is not None
