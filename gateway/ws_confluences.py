"""All confluences: which sockets they still need, and the opening of those.

Owns the tasks. What a client missed while a backend was away is told before what comes next. Must never look into a
frame.
"""

import asyncio
import logging
import time
from collections.abc import Sequence

from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.wire.frames import frame
from gateway.wire.handshake import shake
from gateway.wire.messages import TEXT
from gateway.ws_bridge import Renewal
from gateway.ws_confluence import Confluence
from gateway.ws_keep import PATIENCE, Missed

_log = logging.getLogger("gateway.bridges")


class Confluences:
    """All of them; ``run`` opens the sockets that they need."""

    def __init__(self, fleet: Fleet, urls: Sequence[str]) -> None:
        self.hold = 0.0
        self.missed: Missed | None = None
        self._fleet = fleet
        self._urls = urls
        self._open: set[Confluence] = set()
        self._wanted: asyncio.Queue[tuple[Confluence, Member]] = asyncio.Queue()

    def join(self, first: asyncio.Transport, rest: bytes, home: Member, renewal: Renewal) -> Confluence:
        """The stream of all backends; ``first`` is the socket at ``home``, from which ``rest`` has come already."""
        made = Confluence(self, home, first, rest, renewal)
        self._open.add(made)
        there = [member for member in self._fleet.members if member is home or member.up]
        made.expect(there)
        for member in there:
            if member is not home:
                self.want(made, member)
        return made

    def want(self, confluence: Confluence, member: Member) -> None:
        """Open a socket at this backend."""
        self._wanted.put_nowait((confluence, member))

    def forget(self, confluence: Confluence) -> None:
        """It has ended."""
        self._open.discard(confluence)

    def backend_back(self, member: Member) -> None:
        """A backend takes requests again: whoever listened to all of them listens to it, too."""
        for confluence in self._open:
            if not confluence.hears(member):
                self.want(confluence, member)

    async def run(self) -> None:
        """Open what is wanted; never ends by itself."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._connect(*await self._wanted.get()), name="confluence")

    async def _connect(self, confluence: Confluence, member: Member) -> None:
        if confluence.is_closing() or confluence.hears(member) or not confluence.replay.possible:
            return
        renewal, since = confluence.renewal, confluence.away_since(member)
        try:
            async with asyncio.timeout(PATIENCE):
                transport, rest = await shake(self._urls[member.index], renewal.request, renewal.answer)
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("the events of backend %d cannot be had: %s", member.index, error or "no answer in time")
            confluence.give_up_on(member)
            return
        told = b""
        try:
            if since is not None and self.missed is not None:
                for gpu in range(member.first, member.first + member.gpus):
                    events = await self.missed(renewal.client_id, str(gpu), since, time.time())
                    told += b"".join(frame(TEXT, event) for event in events)
        except Exception:  # noqa: BLE001 (the task group would take every client down with this one)
            _log.exception("it is not known what a client has missed")
        if confluence.is_closing() or confluence.hears(member):
            transport.abort()
            return
        confluence.add(member, transport, told, rest)
