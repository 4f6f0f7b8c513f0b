"""``python -m bench.path``: what the gateway's own code takes for one small GET, without sockets and without a kernel.

Feeds the bytes of requests and answers to the data path as the event loop would, all features on, and takes the time of
the fastest of many short runs: steadier than any figure with processes in it, so that single changes can be judged.
``--profile`` shows where it goes.
"""

import argparse
import asyncio
import cProfile
import logging
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.load import Ask
from gateway import __version__
from gateway.auth.guard import Guard
from gateway.config import Config, Rate
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.proxy import Proxy
from gateway.ratelimit import Limiter
from gateway.wire.backend import BackendConnection
from gateway.wire.client import ClientConnection
from gateway.wire.deadlines import Deadlines

ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 150\r\nLast-Modified: Sat, 21 Nov 2026 11:00:00 GMT\r\nConnection: keep-alive\r\n"
    b'ETag: "6920-96"\r\nAccept-Ranges: bytes\r\n\r\n' + bytes(150)
)


class Wire:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50000) if name in {"peername", "sockname"} else None

    def set_write_buffer_limits(self, high: int) -> None:
        """No limit."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing to end."""

    close = abort


def proxy_of(folder: Path) -> Proxy:
    """The data path with everything on: limits, keys' gate, cache, metrics, access log."""
    config = Config()
    wide = Rate(1_000_000, 1_000_000)
    config = replace(
        config,
        rate=replace(config.rate, scope="all", all=wide),
        auth=replace(config.auth, folder=str(folder)),
    )
    fleet = Fleet(config.gpus)
    fleet.members[0].backend_up("bench", boot="one")
    return Proxy(
        config,
        limiter=Limiter(config.rate, config.gpus),
        fleet=fleet,
        metrics=Metrics(config.gpus, __version__),
        guard=Guard(config),
    )


class Way:
    """One client connection and one to the backend, both kept alive."""

    def __init__(self, proxy: Proxy) -> None:
        self._client = ClientConnection(proxy, 0)
        self._client.connection_made(Wire())  # type: ignore[arg-type]  # all that is asked of it is there
        pool = proxy.pools[0]
        self._backend = BackendConnection(pool)
        self._backend.connection_made(Wire())  # type: ignore[arg-type]
        pool.busy += 1
        pool.release(self._backend, reusable=True)

    def once(self, head: bytes) -> None:
        """One request and its answer."""
        self._client.data_received(head)
        self._backend.data_received(ANSWER)


def fastest(run: Callable[[], None], count: int, rounds: int) -> float:
    """Microseconds of one of ``count``, in the fastest of so many rounds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best / count * 1e6


async def measure(rounds: int, *, profile: bool) -> None:
    """Print both kinds of heads."""
    logging.basicConfig(level=logging.INFO, filename="/dev/null")
    count = 200
    with tempfile.TemporaryDirectory() as folder:
        proxy = proxy_of(Path(folder))
        proxy.start(Deadlines(asyncio.get_running_loop(), 0.5))
        way = Way(proxy)
        same = [Ask("/small").head(8181)] * count
        varied = [Ask("/small", varied=True).head(8181, number) for number in range(count)]
        for name, heads in (("same heads", same), ("changing heads", varied)):

            def run(heads: list[bytes] = heads) -> None:
                once = way.once
                for head in heads:
                    once(head)
                proxy.access.flush()

            run()
            print(f"{name:<16} {fastest(run, count, rounds):6.2f} µs")
            if profile:
                profiler = cProfile.Profile()
                profiler.runcall(run)
                pstats.Stats(profiler).sort_stats("tottime").print_stats(28)
        proxy.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.path", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=400, help="short runs of which the fastest counts (default 400)")
    parser.add_argument("--profile", action="store_true", help="show where it goes")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.rounds, profile=chosen.profile))


if __name__ == "__main__":
    main()
