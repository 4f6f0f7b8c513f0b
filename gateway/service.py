"""What all requests share: settings in the form in which they are read, the pool, the bridges, who is here.

Owns the sets of clients, requests and tasks in progress, and their end. Must never decide anything about a request;
that is ``proxy.py``.
"""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gateway.api.front import Api
from gateway.auth.guard import Guard
from gateway.auth.quotas import Quotas
from gateway.cache.cache import Cache
from gateway.config import Config
from gateway.errors import GATEWAY_BUSY, GatewayError
from gateway.fleet.lanes import Fleet
from gateway.forwarded import TrustedNetworks
from gateway.jobs.desk import Desk
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.whereabouts import Whereabouts
from gateway.layout import Place, layout
from gateway.observe.access import AccessLog
from gateway.observe.lines import JSON
from gateway.observe.metrics import Metrics
from gateway.ratelimit import Limiter
from gateway.request import Kind, Request
from gateway.spread import Spread
from gateway.wire.answer import Made, error_answer, render
from gateway.wire.client import ClientConnection
from gateway.wire.deadlines import Deadlines
from gateway.wire.exchange import Exchange
from gateway.wire.fields import GPU_HEADER
from gateway.wire.pool import Pool
from gateway.ws_bridge import Bridges
from gateway.ws_confluences import Confluences

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracing  # loads the SDK

Handler = Callable[[Request], Awaitable[Made]]

FRONT: Final = "front"
"""The ``gpu`` label of what the front door sends without choosing a GPU."""


class Service:
    """What all requests share, as client connections and exchanges see it; ``Proxy`` adds how one begins."""

    deadlines: Deadlines

    def __init__(
        self,
        config: Config,
        *,
        limiter: Limiter,
        fleet: Fleet,
        metrics: Metrics,
        own_routes: Mapping[bytes, Handler] | None = None,
        desk: Desk | None = None,
        api: Api | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Take a whole configuration and those who decide.

        ``own_routes``: decoded paths of the front door that the gateway answers itself. ``desk`` takes what concerns
        jobs on any port; ``None``: jobs are requests like all others. ``api`` answers the routes that are ours
        alone. ``guard`` says who may pass; ``None``: everybody. ``pools`` and ``bridges`` are there at once, for
        metrics to watch; nothing runs before ``start``.
        """
        self.config = config
        self.limiter = limiter
        self.fleet = fleet
        self.metrics = metrics
        self.own_routes = dict(own_routes or {})
        self.desk = desk
        self.api = api
        self.guard = guard
        self.quotas = Quotas(guard.gate) if guard is not None else None
        self.tracing: Tracing | None = None
        """Who makes spans of requests; ``None``: nobody."""
        self.secure = bool(config.tls.certificate)
        places = layout(config)
        self.pools = [Pool(config, place.backend.url) for place in places]
        """One for each backend."""
        self.spread = self._spread(config, places) if len(self.pools) > 1 else None
        """Who takes requests that concern all backends, where there is more than one."""
        self.cache = Cache(config.cache) if config.cache.enabled else None
        metrics.watch_cache(self.cache)
        self.bridges = Bridges(metrics)
        self.confluences = Confluences(fleet, [place.backend.url for place in places]) if len(self.pools) > 1 else None
        """The front door's events of all backends, where there is more than one."""
        self.access = AccessLog(enabled=config.log.access, as_json=config.log.format == JSON)
        self.clients: set[ClientConnection] = set()
        self.running: set[Exchange] = set()
        """Requests in progress."""
        self.tasks: set[asyncio.Task[None]] = set()
        """One per own route being answered."""
        self.draining = False
        self.gpus = config.gpus
        lines = [(place, b"%b: %d\r\n" % (GPU_HEADER, gpu - place.first)) for place in places for gpu in place.gpus]
        self.gpu_lines = [line for _, line in lines]
        """What says to its backend which GPU is meant: by the backend's own number."""
        self.pool_of = [self.pools[place.index] for place, _ in lines]
        """By GPU."""
        self.labels = [str(gpu) for gpu in range(config.gpus)]
        self._ids = itertools.count(1)
        self._id_prefix = secrets.token_hex(6).encode()
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Go by these limits, time-outs, trusted proxies and this access log; the rest of them is not looked at.

        A connection keeps the limits of its request line and number of fields with which it began.
        """
        self.timeouts = config.timeouts
        self.limits = config.limits
        self.max_body = config.limits.body
        self.trusted = TrustedNetworks(config.forwarded.trusted_proxies)
        self._max_clients = config.listen.max_connections
        self.access.want(wanted=config.log.access)
        self.bridges.bridge_close = config.timeouts.bridge_close
        if self.cache is not None:
            self.cache.apply(config.cache)
        for pool in self.pools:
            pool.apply(config)

    def _spread(self, config: Config, places: Sequence[Place]) -> Spread:
        if self.desk is not None:
            return Spread(self.desk.peers, self.fleet, self.desk.whereabouts)
        patience, largest = config.timeouts.read, config.limits.body
        peers = Peers([Peer(each.backend.url, self.fleet.members[each.index], patience, largest) for each in places])
        return Spread(peers, self.fleet, Whereabouts())

    def start(self, deadlines: Deadlines) -> None:
        """Begin to work; called within the running loop."""
        self.deadlines = deadlines
        for pool in self.pools:
            pool.start(deadlines)
        if self.cache is not None:
            self.cache.start(deadlines)
        self.bridges.start(deadlines)
        deadlines.every_look(self.access.flush)

    @property
    def busy(self) -> bool:
        """Whether any client is here, or anything is in progress for one that was."""
        return bool(self.clients or self.running or self.tasks or self.bridges.open)

    # The Service of client connections

    def opened(self, client: ClientConnection) -> bool:
        """Count a connection in; false when there are too many."""
        if len(self.clients) >= self._max_clients:
            text = "Too many connections."
            answer = error_answer(GatewayError(GATEWAY_BUSY, text, "Try again soon.", retry_after=1))
            client.write(render(answer, connection=b"close", request_id=b"", with_body=True))
            return False
        self.clients.add(client)
        return True

    def closed(self, client: ClientConnection) -> None:
        """Count it out."""
        self.clients.discard(client)

    def malformed(self, client: ClientConnection, error: GatewayError) -> None:
        """Answer what is no request."""
        request_id = self.next_id()
        gpu = self.labels[client.gpu] if client.gpu is not None else FRONT
        self.metrics.request(gpu, Kind.READ, error.kind.status, 0.0, 0.0, 0, 0)
        if self.access.enabled:
            self.access.line(
                client=client.peer,
                method=b"-",
                target=b"-",
                status=error.kind.status,
                gpu=gpu,
                kind="malformed",
                request_id=request_id,
            )
        answer = error_answer(error)
        client.reply(render(answer, connection=b"close", request_id=request_id, with_body=True), keep=False)

    # For requests

    def next_id(self) -> bytes:
        """A request id that no other request has."""
        return b"%b%08x" % (self._id_prefix, next(self._ids))

    def close(self) -> None:
        """End everything at once."""
        for request in list(self.running):
            request.client_gone()
        for client in list(self.clients):
            client.abort()
        for task in list(self.tasks):
            task.cancel()
        self.bridges.abort()
        for pool in self.pools:
            pool.close()
        self.access.flush()
