"""Tells a backend how many jobs of each client wait at the gateway, so that ``status`` on its WebSocket counts them.

Owns what each backend has been told. Some clients take ``queue_remaining: 0`` for the end of their job; one that waits
here would be over before it began. Plain ComfyUI counts what it has itself, and is not told. Must never wait long.
"""

import asyncio
import logging
from collections import Counter

from gateway.fleet.ask import AskError
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.schedule import Schedule

log = logging.getLogger("gateway.jobs")


class Counts:
    """``tell`` brings the backends up to date."""

    def __init__(self, peers: Peers, schedule: Schedule) -> None:
        self._peers = peers
        self._schedule = schedule
        self._told: dict[Peer, tuple[str, Counter[str]]] = {}
        """The life of each backend, and what that has been told."""
        self._deaf: dict[Peer, str] = {}
        """Backends that do not want to know, by their life."""
        self._telling = {peer: asyncio.Lock() for peer in peers}

    async def tell(self) -> None:
        """Say what has changed to those that are there; who does not hear it is told the next time."""
        there = [peer for peer in self._peers.there if self._deaf.get(peer) != peer.member.boot]
        # One of them: a client of all hears the sum.
        for place, peer in enumerate(there):
            await self._tell(peer, Counter(self._schedule.homes.here.values()) if place == 0 else Counter())

    async def _tell(self, peer: Peer, now: Counter[str]) -> None:
        async with self._telling[peer]:
            boot = peer.member.boot
            life, told = self._told.get(peer, ("", Counter[str]()))
            if life != boot:
                told = Counter()
            changed = {client: now[client] for client in now.keys() | told.keys() if now[client] != told[client]}
            if not changed:
                return
            try:
                reply = await peer.count(changed)
            except AskError as error:
                log.debug("a backend does not hear what waits: %s", error)
                return
            if reply.status != 200:
                self._deaf[peer] = boot
                return
            self._told[peer] = (boot, now)
