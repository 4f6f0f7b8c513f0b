"""The gateway as the bench runs it: the whole data path with limits and metrics on, without supervision.

``python -m bench.gateway PORT BACKEND_URL`` listens for GPU 0 on PORT.
"""

import asyncio
import sys
from dataclasses import replace

from gateway import __version__
from gateway.config import Config, Rate
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.ratelimit import Limiter
from gateway.server import Server


async def serve(port: int, url: str) -> None:
    """Run until the process is ended."""
    config = Config()
    # Everything is checked, nothing refused.
    wide = Rate(1_000_000, 1_000_000)
    rate = replace(config.rate, scope="all", all=wide)
    config = replace(
        config,
        listen=replace(config.listen, front_port=0, gpu_ports=(port,)),
        backend=replace(config.backend, url=url, start=False),
        rate=rate,
        # nginx's access log is off, too.
        log=replace(config.log, access=False),
    )
    fleet = Fleet(1)
    fleet.members[0].backend_up("bench")
    metrics = Metrics(1, __version__)
    server = Server(config, fleet, Limiter(config.rate, 1), metrics, {})
    metrics.watch_pools(server.pools)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(int(sys.argv[1]), sys.argv[2]))
