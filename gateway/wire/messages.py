"""A stream of WebSocket frames from a server, cut into whole messages, so that several streams can become one.

Pure. Owns the order of RFC 6455 §5.4: control frames may stand between the fragments of a message, and pass by
themselves. Knows nothing of extensions: streams that were compressed cannot be joined. Must never know what is said.
"""

from typing import Final, NamedTuple

from gateway.wire.frames import frame_sizes

TEXT: Final = 0x1
LIMIT: Final = 256 * 1024 * 1024
"""Bytes of one message; more is no preview and no picture."""


class TooLargeError(ValueError):
    """A message is larger than ``LIMIT``."""


class Message(NamedTuple):
    """One message, or one control frame."""

    opcode: int
    raw: bytes
    """Its frames as they came."""
    payload: bytes
    """Empty for a message in fragments, which nobody needs to read."""


class Messages:
    """Collects bytes and gives whole messages."""

    def __init__(self) -> None:
        self._part = bytearray()
        self._fragments = bytearray()
        self._opcode = 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes; raises ``TooLargeError``."""
        part = self._part
        part += data
        found: list[Message] = []
        while sizes := frame_sizes(part):
            head, length = sizes
            if head + length + len(self._fragments) > LIMIT:
                raise TooLargeError
            if len(part) < head + length:
                break
            raw = bytes(part[: head + length])
            del part[: head + length]
            if (message := self._take(raw, head)) is not None:
                found.append(message)
        return found

    def _take(self, raw: bytes, head: int) -> Message | None:
        opcode, last = raw[0] & 0x0F, bool(raw[0] & 0x80)
        if opcode & 0x8 or (last and opcode):
            return Message(opcode, raw, raw[head:])
        self._opcode = opcode or self._opcode
        self._fragments += raw
        if not last:
            return None
        whole, self._fragments = bytes(self._fragments), bytearray()
        return Message(self._opcode, whole, b"")
