"""The front door's events where there are several backends: one socket at each of them, made into one stream.

Owns those sockets. Towards the bridge it is the transport of one backend: who displaces whom and how it ends stay the
bridge's. Reads ``status`` alone, whose count is that of all.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol, cast

from gateway.fleet.member import Member
from gateway.wire.bridge_end import End
from gateway.wire.frames import close_frame, frame
from gateway.wire.messages import TEXT, Message, Messages, TooLargeError
from gateway.wire.replay import CLOSE, Replay
from gateway.wire.silent import PONG, answer_controls
from gateway.wire.sockets import keep_alive
from gateway.ws_bridge import Renewal
from gateway.ws_keep import DEATH, PATIENCE

_GOING_AWAY: Final = 1001
_STATUS: Final = (b'{"type": "status"', b'{"type":"status"')
_FEATURES: Final = (b'{"type": "feature_flags"', b'{"type":"feature_flags"')


class Owner(Protocol):
    """Who knows of all confluences."""

    hold: float
    """Seconds that a client is held while no backend at all is there."""

    def forget(self, confluence: "Confluence") -> None:
        """It has ended."""


class Confluence(asyncio.Transport):
    """One client's events from all backends, as one transport."""

    def __init__(
        self, owner: Owner, home: Member, first: asyncio.Transport, rest: bytes, renewal: Renewal
    ) -> None:
        super().__init__()
        self.renewal = renewal
        self.replay = Replay()
        self._owner = owner
        self._home = home
        self._first: asyncio.Transport | None = first
        self._rest = rest
        self._sources: dict[Member, Source] = {}
        self._away: dict[Member, float] = {}
        """Since when, in seconds since 1970, a backend that was heard is not any more."""
        self._expected: set[Member] = set()
        """Backends that have not said yet how many jobs are left there."""
        self._hello: dict[str, Any] | None = None
        """A status that may not be told yet: the first one's, if it has said its own."""
        self._protocol: End | None = None
        self._paused = False
        self._closing = False
        self._lost = False
        self._giving_up: asyncio.TimerHandle | None = None

    # For its owner

    def hears(self, member: Member) -> bool:
        """Whether there is a socket at this backend."""
        return member in self._sources

    def expect(self, members: Iterable[Member]) -> None:
        """Wait, but not for ever, for what these have to say, before saying how many jobs are left."""
        self._expected = set(members)
        asyncio.get_running_loop().call_later(PATIENCE, self.give_up_on, *self._expected)

    def give_up_on(self, *members: Member) -> None:
        """These have nothing to say."""
        waited = bool(self._expected)
        self._expected.difference_update(members)
        if waited and not self._expected and self._hello is not None:
            self._tell(self._hello)

    def away_since(self, member: Member) -> float | None:
        """When its socket was lost; ``None`` if there never was one."""
        return self._away.get(member)

    def add(self, member: Member, transport: asyncio.Transport, told: bytes, rest: bytes) -> None:
        """Listen to a backend; ``told`` are frames for the client alone, ``rest`` is what came from there already."""
        self._away.pop(member, None)
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        source = self._sources[member] = Source(self, member, transport)
        if again := self.replay.data:
            transport.write(again)
        if told:
            self._pass(told)
        if rest:
            source.data_received(rest)
        if not self._paused:
            source.hold(hold=False)

    # For its sources

    def heard(self, source: "Source", message: Message) -> None:
        """Pass a message of one backend on, as one of all of them."""
        leads = source is next(iter(self._sources.values()), None)
        if message.opcode == CLOSE:
            if self._closing and leads:
                self._pass(message.raw)
            return
        if message.opcode == PONG and not leads:
            return
        if message.opcode == TEXT:
            if message.payload.startswith(_STATUS):
                self._status(source, message, leads=leads)
                return
            if not leads and message.payload.startswith(_FEATURES):
                return
        self._pass(message.raw)

    def source_lost(self, source: "Source") -> None:
        """One backend's socket is gone."""
        if self._sources.get(source.member) is source:
            del self._sources[source.member]
        if self._lost:
            return
        if self._closing:
            if not self._sources:
                self._end()
            return
        member = source.member
        self.give_up_on(member)
        self._away[member] = time.time()
        loop = asyncio.get_running_loop()
        # A backend that lives on has not died: it has broken this one socket off, and so must we.
        loop.call_later(DEATH, self._look, member, member.boot)
        if not self._sources:
            self._giving_up = loop.call_later(self._owner.hold, self._give_up)

    # The transport, as a bridge uses it

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Begin to tell ``protocol``."""
        self._protocol = cast("End", protocol)
        if (first := self._first) is not None:
            self._first = None
            self.add(self._home, first, b"", self._rest)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is told."""
        assert self._protocol is not None, "set_protocol comes first"  # noqa: S101 (for the type checker)
        return self._protocol

    def write(self, data: Any) -> None:
        """Send to every backend what the client has said."""
        controls = self.replay.feed(bytes(data))
        self._closing = self._closing or any(opcode == CLOSE for opcode, _ in controls)
        for source in list(self._sources.values()):
            source.transport.write(data)
        if not self._sources and self._protocol is not None:
            answer_controls(self._protocol.other.transport, controls)
        if self._closing and not self._sources:
            self._end()

    def write_eof(self) -> None:
        """The client says no more."""
        self.close()

    def close(self) -> None:
        """End every socket, in order."""
        self._closing = True
        for source in list(self._sources.values()):
            source.transport.close()
        if not self._sources:
            self._end()

    def abort(self) -> None:
        """End every socket now."""
        self._closing = True
        for source in list(self._sources.values()):
            source.transport.abort()
        if not self._sources:
            self._end()

    def is_closing(self) -> bool:
        """Whether it is over, or about to be."""
        return self._closing or self._lost

    def pause_reading(self) -> None:
        """The client is slow: take no more from anybody."""
        self._paused = True
        for source in self._sources.values():
            source.hold(hold=True)

    def resume_reading(self) -> None:
        """Go on."""
        self._paused = False
        for source in self._sources.values():
            source.hold(hold=False)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Clients send next to nothing; one that floods a backend loses its socket there."""

    # Inside

    def _pass(self, data: bytes) -> None:
        if self._protocol is not None and not self._lost:
            self._protocol.data_received(data)

    def _status(self, source: "Source", message: Message, *, leads: bool) -> None:
        """The number of jobs left is that of all backends; the session id is the first one's to tell.

        None is told before each of them has said its own: a client takes "nothing left" for the end of its job.
        """
        try:
            found = json.loads(message.payload)
            source.remaining = int(found["data"]["status"]["exec_info"]["queue_remaining"])
        except (ValueError, KeyError, TypeError):
            self._pass(message.raw)
            return
        if not leads:
            found["data"].pop("sid", None)
        if leads or self._hello is None:
            self._hello = found
        self._expected.discard(source.member)
        if not self._expected:
            self._tell(self._hello)

    def _tell(self, status: dict[str, Any]) -> None:
        self._hello = None
        left = sum(each.remaining for each in self._sources.values())
        status["data"]["status"]["exec_info"]["queue_remaining"] = left
        self._pass(frame(TEXT, json.dumps(status).encode()))

    def _look(self, member: Member, boot: str) -> None:
        if member in self._away and member.up and member.boot == boot:
            self._give_up()

    def _give_up(self) -> None:
        """Tell the client that this is the end."""
        if not self.is_closing():
            self._pass(close_frame(_GOING_AWAY, masked=False))
            self.close()

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._owner.forget(self)
        if self._giving_up is not None:
            self._giving_up.cancel()
        if self._protocol is not None:
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Source(asyncio.Protocol):
    """One socket at one backend."""

    def __init__(self, confluence: Confluence, member: Member, transport: asyncio.Transport) -> None:
        self.member = member
        self.transport = transport
        self.remaining = 0
        """Jobs left there, as it said last."""
        self._confluence = confluence
        self._messages = Messages()
        transport.set_protocol(self)
        keep_alive(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what is whole."""
        try:
            for message in self._messages.feed(data):
                self._confluence.heard(self, message)
        except TooLargeError:
            self.transport.abort()

    def eof_received(self) -> None:
        """Close the other direction, too."""

    def pause_writing(self) -> None:
        """The backend does not read what the client says: it is not there any more."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._confluence.source_lost(self)

    def hold(self, *, hold: bool) -> None:
        """Stop or go on reading here."""
        if self.transport.is_closing():
            return
        with contextlib.suppress(RuntimeError):
            if hold:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
