"""Listening: one socket per port and address, the event loop's protocols, drain and stop.

Owns the listening sockets and the order in which everything ends. Must never know what is asked of whom.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gateway.api.front import Api
from gateway.auth.certificate import Certificate
from gateway.auth.guard import Guard
from gateway.config import Config, Timeouts
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.jobs.traced import TracedJobs
from gateway.observe.metrics import Metrics
from gateway.proxy import Proxy
from gateway.ratelimit import Limiter
from gateway.service import Handler
from gateway.wire.client import ClientConnection
from gateway.wire.deadlines import Deadlines

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracing  # loads the SDK

_log = logging.getLogger("gateway.server")

_GOODBYE: Final = 0.5
"""Share of the time to drain after which bridges are told to close; requests may use all of it."""

_FIRST: Final = 1.0
"""Seconds in which the first request of a connection that was accepted just now may still come."""

_PARTING: Final = 1.0
"""Seconds that bridges get to close once they are told to and no request is in flight."""


class Bound(NamedTuple):
    """One address that is listened on; ``gpu`` is ``None`` for the front door."""

    host: str
    port: int
    gpu: int | None


class Server:
    """The gateway's listening side.

    Order of calls: the constructor, ``await start()``, ``await drain()`` or not, ``await close()``; all on one loop.
    """

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        limiter: Limiter,
        metrics: Metrics,
        own_routes: Mapping[bytes, Handler],
        desk: Desk | None = None,
        api: Api | None = None,
        guard: Guard | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        """Take a whole configuration and those who decide; nothing is opened yet.

        ``own_routes``: decoded paths of the front door that the gateway answers itself. ``desk`` takes what concerns
        jobs, if there is a journal. ``guard`` says who may pass, ``certificate`` makes it HTTPS. ``pools`` can be
        watched at once.
        """
        self._config = config
        self._certificate = certificate
        self._proxy = Proxy(
            config,
            limiter=limiter,
            fleet=fleet,
            metrics=metrics,
            own_routes=own_routes,
            desk=desk,
            api=api,
            guard=guard,
        )
        self.pools = self._proxy.pools
        self.bridges = self._proxy.bridges
        self.confluences = self._proxy.confluences
        self._servers: list[asyncio.Server] = []
        self._given: dict[tuple[str, int], socket.socket] = {}
        self._deadlines: Deadlines | None = None
        self._traced: TracedJobs | None = None
        self.bound: list[Bound] = []
        """What is listened on, the front door first."""

    def trace(self, tracing: "Tracing") -> None:
        """Have spans made of requests, and of jobs where there is a journal; comes before ``start``."""
        self._proxy.tracing = tracing

    @property
    def ports(self) -> list[int]:
        """The front door's port and then each GPU's, as the first listening host has them."""
        return [bound.port for bound in self.bound[:: len(self._config.listen.host)]]

    @property
    def clients(self) -> int:
        """Open client connections; bridges not counted."""
        return len(self._proxy.clients)

    @property
    def busy(self) -> bool:
        """Whether any client is here: an open connection or a bridge."""
        return self._proxy.busy

    async def start(
        self, given: Mapping[tuple[str, int], socket.socket] | None = None, *, hold: bool = False
    ) -> list[Bound]:
        """Listen on all ports of the configuration; give the addresses, with the ports the system chose for 0.

        ``given`` are sockets that listen already, by address: they are used in place of new ones. With ``hold`` nobody
        is let in before ``serve``: who connects to a given socket meanwhile waits.

        Raise ``OSError`` whose text names the address when one cannot be had; then nothing is left listening.
        """
        listen = self._config.listen
        self._given = dict(given or {})
        self._deadlines = Deadlines(asyncio.get_running_loop(), step_of(self._config.timeouts))
        self._proxy.start(self._deadlines)
        if (tracing := self._proxy.tracing) is not None and (desk := self._proxy.desk) is not None:
            self._traced = TracedJobs(tracing, desk.journal, desk.live)
        ports: list[tuple[int, int | None]] = [(listen.front_port, None)]
        ports += [(port, gpu) for gpu, port in enumerate(listen.gpu_ports)]
        try:
            for port, gpu in ports:
                for host in listen.host:
                    await self._listen(host, port, gpu, hold=hold)
            for host, port in self._given:
                _log.warning("a socket for %s port %d was handed over, but no setting names it", host, port)
        except OSError:
            await self.close()
            raise
        return self.bound

    def apply(self, config: Config) -> None:
        """Go by new limits and time-outs; sockets, requests and bridges stay."""
        self._proxy.apply(config)
        if self._deadlines is not None:
            self._deadlines.step = step_of(config.timeouts)

    async def drain(self, seconds: float) -> None:
        """Accept nothing more, and let what is in flight finish for at most ``seconds``.

        Bridges, which would never end by themselves, are told to go away when half of the time is over, or as soon
        as no request is left; a client that does not hang up then is not worth the whole time.
        """
        proxy = self._proxy
        proxy.draining = True
        if proxy.api is not None:
            proxy.api.leave()
        self._stop_listening()
        loop = asyncio.get_running_loop()
        start = loop.time()
        end, parting = start + seconds, 0.0
        told = False
        while loop.time() < end:
            waits = loop.time() < start + _FIRST
            for client in [client for client in proxy.clients if client.exchange is None]:
                # A connection is made for a request: the client of a new one has not been told that it may be closed.
                if client.head is not None or not waits:
                    client.close()
            if not told and (not proxy.running or loop.time() >= start + seconds * _GOODBYE):
                told = True
                proxy.bridges.close()
            if not proxy.busy:
                return
            if told and not proxy.running and not any(bridge.concluding for bridge in proxy.bridges.open):
                parting = parting or loop.time() + _PARTING
                end = min(end, parting)
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End everything now; what is left of it ends within this call."""
        self._stop_listening()
        if self._deadlines is not None:
            self._proxy.close()
            self._deadlines.close()
            self._deadlines = None
            await self._gone()
        if self._traced is not None:
            self._traced.close()
        if (tracing := self._proxy.tracing) is not None:
            await asyncio.to_thread(tracing.close)

    async def serve(self) -> None:
        """Let clients in, after ``start`` with ``hold``."""
        for server in self._servers:
            await server.start_serving()

    async def _listen(self, host: str, port: int, gpu: int | None, *, hold: bool) -> None:
        proxy = self._proxy
        loop = asyncio.get_running_loop()
        tls = self._certificate.context if self._certificate is not None else None
        given = self._given.pop((host, port), None)
        where: dict[str, Any] = {"host": host, "port": port} if given is None else {"sock": given}
        try:
            server = await loop.create_server(
                lambda: ClientConnection(proxy, gpu),
                backlog=self._config.listen.backlog,
                ssl=tls,
                start_serving=not hold,
                **where,
            )
        except OSError as error:
            number = error.errno if error.errno in {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL} else None
            reason = os.strerror(number) if number else str(error)
            raise OSError(error.errno or 0, f"cannot listen on {host} port {port}: {reason}") from error
        self._servers.append(server)
        for sock in server.sockets:
            # With 0 each address gets a port of its own.
            name = sock.getsockname()
            self.bound.append(Bound(str(name[0]), int(name[1]), gpu))

    async def _gone(self) -> None:
        """Let the loop tell everyone that is aborted so."""
        for _ in range(100):
            if not self._proxy.busy:
                return
            await asyncio.sleep(0)

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()


def step_of(timeouts: Timeouts) -> float:
    """Seconds between two looks at deadlines: a quarter of the shortest, at most half a second."""
    shortest = min(getattr(timeouts, name) for name in timeouts.__dataclass_fields__)
    return max(0.005, min(0.5, float(shortest) / 4))
