"""What an answer allows (RFC 9111 §3, §4.2): whether it may be kept and shared, and how long without asking again.

Pure. Owns these rules and the reading of HTTP dates. Must never know where answers are kept.
"""

from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from gateway.cache.asking import IGNORED, directives, seconds
from gateway.wire.fields import answer_lines, values_of
from gateway.wire.head import AnswerHead, Pair, pairs_of, tokens

# What makes an answer somebody's own, or a part of something, or different under a prefix.
_OWN: Final = frozenset(
    {
        b"set-cookie",
        b"content-encoding",
        b"content-range",
        b"content-location",
        b"location",
        b"refresh",
        b"www-authenticate",
    }
)

# What a 304 cannot change: the bytes that are kept, and by which name they are.
_OF_THE_BODY: Final = frozenset({b"content-length", b"content-encoding", b"content-range", b"content-md5", b"etag"})

_TENTH: Final = 0.1
"""Share of a file's age for which it may be taken for unchanged when nothing is said (RFC 9111 §4.2.2)."""


class Worth(NamedTuple):
    """What may be kept of an answer."""

    pairs: list[Pair]
    """Its end-to-end fields without a length."""
    etag: bytes
    modified: bytes
    lifetime: float
    """Seconds from its arrival for which the backend need not be asked; 0: it must be, each time."""
    age: float
    """Seconds that it was old on arrival."""


def worth_of(answer: AnswerHead, *, listing: bool) -> Worth | None:
    """Judge a 200; ``None``: it is for the one who asked, and for now. A ``listing`` needs no validator."""
    if answer.status != 200 or answer.length is None or answer.chunked:
        return None
    pairs = pairs_of(answer_lines(answer, drop_length=True))
    control = _control(pairs)
    if any(name.lower() in _OWN for name, _ in pairs) or {b"no-store", b"private"} & set(control):
        return None
    for vary in values_of(pairs, b"vary"):
        if any(name == b"*" or IGNORED.fullmatch(name) for name in tokens(vary)):
            return None
    etag, modified = _only(pairs, b"etag"), _only(pairs, b"last-modified")
    lifetime, age = freshness(pairs)
    if not (etag or modified or lifetime or listing):
        return None
    return Worth(pairs, etag, modified, lifetime, age)


def freshness(pairs: list[Pair]) -> tuple[float, float]:
    """Seconds that an answer with these fields lives after its arrival, and how old it was then."""
    control = _control(pairs)
    ages = values_of(pairs, b"age")
    age = seconds(ages[0], 0.0) if ages else 0.0
    # Where it is unclear how old it is, it is too old.
    if b"no-cache" in control or len(ages) > 1 or (ages and not ages[0].isdigit()):
        return 0.0, age
    date = when(_only(pairs, b"date"))
    modified = when(_only(pairs, b"last-modified"))
    expires = values_of(pairs, b"expires")
    life = 0.0
    if b"s-maxage" in control or b"max-age" in control:
        life = seconds(control.get(b"s-maxage", control.get(b"max-age")), 0.0)
    elif expires:
        until = when(expires[0]) if len(expires) == 1 else None
        life = until - date if until is not None and date is not None else 0.0
    elif date is not None and modified is not None and not control and not values_of(pairs, b"pragma"):
        life = (date - modified) * _TENTH
    return max(0.0, life - age), age


def renewed(pairs: list[Pair], answer: AnswerHead) -> list[Pair]:
    """The fields of a kept answer after a 304 (RFC 9111 §3.2)."""
    new = [
        pair
        for pair in pairs_of(answer_lines(answer, drop_length=True))
        if pair[0].lower() not in _OF_THE_BODY
    ]
    names = {name.lower() for name, _ in new}
    return [pair for pair in pairs if pair[0].lower() not in names] + new


def when(value: bytes) -> float | None:
    """An HTTP date in seconds since 1970; ``None`` when it is none."""
    try:
        return parsedate_to_datetime(value.decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _control(pairs: list[Pair]) -> dict[bytes, bytes]:
    return directives(b", ".join(values_of(pairs, b"cache-control")))


def _only(pairs: list[Pair], name: bytes) -> bytes:
    """The value of a field that stands there once; else nothing."""
    values = values_of(pairs, name)
    return values[0] if len(values) == 1 else b""
