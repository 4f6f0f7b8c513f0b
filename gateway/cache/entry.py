"""One kept answer in the forms in which it is given out: plain, compressed, and as "not modified".

Pure. Owns these forms and their fields. The compressed one has a weak ``ETag``: its bytes are others (RFC 9110 §8.8.3).
"""

import re
import zlib
from hashlib import blake2b
from typing import Final

from gateway.cache.asking import Asking, matches
from gateway.cache.worth import Worth, freshness, renewed, when
from gateway.wire.fields import values_of
from gateway.wire.head import AnswerHead, Pair, block_of, tokens

LEVEL: Final = 4
"""Of gzip: the frontend's script of 11 MB in 0.24 s to 2.4 MB; level 6 takes 0.57 s for 2.3 MB."""

WORTH_PACKING: Final = 512
"""Bytes below which compression saves nothing that is felt."""

_TEXT = re.compile(
    rb"(?:text/[^;]+|application/(?:javascript|x-javascript|ecmascript|json|manifest\+json|xml|wasm)|image/svg\+xml"
    rb"|font/(?:ttf|otf))[ \t]*(?:;.*)?",
    re.IGNORECASE,
)

_OF_A_304: Final = frozenset({b"cache-control", b"date", b"expires", b"last-modified"})

_OVERHEAD: Final = 2048
"""Bytes that an entry takes beside its bodies, about."""


class Entry:
    """One answer. ``arrived`` is the loop's time at which the backend last stood by it."""

    __slots__ = (
        "_pairs",
        "arrived",
        "bare",
        "body",
        "boot",
        "etag",
        "lifetime",
        "modified",
        "named_here",
        "old",
        "packed",
        "packed_lines",
        "plain_lines",
        "size",
        "weak",
    )

    def __init__(self, worth: Worth, body: bytes, packed: bytes | None, *, boot: str, arrived: float) -> None:
        self.body = body
        self.packed = packed
        self.boot = boot
        self.named_here = not worth.etag and not worth.modified
        """Whether the backend gave nothing to ask by; then the gateway names the bytes itself."""
        self.size = len(body) + len(packed or b"") + _OVERHEAD
        self._take(worth.pairs, worth.lifetime, worth.age, arrived)

    def renew(self, answer: AnswerHead, arrived: float) -> None:
        """The backend says that it still holds."""
        pairs = renewed(self._pairs, answer)
        self._take(pairs, *freshness(pairs), arrived)

    def _take(self, pairs: list[Pair], lifetime: float, age: float, arrived: float) -> None:
        self._pairs = pairs
        self.lifetime, self.old, self.arrived = lifetime, age, arrived
        etag = (values_of(pairs, b"etag") or [b""])[0]
        self.modified = (values_of(pairs, b"last-modified") or [b""])[0]
        self.etag = etag or (b'"%b"' % name_of(self.body) if self.named_here else b"")
        self.weak = self.etag if self.etag.startswith(b"W/") or not self.etag else b"W/" + self.etag
        kept = [pair for pair in pairs if pair[0].lower() not in {b"etag", b"age"}]
        if self.named_here and not values_of(pairs, b"cache-control"):
            kept.append((b"Cache-Control", b"no-cache"))
        if self.packed is not None:
            kept = _varied(kept)
        lengths = (b"Content-Length", b"%d" % len(self.body)), (b"Content-Length", b"%d" % len(self.packed or b""))
        self.plain_lines = block_of([*kept, *_named(self.etag), lengths[0]])
        self.packed_lines = block_of([*kept, *_named(self.weak), (b"Content-Encoding", b"gzip"), lengths[1]])
        self.bare = block_of([pair for pair in kept if pair[0].lower() in _OF_A_304 | {b"vary"}])

    def age(self, now: float) -> float:
        """Seconds since the backend made it or last stood by it."""
        return self.old + max(0.0, now - self.arrived)

    def serves(self, asking: Asking, now: float, longest: float) -> bool:
        """Whether it may be given out without asking the backend; ``longest`` bounds what the backend allows."""
        here = now - self.arrived
        left = min(self.lifetime, longest) - here
        return not asking.asks_anew and left > asking.min_fresh and self.age(now) < asking.max_age

    def conditions(self) -> bytes:
        """The lines that ask the backend whether it still holds; empty when it cannot be asked."""
        if self.named_here:
            return b""
        lines = b"If-None-Match: %b\r\n" % self.etag if self.etag else b""
        return lines + b"If-Modified-Since: %b\r\n" % self.modified if self.modified else lines

    def unchanged_for(self, asking: Asking) -> bool:
        """Whether the client has it already."""
        if asking.none_match:
            return matches(asking.none_match, self.etag)
        if not asking.modified_since or not self.modified:
            return False
        since, modified = when(asking.modified_since), when(self.modified)
        return since is not None and modified is not None and modified <= since


def is_text(pairs: list[Pair]) -> bool:
    """Whether a body of this type gets smaller by compression."""
    types = values_of(pairs, b"content-type")
    untouchable = any(b"no-transform" in value.lower() for value in values_of(pairs, b"cache-control"))
    return len(types) == 1 and not untouchable and _TEXT.fullmatch(types[0]) is not None


def pack(body: bytes) -> bytes | None:
    """The gzip of a body; ``None`` when that is hardly smaller."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    packed = packer.compress(body) + packer.flush()
    return packed if len(packed) < len(body) * 0.9 else None


def name_of(body: bytes) -> bytes:
    """A name that no other body has."""
    return blake2b(body, digest_size=12).hexdigest().encode()


def _named(etag: bytes) -> list[Pair]:
    return [(b"ETag", etag)] if etag else []


def _varied(pairs: list[Pair]) -> list[Pair]:
    """The same with ``Vary: Accept-Encoding``."""
    if any(b"accept-encoding" in tokens(value) for value in values_of(pairs, b"vary")):
        return pairs
    return [*pairs, (b"Vary", b"Accept-Encoding")]
