"""Message bodies: where they end, and that their chunks are well-formed; the payload itself is never looked at.

Pure. Owns the framings of RFC 9112 §6-7 in both directions. Must never know sockets, limits on bodies or who sends.
A reader is fed what came off the wire and gives the payload; what comes after the body is left in ``rest``.
"""

import re
from typing import Final, Protocol

Pair = tuple[bytes, bytes]

LAST_CHUNK: Final = b"0\r\n\r\n"

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\r\n")
_MAX_SIZE_LINE: Final = 512
_MAX_TRAILERS: Final = 8192
_MAX_LINES: Final = 64


class BodyError(Exception):
    """The chunked framing is broken."""


class Body(Protocol):
    """One body being read."""

    done: bool
    rest: bytes
    trailers: list[Pair]

    def feed(self, data: bytes) -> bytes:
        """Take bytes off the wire and give the payload among them; raise ``BodyError`` when they are no body."""


class Counted:
    """A body of ``Content-Length`` bytes."""

    __slots__ = ("done", "left", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: list[Pair] = []

    def feed(self, data: bytes) -> bytes:
        """Give at most what is left."""
        left = self.left - len(data)
        if left > 0:
            self.left = left
            return data
        self.done = True
        if left < 0:
            size = self.left
            self.left = 0
            self.rest = data[size:]
            return data[:size]
        self.left = 0
        return data


class UntilClose:
    """A body that ends with its connection (answers only)."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[Pair] = []

    def feed(self, data: bytes) -> bytes:
        """Give everything."""
        return data


class Chunked:
    """A body in chunks (RFC 9112 §7.1); extensions are dropped, trailers collected within bounds."""

    __slots__ = ("_left", "_line", "_step", "_trailer_bytes", "done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[Pair] = []
        self._step = _SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Give the payload of all chunks in ``data``."""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.done:
            if self._step == _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._step = _DATA_END
            else:
                at = self._take_line(data, at)
        if self.done:
            self.rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_line(self, data: bytes, at: int) -> int:
        """Complete the line at ``at`` and act on it; the position behind what was taken."""
        bound = _MAX_TRAILERS if self._step == _TRAILERS else _MAX_SIZE_LINE
        newline = data.find(b"\n", at, at + bound)
        end = newline + 1 if newline >= 0 else min(len(data), at + bound)
        line = self._line + data[at:end]
        if newline < 0:
            if len(line) >= bound:
                raise BodyError("a chunk's line is too long")
            if self._step == _DATA_END and not b"\r\n".startswith(line):
                raise BodyError("a chunk is longer than its size")
            self._line = line
            return end
        self._line = b""
        if self._step == _SIZE:
            self._size_line(line)
        elif self._step == _DATA_END:
            if line != b"\r\n":
                raise BodyError("a chunk is longer than its size")
            self._step = _SIZE
        else:
            self._trailer_line(line)
        return end

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise BodyError("a chunk's size is malformed")
        self._left = int(match[1], 16)
        self._step = _DATA if self._left else _TRAILERS

    def _trailer_line(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        self._trailer_bytes += len(line)
        match = _TRAILER_LINE.fullmatch(line)
        if match is None or self._trailer_bytes > _MAX_TRAILERS or len(self.trailers) >= _MAX_LINES:
            raise BodyError("a trailer is malformed")
        self.trailers.append((match[1], match[2]))


_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILERS: Final = 3


def chunk(data: bytes) -> bytes:
    """One chunk; ``data`` must not be empty, for that would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: list[Pair]) -> bytes:
    """The end of a chunked body."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n" + b"".join([b"%b: %b\r\n" % pair for pair in trailers]) + b"\r\n"
