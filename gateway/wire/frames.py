"""WebSocket frame boundaries: follows the headers of frames that pass by, and touches nothing.

Pure. Owns the frame header of RFC 6455 §5.2, as far as its length. Never unmasks, never judges: a stream that is not
WebSocket is simply miscounted. Must never know sockets or who talks.
"""

from typing import Final

_CONTROL: Final = 0x8
_CLOSE: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_LONGEST_HEADER: Final = 14


class FrameFollower:
    """Counts data messages in one direction of a bridge. A message counts when its last frame's header has passed."""

    __slots__ = ("_head", "_skip", "closing", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.closing = False
        """Whether a Close frame has passed: what ends now has been said goodbye to."""
        self._skip = 0
        self._head = b""

    @property
    def at_boundary(self) -> bool:
        """Whether no frame is half passed, so that a frame of our own could be put in."""
        return not self._skip and not self._head

    def frame_end(self, data: bytes) -> int | None:
        """Where in ``data``, which comes next, the frame ends that is half passed; ``None``: not in there."""
        end = self._skip
        if self._head:
            sizes = frame_sizes(self._head + data[:_LONGEST_HEADER])
            if sizes is None:
                return None
            end = sum(sizes) - len(self._head)
        return end if end <= len(data) else None

    def feed(self, data: bytes) -> None:
        """Follow the bytes as they pass; work per frame, not per byte."""
        size = len(data)
        if size <= self._skip:
            self._skip -= size
            return
        at = self._skip
        self._skip = 0
        if self._head:
            data = self._head + data[at:]
            at, size, self._head = 0, len(data), b""
        while at < size:
            end = at + 2
            if end > size:
                break
            first, second = data[at], data[at + 1]
            length = second & 0x7F
            if length == 126:
                end += 2
            elif length == 127:
                end += 8
            if end > size:
                break
            if length >= 126:
                length = int.from_bytes(data[at + 2 : end], "big")
            if second & _MASKED:
                end += 4
            self.messages += bool(first & _FIN and not first & _CONTROL)
            self.closing = self.closing or first & 0x0F == _CLOSE
            at = end + length
        if at > size:
            self._skip = at - size
        else:
            self._head = data[at:]


def frame_sizes(data: bytes | bytearray) -> tuple[int, int] | None:
    """Bytes of header and payload of the frame that begins with these (§5.2); ``None`` while that is not known."""
    if len(data) < 2:
        return None
    length, head = data[1] & 0x7F, 2
    if length == 126:
        head = 4
    elif length == 127:
        head = 10
    if len(data) < head:
        return None
    if length >= 126:
        length = int.from_bytes(data[2:head], "big")
    return head + (4 if data[1] & _MASKED else 0), length


def close_frame(code: int, *, masked: bool) -> bytes:
    """A Close frame; ``masked`` as clients must. The mask is zero: nothing here needs to be unpredictable."""
    payload = code.to_bytes(2, "big")
    if masked:
        return b"\x88\x82\0\0\0\0" + payload
    return b"\x88\x02" + payload


def frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame as servers send it, not masked."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
    return head + payload
