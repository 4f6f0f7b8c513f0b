"""The gateway as the bench runs it: the whole data path with limits and metrics on, without supervision.

``python -m bench.gateway PORT BACKEND_URL`` listens for GPU 0 on PORT; with ``hold`` behind, bridges keep what another
backend would have to be told, as they do with a journal.
"""

import asyncio
import sys
from dataclasses import replace

from bench.files import allow_files
from gateway import __version__
from gateway.config import Config, Rate, Timeouts
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.ratelimit import Limiter
from gateway.server import Server
from gateway.ws_bridge import Bridge


class Keeper:
    """Holds nobody, but lets bridges keep what it would take."""

    def keep(self, bridge: Bridge) -> float:
        """Not at all."""
        return 0.0

    def forget(self, bridge: Bridge) -> None:
        """There is nothing to forget."""


def build(port: int, url: str, timeouts: Timeouts | None = None) -> Server:
    """The gateway's listening side for GPU 0 alone, not started."""
    config = Config()
    # Everything is checked, nothing refused.
    wide = Rate(1_000_000, 1_000_000)
    rate = replace(config.rate, scope="all", all=wide)
    config = replace(
        config,
        listen=replace(config.listen, front_port=0, gpu_ports=(port,)),
        backend=replace(config.backend, url=url, start=False),
        rate=rate,
        timeouts=timeouts or config.timeouts,
        # nginx's access log is off, too.
        log=replace(config.log, access=False),
    )
    fleet = Fleet(1)
    fleet.members[0].backend_up("bench")
    metrics = Metrics(1, __version__)
    server = Server(config, fleet, Limiter(config.rate, 1), metrics, {})
    metrics.watch_pools(server.pools)
    return server


async def serve(port: int, url: str, *, hold: bool = False) -> None:
    """Run until the process is ended."""
    allow_files()
    server = build(port, url)
    if hold:
        server.bridges.keeper = Keeper()
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(int(sys.argv[1]), sys.argv[2], hold=sys.argv[3:] == ["hold"]))
