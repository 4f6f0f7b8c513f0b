"""The composition root: builds every object, owns the one task group, and starts, drains and stops.

Alone knows all the others. Must never hold an algorithm: what it decides is only who gets whom.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from gateway import __version__
from gateway.api.front import Api
from gateway.auth.certificate import Certificate, CertificateError
from gateway.auth.guard import Guard
from gateway.auth.keys import KeyFileError
from gateway.auth.quotas import Quotas
from gateway.banner import banner
from gateway.config import Config
from gateway.fleet.ask import asker
from gateway.fleet.command import backend_command
from gateway.fleet.estate import HeldError
from gateway.fleet.lanes import Fleet
from gateway.fleet.own_routes import OwnRoutes
from gateway.fleet.poller import Poller
from gateway.fleet.supervision import Rules
from gateway.fleet.supervisor import BackendFailedError, Supervisor
from gateway.jobs.desk import Desk
from gateway.jobs.drivers import keepers, keeping
from gateway.jobs.store import StoreError
from gateway.observe.metrics import Metrics
from gateway.process import backend_line, log_to_stderr, loop_factory, raise_file_limit, say
from gateway.ratelimit import Limiter
from gateway.reload import Part, Read, reread
from gateway.server import Server
from gateway.ws_keep import Keeper

log = logging.getLogger("gateway.app")

SPARE_FILES: Final = 64
"""Descriptors for everything that is not a connection."""

WATCH: Final = 1.0
"""Seconds between two looks at the files of keys and certificate."""


class StartError(Exception):
    """The gateway cannot start or go on; ``str()`` is one line for the user."""


class App:
    """One gateway with its backend. ``say`` prints a line for the user, ``backend_line`` one of the backend's."""

    def __init__(
        self,
        config: Config,
        env: Mapping[str, str],
        say: Callable[[str], None],
        backend_line: Callable[[str], None],
        read: Read | None = None,
    ) -> None:
        """``read`` is how the configuration is had again for a reload; without it there is none."""
        self.config = config
        self._read = read
        self.fleet = Fleet(config.gpus)
        self.metrics = Metrics(config.gpus, __version__)
        self.limiter = Limiter(config.rate, config.gpus)
        ask = asker(config.backend.url)
        own = OwnRoutes(self.fleet, self.metrics, ask)
        self.estate, self.desk = keepers(config, self.fleet)
        self.api = Api(self.desk, self.fleet, ask, own.queue_all, self._gpu_ports) if self.desk is not None else None
        try:
            self.guard = Guard(config)
            self.tls = Certificate(config.tls) if config.tls.certificate else None
        except (KeyFileError, CertificateError) as error:
            raise StartError(str(error)) from error
        if (tls := self.tls) is not None:
            self.metrics.certificate_ends = lambda: tls.not_after
        if self.desk is not None:
            self.desk.limit(Quotas(self.guard.gate))
        self.server = Server(
            config,
            self.fleet,
            self.limiter,
            self.metrics,
            own.table(),
            self.desk,
            self.api,
            self.guard,
            self.tls,
        )
        self.supervisor = self._supervisor(env, backend_line) if config.backend.start else None
        self._keeper = self._bridge_keeper(self.desk) if self.desk is not None else None
        self._poller = Poller(self.fleet, ask, self._anybody_there, judges=self.supervisor is None)
        self._say = say
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ready = asyncio.Event()
        self._failure = ""
        self.fleet.on_change = self._fleet_changed
        self.metrics.watch_fleet(self.fleet)
        self.metrics.watch_pool(self.server.pool)
        self.metrics.watch_limiter(self._limiter_keys)
        if self.desk is not None:
            self.metrics.watch_jobs(self.desk)
        self.parts: list[Part] = [self.server.apply, self.limiter.apply, self.guard.apply, _apply_to_process]
        """Who goes by new settings, in this order; the keys that they understand stand in ``settings.live``."""
        if self.desk is not None:
            self.parts.append(self.desk.apply)

    def reload(self) -> None:
        """Read the configuration again and go by it as far as that can be done while running; drops nothing."""
        if self._read is None or (config := reread(self.config, self._read)) is None:
            return
        self.config = config
        for part in self.parts:
            part(config)

    def stop(self) -> None:
        """End in order; called again: at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> None:
        """Serve until ``stop``; raises ``StartError`` when that cannot begin or go on."""
        try:
            async with keeping(self.estate, self.desk):
                await self._run()
        except (HeldError, StoreError) as error:
            raise StartError(str(error)) from error
        if self._failure:
            raise StartError(self._failure)

    async def _run(self) -> None:
        if self.supervisor is not None and not await self.supervisor.inherit():
            check_free(self.config.backend.url)
        try:
            await self.server.start()
        except OSError as error:
            raise StartError(error.strerror or str(error)) from error
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks)
        finally:
            await self.server.close()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        desk = tasks.create_task(self.desk.run(), name="jobs") if self.desk is not None else None
        api = tasks.create_task(self.api.run(), name="api") if self.api is not None else None
        keeper = tasks.create_task(self._keeper.run(), name="bridge-keeper") if self._keeper is not None else None
        poller = tasks.create_task(self._poller.run(), name="poller")
        watcher = tasks.create_task(self._watch_files(), name="watcher")
        announcer = tasks.create_task(self._announce(), name="announce")
        backend = tasks.create_task(self._supervise(self.supervisor), name="supervisor") if self.supervisor else None
        await self._stop.wait()
        announcer.cancel()
        # The backend stays until the last request in flight has its answer.
        await self._unless_hurried(self.server.drain(self.config.timeouts.drain))
        poller.cancel()
        watcher.cancel()
        if api is not None:
            api.cancel()
        if keeper is not None:
            keeper.cancel()
        if desk is not None and self.desk is not None:
            desk.cancel()
            if self.supervisor is not None:
                await self.desk.part()
        if self.supervisor is not None and backend is not None:
            self.supervisor.stop()
            await self._unless_hurried(asyncio.shield(backend))
            if not backend.done():
                self.supervisor.stop()
                await backend

    async def _unless_hurried(self, work: "Coroutine[Any, Any, object] | asyncio.Future[None]") -> None:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(_finish(work), name="orderly-end")
            hurry = tasks.create_task(_finish(self._hurry.wait()), name="hurry")
            await asyncio.wait({working, hurry}, return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            hurry.cancel()

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except BackendFailedError as error:
            self._failure = str(error)
            self._stop.set()

    async def _announce(self) -> None:
        await self._ready.wait()
        for line in banner(self.config, self.server.bound, self.fleet):
            self._say(line)

    def _bridge_keeper(self, desk: Desk) -> Keeper:
        """Who holds clients' sockets while the backend is away; it is back when its jobs are."""
        keeper = Keeper(self.config.backend.url, self.config.jobs.hold_events, self.fleet, desk.missed)
        self.server.bridges.keeper = keeper
        desk.recovery.done = keeper.backend_back
        return keeper

    def _supervisor(self, env: Mapping[str, str], backend_line: Callable[[str], None]) -> Supervisor:
        backend = self.config.backend
        lock = self.estate.lock if self.estate is not None else None
        command = backend_command(backend, self.config.gpus, env, lock=lock, orphan=self.config.jobs.orphan)
        rules = Rules(backend.restart_min, backend.restart_max, backend.stop_timeout)
        return Supervisor(command, env, self.fleet, rules, backend_line, self._restarted, self.estate)

    async def _watch_files(self) -> None:
        """Notice new keys and a new certificate."""
        while True:
            await asyncio.sleep(WATCH)
            self.guard.look()
            if self.tls is not None:
                self.tls.look()

    def _restarted(self) -> None:
        self.metrics.backend_restarts += 1

    def _fleet_changed(self) -> None:
        if not self.fleet.up:
            return
        if self._ready.is_set():
            log.info("the backend is back: %s", self.fleet.body)
        if self.fleet.width < self.fleet.gpus:
            log.warning("%d ports, but the backend has only %d lane(s)", self.fleet.gpus, self.fleet.width)
        self._ready.set()

    def _gpu_ports(self) -> list[int]:
        return self.server.ports[1:]

    def _anybody_there(self) -> bool:
        return self.server.busy

    def _limiter_keys(self) -> int:
        self.limiter.sweep(time.monotonic())
        return self.limiter.size


async def _finish(work: "Coroutine[Any, Any, object] | asyncio.Future[Any]") -> None:
    await work


def check_free(url: str) -> None:
    """See whether the backend will be able to listen; raises ``StartError`` naming the port when it will not."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartError(
            f"port {port} on {host}, where the backend is to listen, cannot be had ({error.strerror or error}); stop "
            f"what listens there, set [backend] url, or use that one with --no-backend"
        ) from error


def run(config: Config, env: Mapping[str, str], warnings: Sequence[object], read: Read | None = None) -> None:
    """Run the gateway until it is told to stop; raises ``StartError`` or ``ValueError`` with a line for the user.

    ``read`` gives configuration and warnings anew, for a reload.
    """
    log_to_stderr(config.log.level)
    for warning in warnings:
        log.warning("%s", warning)
    _apply_to_process(config)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_main(config, env, read))


async def _main(config: Config, env: Mapping[str, str], read: Read | None) -> None:
    app = App(config, env, say, backend_line, read)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, app.stop)
    terminal = next((file for file in (0, 1, 2) if os.isatty(file)), None)

    def hung_up() -> None:
        # Also what a terminal sends that is closed; then nobody is left to stop it otherwise.
        if terminal is not None and not os.isatty(terminal):
            app.stop()
        else:
            app.reload()

    loop.add_signal_handler(signal.SIGHUP, hung_up)
    await app.run()


def _apply_to_process(config: Config) -> None:
    """What the whole process goes by: the level of its log, and how many files it may open."""
    logging.getLogger().setLevel(config.log.level.upper())
    raise_file_limit(config.listen.max_connections + config.limits.pool_connections + SPARE_FILES)
