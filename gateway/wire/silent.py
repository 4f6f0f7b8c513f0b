"""A WebSocket without a backend side: its control frames are answered here, so that its client stays.

Owns that answer, for clients that are held until there is a backend again, and the socket of one whose id somebody
else has taken over, which hears nothing more. Must never know backends.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from gateway.wire.bridge_end import GOING_AWAY
from gateway.wire.frames import close_frame, frame
from gateway.wire.replay import CLOSE, PING, Replay

PONG: Final = 0xA
PROTOCOL_ERROR: Final = 1002

_LONGEST: Final = 125
"""Bytes of a control frame's payload (RFC 6455 §5.5)."""
_UNREAD: Final = 64 * 1024
"""Bytes of answers that a client may leave unread."""


def answer_controls(client: asyncio.Transport, controls: Iterable[tuple[int, bytes]]) -> None:
    """Answer what a client asks of the other end that it has not got: Ping with Pong, Close with Close."""
    for opcode, payload in controls:
        if client.is_closing():
            return
        if len(payload) > _LONGEST:
            client.write(close_frame(PROTOCOL_ERROR, masked=False))
            client.close()
        elif opcode == PING:
            client.write(frame(PONG, payload))
        elif opcode == CLOSE:
            client.write(frame(CLOSE, payload))
            client.close()
    if client.get_write_buffer_size() > _UNREAD:
        # Who asks and never reads the answers is not there any more.
        client.abort()


class Silent(asyncio.Protocol):
    """The protocol of one such socket; ``over`` is called when it is gone."""

    def __init__(self, transport: asyncio.Transport, over: "Callable[[Silent], None]") -> None:
        self._transport = transport
        self._over = over
        self._controls = Replay()
        transport.set_protocol(self)
        if not transport.is_closing():
            transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Answer control frames; drop the rest."""
        answer_controls(self._transport, self._controls.feed(data))
        self._controls.forget()
        if not self._controls.possible:
            # One frame larger than anything a ComfyUI client sends: it is no listener, and cannot be followed.
            self.go_away()

    def eof_received(self) -> None:
        """Close the other direction, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left."""
        self._over(self)

    def go_away(self) -> None:
        """Say goodbye and close."""
        if not self._transport.is_closing():
            self._transport.write(close_frame(GOING_AWAY, masked=False))
            self._transport.close()

    def abort(self) -> None:
        """End it now."""
        self._transport.abort()
