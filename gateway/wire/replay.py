"""What a client has sent over a bridge, as it would have to be sent once more to a backend that has forgotten it.

Pure. Keeps data frames as they came, up to a bound; drops control frames, which are answered here while there is no
backend. Kept whole, they also bring a compressor's state along (RFC 7692 §7). Must never know sockets.
"""

from typing import Final

from gateway.wire.frames import frame_sizes

PING: Final = 0x9
CLOSE: Final = 0x8

_LIMIT: Final = 16 * 1024
"""Bytes; ComfyUI's clients send one small message and then listen."""


class Replay:
    """Follows one direction of a bridge, client to backend."""

    __slots__ = ("_kept", "_part", "possible")

    def __init__(self) -> None:
        self.possible = True
        """Whether all of it has been kept."""
        self._kept = bytearray()
        self._part = bytearray()

    @property
    def data(self) -> bytes:
        """What would have to be sent."""
        return bytes(self._kept + self._part)

    def forget(self) -> None:
        """Drop the data frames kept so far."""
        self._kept.clear()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Follow bytes; the control frames that are complete with them, as opcode and payload."""
        if not self.possible:
            return []
        part = self._part
        part += data
        controls: list[tuple[int, bytes]] = []
        while (sizes := frame_sizes(part)) and len(part) >= sum(sizes):
            head, length = sizes
            frame = bytes(part[: head + length])
            del part[: head + length]
            opcode = frame[0] & 0x0F
            if opcode & 0x8:
                mask = frame[head - 4 : head] if frame[1] & 0x80 else b"\0\0\0\0"
                payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(frame[head:]))
                controls.append((opcode, payload))
            else:
                self._kept += frame
        if len(self._kept) + len(part) > _LIMIT:
            self.possible = False
            self._kept.clear()
            part.clear()
        return controls
