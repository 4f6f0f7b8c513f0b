"""One side of a bridge: what its socket receives goes to the other side's, as fast as that takes it.

Owns one socket's reading and writing, and the counts of what has passed. What an end of either stream means is the
bridge's to say. Must never look into a frame.
"""

import asyncio
from typing import Final, Protocol

from gateway.wire.frames import FrameFollower, close_frame
from gateway.wire.replay import Replay
from gateway.wire.sockets import end_sending

GOING_AWAY: Final = 1001


class Joint(Protocol):
    """The bridge, as its two ends see it."""

    parked: bool

    def half_closed(self, end: "End") -> None:
        """One side sends no more."""

    def side_lost(self, end: "End") -> None:
        """One socket is gone."""

    def heard(self, controls: list[tuple[int, bytes]]) -> None:
        """The client says something while its other end is not there; ``controls`` are the control frames in it."""


class Counter(Protocol):
    """Where bridges are counted."""

    def bridge_opened(self, gpu: str) -> None:
        """One more is open."""

    def bridge_closed(self, gpu: str) -> None:
        """One less."""

    def bridge_bytes(self, gpu: str, direction: str, n: int, /) -> None:
        """Bytes passed."""

    def bridge_messages(self, gpu: str, direction: str, n: int, /) -> None:
        """Data messages passed."""


class End(asyncio.Protocol):
    """One side of a bridge: what it receives goes to the other side."""

    __slots__ = (
        "_bridge",
        "_counted_bytes",
        "_counted_messages",
        "_last_words",
        "_over",
        "direction",
        "eof",
        "follower",
        "lost",
        "other",
        "passed",
        "replay",
        "transport",
    )

    def __init__(self, bridge: Joint, transport: asyncio.Transport, direction: str) -> None:
        self._bridge = bridge
        self.transport = transport
        self.direction = direction
        """Where bytes received here go."""
        self.other: End
        self.eof = False
        self.lost = False
        self.follower = FrameFollower()
        self.passed = 0
        self.replay: Replay | None = None
        """What has been received here, for a backend that must hear it again."""
        self._last_words = b""
        """What the other side is sent at the end of the frame that is passing."""
        self._over = False
        """Whether the other side has had its last words: nothing may follow them."""
        self._counted_bytes = 0
        self._counted_messages = 0

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        if self._over:
            return
        if self._last_words:
            data = self._cut(data)
        self.passed += len(data)
        self.follower.feed(data)
        if self.replay is not None:
            controls = self.replay.feed(data)
            if self._bridge.parked:
                self._bridge.heard(controls)
        other = self.other
        if not other.lost:
            other.transport.write(data)

    def eof_received(self) -> bool:
        """Close the other side's direction, too; what still flows the other way flows on until the deadline."""
        self._bridge.half_closed(self)
        # Over TLS both directions end at once, and the loop says so when it is asked for anything else.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """One side is gone: so is the other, after what it was sent has been flushed."""
        self.lost = True
        self._bridge.side_lost(self)

    def pause_writing(self) -> None:
        """This side is slow: take no more from the other."""
        self.other.hold(hold=True)

    def resume_writing(self) -> None:
        """It has caught up."""
        self.other.hold(hold=False)

    def hold(self, *, hold: bool) -> None:
        """Stop or go on reading here."""
        if self.lost or self.transport.is_closing():
            return
        if hold:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def send_close(self, *, masked: bool, wait: bool = False) -> None:
        """Put a Close frame into what this side is sent, and nothing after it.

        Where a frame is half passed none can be put in: that direction is closed, or with ``wait`` its end waited for.
        """
        if self.lost or self.transport.is_closing() or self.other.eof or self.other.follower.closing:
            return
        self.other.conclude(close_frame(GOING_AWAY, masked=masked), wait=wait)

    def conclude(self, words: bytes, *, wait: bool) -> None:
        """Let these be the last that the other side is sent."""
        if self._over:
            return
        if self.follower.at_boundary:
            self._over = True
            self.other.transport.write(words)
        elif wait:
            self._last_words = words
        else:
            end_sending(self.other.transport)

    @property
    def concluding(self) -> bool:
        """Whether the end of a frame is waited for."""
        return bool(self._last_words)

    def _cut(self, data: bytes) -> bytes:
        """The bytes up to the end of the frame that is passing, if it is in them, and the last words behind it."""
        end = self.follower.frame_end(data)
        if end is None:
            return data
        words, self._last_words = self._last_words, b""
        self._over = True
        return data[:end] + words

    def count(self, counter: Counter, gpu: str) -> None:
        """Report what has passed since the last report."""
        if self.passed != self._counted_bytes:
            counter.bridge_bytes(gpu, self.direction, self.passed - self._counted_bytes)
            self._counted_bytes = self.passed
        if self.follower.messages != self._counted_messages:
            counter.bridge_messages(gpu, self.direction, self.follower.messages - self._counted_messages)
            self._counted_messages = self.follower.messages
