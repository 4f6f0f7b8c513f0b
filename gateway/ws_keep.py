"""Keeps clients' WebSockets open while the backend is away, and gives them another backend side when it is back.

Owns the bridges whose backend has died, and the second handshake, which the client never sees. What a client missed is
told before what comes next. Must never look into a frame.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.wire.frames import frame
from gateway.wire.handshake import shake
from gateway.ws_bridge import Bridge

_log = logging.getLogger("gateway.bridges")

Missed = Callable[[str, str, float, float], Awaitable[list[bytes]]]
"""Client id, GPU label, from and until (seconds since 1970): the events, as JSON, with which jobs ended meanwhile."""

_TEXT: Final = 0x1
DEATH: Final = 3.0
"""Seconds after which a backend that broke off one socket and still lives has not died."""
PATIENCE: Final = 5.0
"""Seconds for one handshake."""


class Keeper:
    """``urls`` of the backends, in the fleet's order; ``hold``: seconds that a client is held at most, 0: none is."""

    def __init__(self, urls: Sequence[str], hold: float, fleet: Fleet, missed: Missed) -> None:
        self._urls = urls
        self._hold = hold
        self._fleet = fleet
        self._missed = missed
        self._held: dict[Bridge, float] = {}
        """Since when, in seconds since 1970."""
        self._back: asyncio.Queue[Member] = asyncio.Queue()

    def keep(self, bridge: Bridge) -> float:
        """Take a bridge on whose backend side is gone (``Bridge`` asks); the seconds it is held, 0 if it is not."""
        boot = self._member(bridge).boot
        self._held[bridge] = time.time()
        asyncio.get_running_loop().call_later(DEATH, self._look, bridge, boot)
        return self._hold

    def forget(self, bridge: Bridge) -> None:
        """Its client has left, or has been let go."""
        self._held.pop(bridge, None)

    def backend_back(self, member: Member) -> None:
        """A backend has its jobs again: clients may hear from it."""
        self._back.put_nowait(member)

    async def run(self) -> None:
        """Renew bridges whenever their backend is back; never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                back = await self._back.get()
                for bridge in [bridge for bridge in self._held if self._member(bridge) is back]:
                    since = self._held.pop(bridge)
                    tasks.create_task(self._renew(bridge, since), name="bridge-renewal")

    def _look(self, bridge: Bridge, boot: str) -> None:
        """A backend that lives on did not die: it has broken this one socket off, and so must we."""
        member = self._member(bridge)
        if bridge in self._held and member.up and member.boot == boot:
            del self._held[bridge]
            bridge.let_go()

    def _member(self, bridge: Bridge) -> Member:
        """The backend that it leads to."""
        return self._fleet.member(int(bridge.gpu)) if bridge.gpu.isdigit() else self._fleet.members[0]

    async def _renew(self, bridge: Bridge, since: float) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                transport, rest = await self._shake(bridge)
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("a client's events cannot be had again: %s", error or "no answer in time")
            if bridge.parked:
                bridge.let_go()
            return
        farewells: list[bytes] = []
        try:
            if bridge.renewal is not None:
                farewells = await self._missed(bridge.renewal.client_id, bridge.gpu, since, time.time())
        except Exception:  # noqa: BLE001 (the task group would take every bridge, and the gateway, down with this one)
            _log.exception("it is not known what a client has missed")
        if not bridge.parked:
            transport.abort()  # the client has left meanwhile
            return
        bridge.renew(transport, b"".join(frame(_TEXT, event) for event in farewells), rest)

    async def _shake(self, bridge: Bridge) -> tuple[asyncio.Transport, bytes]:
        renewal = bridge.renewal
        if renewal is None:
            raise ValueError("it is not known how they were asked for")
        return await shake(self._urls[self._member(bridge).index], renewal.request, renewal.answer)
