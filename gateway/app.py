"""The composition root: builds every object, owns the one task group, and starts, drains and stops.

Alone knows all the others. Must never hold an algorithm: what it decides is only who gets whom.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

from gateway import __version__
from gateway.api.front import Api
from gateway.auth.certificate import Certificate, CertificateError
from gateway.auth.guard import Guard
from gateway.auth.keys import KeyFileError
from gateway.auth.quotas import Quotas
from gateway.banner import banner
from gateway.config import Config
from gateway.dashboard.front import add_dashboard
from gateway.fleet.estate import HeldError
from gateway.fleet.lanes import fleet_of
from gateway.fleet.member import Member
from gateway.fleet.own_routes import OwnRoutes
from gateway.fleet.supervisor import BackendFailedError, Supervisor
from gateway.fleet.survivor import end
from gateway.fleet.upkeep import Upkeep
from gateway.jobs.desk import Desk
from gateway.jobs.drivers import keepers, keeping
from gateway.jobs.store import StoreError
from gateway.layout import layout
from gateway.observe.metrics import Metrics
from gateway.observe.tail import Tail, passed
from gateway.opening import StartError, check_free, tracing_of
from gateway.process import apply_to_process
from gateway.ratelimit import Limiter
from gateway.reload import NOTHING, Part, Read, reread
from gateway.server import Server
from gateway.systemd import given_sockets, notify, reloading
from gateway.ws_keep import Keeper

log = logging.getLogger("gateway.app")

PATIENCE: Final = 10.0
"""Seconds that clients wait at most for a backend that was taken over; then they are told that it is not ready."""
WATCH: Final = 1.0
"""Seconds between two looks at the files of keys and certificate."""


class _Runs(Protocol):
    async def run(self) -> None: ...


class App:
    """One gateway with its backends. ``say`` prints a line for the user, ``backend_line`` one of a backend's."""

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
        places = layout(config)
        self.fleet = fleet_of(places, config.jobs.stay)
        self.metrics = Metrics(config.gpus, __version__)
        self.limiter = Limiter(config.rate, config.gpus)
        tails = [Tail() for _ in places]
        self.upkeeps = [
            Upkeep(
                config,
                place,
                self.fleet.members[place.index],
                env,
                present=self._anybody_there,
                on_line=passed(backend_line, tails[place.index], f"{place.index} | " if len(places) > 1 else ""),
                on_restart=self._restarted,
            )
            for place in places
        ]
        asks = [upkeep.ask for upkeep in self.upkeeps]
        own = OwnRoutes(self.fleet, self.metrics, asks)
        self.estate, self.desk = keepers(config, self.fleet)
        self.api = Api(self.desk, self.fleet, own.ask, own.queue_all, self._gpu_ports, config) if self.desk else None
        try:
            self.guard = Guard(config)
            self.tls = Certificate(config.tls) if config.tls.certificate else None
        except (KeyFileError, CertificateError) as error:
            raise StartError(str(error)) from error
        if (tls := self.tls) is not None:
            self.metrics.certificate_ends = lambda: tls.not_after
        if self.desk and self.api:
            self.desk.limit(Quotas(self.guard.gate))
            add_dashboard(self.api, self.desk, self.fleet, self.metrics, asks, tails, self.reload)
            self.metrics.watch_jobs(self.desk)
            self.metrics.watch_webhooks(self.api.deliveries.attempts)
        parts = (self.limiter, self.metrics, own.table(), self.desk, self.api, self.guard, self.tls)
        self.server = Server(config, self.fleet, *parts)
        if (tracing := tracing_of(config)) is not None:
            self.server.trace(tracing)
        self._keeper = self._bridge_keeper(self.desk) if self.desk is not None else None
        self.measuring: _Runs | None = None  # for the next start
        self._say = say
        self._env = env
        self._leaving = self._inherited = False
        """``_inherited``: a backend is at work already: clients are let in once it is known what it has to do."""
        self._stop, self._hurry, self._ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # Backends that we start and that have not been up yet.
        self._awaited = {upkeep.member.index for upkeep in self.upkeeps if upkeep.supervisor is not None}
        self._failure = ""
        self.fleet.on_change = self._fleet_changed
        self.metrics.watch_fleet(self.fleet)
        self.metrics.watch_pools(self.server.pools)
        self.metrics.watch_limiter(self._limiter_keys)
        self.parts: list[Part] = [self.fleet.apply, self.server.apply, self.limiter.apply, self.guard.apply]
        self.parts.append(apply_to_process)
        """Who goes by new settings, in this order; the keys that they understand stand in ``settings.live``."""
        self.parts += [part.apply for part in (self.desk, self.api) if part is not None]

    def reload(self) -> dict[str, Any]:
        """Read the configuration again and go by it as far as that can be done while running; what that came to."""
        notify(self._env, *reloading())
        outcome = reread(self.config, self._read) if self._read is not None else NOTHING
        if outcome.config is not None:
            self.config = outcome.config
            for part in self.parts:
                part(self.config)
        notify(self._env, "READY=1")
        return outcome.shown()

    def leave(self) -> None:
        """End in order, but let the backends go on for the gateway that comes next; without a journal: ``stop``."""
        self._leaving = self.estate is not None
        self.stop()

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
        if self.estate is not None:
            for life in self.estate.strays(len(self.upkeeps)):
                log.info("a backend is left over (process %d) that is no longer wanted: ending it", life.pid)
                await end(life, self.config.backend.stop_timeout)
        for upkeep in self.upkeeps:
            if upkeep.supervisor is None:
                continue
            if await upkeep.supervisor.inherit():
                self._inherited = True
            else:
                check_free(upkeep.url)
        try:
            await self.server.start(given_sockets(self._env), hold=self._inherited)
        except OSError as error:
            raise StartError(error.strerror or str(error)) from error
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._serve(tasks)
        finally:
            await self.server.close()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        parts: list[tuple[_Runs | None, str]] = [(upkeep.poller, "poller") for upkeep in self.upkeeps]
        parts += [(self.desk, "jobs"), (self.api, "api"), (self._keeper, "keeper"), (self.server.confluences, "joiner")]
        parts += [(self.measuring, "measuring")]
        running = [tasks.create_task(part.run(), name=name) for part, name in parts if part is not None]
        running.append(tasks.create_task(self._watch_files(), name="watcher"))
        announcer = tasks.create_task(self._announce(), name="announce")
        supervised = [
            (upkeep.supervisor, tasks.create_task(self._supervise(upkeep.supervisor), name="supervisor"))
            for upkeep in self.upkeeps
            if upkeep.supervisor is not None
        ]
        opener = tasks.create_task(self._open(), name="open") if self._inherited else None
        await self._stop.wait()
        announcer.cancel()
        if opener is not None:
            opener.cancel()
        notify(self._env, "STOPPING=1")
        # The backend stays until the last request in flight has its answer.
        await self._unless_hurried(self.server.drain(self.config.timeouts.drain))
        for each in running:
            each.cancel()
        if self.desk is not None and not self._leaving:
            await self.desk.part([supervisor.member for supervisor, _ in supervised])
        if self._leaving:
            for supervisor, backend in supervised:
                supervisor.leave()
                backend.cancel()
            return
        for supervisor, _ in supervised:
            supervisor.stop()
        await self._unless_hurried(_all([backend for _, backend in supervised]))
        for supervisor, backend in supervised:
            if not backend.done():
                supervisor.stop()
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

    async def _open(self) -> None:
        """Let clients in as soon as a backend takes jobs; those who connect to a socket that was handed over wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._ready.wait()
        await self.server.serve()

    async def _announce(self) -> None:
        await self._ready.wait()
        for line in banner(self.config, self.server.bound, self.fleet):
            self._say(line)
        notify(self._env, "READY=1", "STATUS=every backend is ready")

    def _bridge_keeper(self, desk: Desk) -> Keeper:
        """Who holds clients' sockets while the backend is away; it is back when its jobs are."""
        urls = [upkeep.url for upkeep in self.upkeeps]
        keeper = Keeper(urls, self.config.jobs.hold_events, self.fleet, desk.missed)
        self.server.bridges.keeper = keeper
        if (confluences := self.server.confluences) is not None:
            confluences.hold, confluences.missed = self.config.jobs.hold_events, desk.missed
        desk.on_recovered(keeper.backend_back)
        return keeper

    async def _watch_files(self) -> None:
        """Notice new keys and a new certificate."""
        while True:
            await asyncio.sleep(WATCH)
            self.guard.look()
            if self.tls is not None:
                self.tls.look()

    def _restarted(self) -> None:
        self.metrics.backend_restarts += 1

    def _fleet_changed(self, member: Member) -> None:
        alone = len(self.fleet.members) == 1
        name = "the backend" if alone else f"backend {member.index}"
        if not alone and member.out:
            log.warning("%s is out: looks at it fail; the front door passes it over", name)
        if not member.up:
            return
        if self.server.confluences is not None:
            self.server.confluences.backend_back(member)
        if self._ready.is_set():
            log.info("%s is back: %s", name, member.body)
        if member.width < member.gpus:
            log.warning("%d ports, but %s has only %d lane(s)", member.gpus, name, member.width)
        self._awaited.discard(member.index)
        if not self._awaited:
            self._ready.set()

    def _gpu_ports(self) -> list[int]:
        return self.server.ports[1:]

    def _anybody_there(self) -> bool:
        return self.server.busy

    def _limiter_keys(self) -> int:
        self.limiter.sweep(time.monotonic())
        return self.limiter.size


async def _all(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Wait for all of these, without being their end."""
    if tasks:
        await asyncio.wait(tasks)


async def _finish(work: "Coroutine[Any, Any, object] | asyncio.Future[Any]") -> None:
    await work
