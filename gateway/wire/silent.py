"""A WebSocket whose client id somebody else has taken over: it stays open and hears nothing more.

Owns the socket's client side after its bridge has gone on without it: reads and drops what comes, answers Ping and
Close, so that a living client sees no reason to connect again and to take its id back. Must never know backends.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.wire.bridge_end import GOING_AWAY
from gateway.wire.frames import close_frame, frame
from gateway.wire.replay import CLOSE, PING, Replay

PONG: Final = 0xA


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
        for opcode, payload in self._controls.feed(data):
            if opcode == PING:
                self._transport.write(frame(PONG, payload))
            elif opcode == CLOSE:
                self._transport.write(frame(CLOSE, payload))
                self._transport.close()
        self._controls.forget()
        if not self._controls.possible:
            # One frame larger than anything a ComfyUI client sends: it is no listener, and cannot be followed.
            self.go_away()

    def pause_writing(self) -> None:
        """Not even Pongs are read: it is not there any more."""
        self._transport.abort()

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
