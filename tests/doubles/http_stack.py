"""A gateway's data path with real limiter, fleet and metrics in front of a scripted backend, all in one loop."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.auth.certificate import Certificate
from gateway.config import Config, Rate
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import Metrics
from gateway.proxy import Proxy
from gateway.ratelimit import Limiter
from gateway.server import Server
from gateway.service import Handler
from gateway.wire.deadlines import Deadlines
from tests.doubles.http_backend import Backend, Script, echo, scripted
from tests.doubles.http_client import RawClient, raw
from tests.doubles.wait import until


@dataclass
class Stack:
    """Everything a test may look at."""

    server: Server
    backend: Backend
    fleet: Fleet
    metrics: Metrics
    config: Config

    @property
    def proxy(self) -> Proxy:
        return self.server._proxy

    @property
    def front(self) -> int:
        return self.server.ports[0]

    def port(self, gpu: int) -> int:
        return self.server.ports[gpu + 1]

    def client(self, gpu: int | None = 0, **options: Any) -> contextlib.AbstractAsyncContextManager[RawClient]:
        """Connect to a GPU's port, or to the front door."""
        return raw(self.front if gpu is None else self.port(gpu), **options)

    @property
    def idle(self) -> bool:
        """Whether nothing is held for anybody."""
        pool = self.proxy.pools[0]
        return not (self.proxy.running or pool.busy or pool.waiting or self.proxy.tasks or self.metrics.in_flight)


def config_for(url: str, *, rate: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Config:
    """A configuration on ports that the system chooses; no rate limits and no cache unless they are given."""
    config = Config()
    free = {name: Rate(1e6, 1_000_000) for name in ("submit", "upload", "control", "read", "events", "all")}
    sections: dict[str, dict[str, Any]] = {
        "listen": {"front_port": 0, "gpu_ports": (0, 0, 0, 0)},
        "backend": {"url": url, "start": False},
        "cache": {"enabled": False},
        "rate": {**free, **(rate or {})},
    }
    for name, values in changes.items():
        sections[name] = {**sections.get(name, {}), **values}
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in sections.items()})


@contextlib.asynccontextmanager
async def stack(
    script: Script = echo,
    *,
    own_routes: dict[bytes, Handler] | None = None,
    url: str = "",
    up: bool = True,
    certificate: Certificate | None = None,
    **changes: Any,
) -> AsyncIterator[Stack]:
    """Start a gateway before ``script``; at the end nothing may be left: no request, connection, task, reservation."""
    async with scripted(script) as backend:
        config = config_for(url or backend.url, **changes)
        fleet = Fleet(config.gpus)
        if up:
            fleet.members[0].backend_up("double")
        else:
            fleet.members[0].backend_down("it is starting", 7)
        metrics = Metrics(config.gpus, "test")
        limiter = Limiter(config.rate, config.gpus)
        server = Server(config, fleet, limiter, metrics, own_routes or {}, certificate=certificate)
        await server.start()
        made = Stack(server, backend, fleet, metrics, config)
        try:
            yield made
        finally:
            await server.close()
        await until(lambda: made.idle)
        assert not server._proxy.busy
        await until(lambda: not any(pool._open for pool in server.pools))
        await until(lambda: not server._proxy.deadlines._items)
        assert metrics.bridges_open == 0
        assert all(fleet.lane(gpu).sending == 0 for gpu in range(config.gpus))
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "backend-connect"] == []


class Hands:
    """The clock of all deadlines, in place of the loop's: it stands still until told."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._now = deadlines.now
        deadlines.close()
        deadlines._loop = self  # type: ignore[assignment]  # all that is asked of it is here

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, call: Callable[[], None]) -> "Hands":
        return self

    def cancel(self) -> None:
        pass

    def advance(self, seconds: float) -> None:
        """Let so much time pass, look by look."""
        end = self._now + seconds
        while self._now < end:
            self._now = min(end, self._now + self._deadlines.step)
            self._deadlines._look()


def stop_the_clock(made: Stack) -> Hands:
    """From now on no deadline passes but by ``Hands.advance``, however slow this machine is."""
    return Hands(made.proxy.deadlines)


def blocked(transport: asyncio.WriteTransport) -> bool:
    """Whether a sender has bytes that the system does not take: with a reader that has stopped, it stays so."""
    return transport.get_write_buffer_size() > 0


def rss() -> int:
    """Bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def splits(data: bytes) -> Iterator[list[bytes]]:
    """``data`` whole, byte by byte, and cut once in a few places."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data), max(1, len(data) // 7)):
        yield [data[:at], data[at:]]
