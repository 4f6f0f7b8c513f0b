"""A gateway in front of several backends whose queues and histories a test holds in its hand, all in one loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.config import Backend as Settings
from gateway.fleet.lanes import Fleet, fleet_of
from gateway.jobs.bus import LocalBus
from gateway.jobs.desk import Desk
from gateway.jobs.sqlite import SQLiteStore
from gateway.layout import layout
from gateway.observe.metrics import Metrics
from gateway.ratelimit import Limiter
from gateway.server import Server
from tests.doubles.http_backend import Backend, Peer, Seen, scripted
from tests.doubles.http_client import Got, RawClient, raw
from tests.doubles.http_stack import config_for
from tests.doubles.jobs_house import Comfy


@dataclass
class Site(Comfy):
    """One backend: ``Comfy`` with a name, files, and answers that say which one it is."""

    name: str = ""
    files: set[str] = field(default_factory=set)
    """Targets of ``/view`` that it has."""

    async def _answer(self, peer: Peer, seen: Seen) -> None:
        path = seen.target.decode().partition("?")[0].removeprefix("/api")
        if path == "/view":
            there = seen.target.decode() in self.files
            await peer.reply(self.name.encode(), status="200 OK" if there else "404 Not Found")
        elif path == "/queue" and seen.method == b"GET":
            items = {"queue_running": _ids(self.running), "queue_pending": _ids(self.pending)}
            await peer.reply(json.dumps(items).encode())
        elif path == "/prompt" and seen.method == b"GET":
            left = len(self.running) + len(self.pending)
            await peer.reply(json.dumps({"exec_info": {"queue_remaining": left}}).encode())
        elif path == "/object_info":
            gpu = b",".join(seen.all("x-target-gpu"))
            await peer.reply(self.name.encode() + b" " + gpu)
        else:
            await super()._answer(peer, seen)


def _ids(jobs: list[dict[str, Any]]) -> list[list[Any]]:
    return [[1, each["prompt_id"], each["prompt"], {}, []] for each in jobs]


@dataclass
class Several:
    """Everything a test may look at."""

    server: Server
    fleet: Fleet
    sites: list[Site]
    backends: list[Backend]
    desk: Desk | None

    def client(self, gpu: int | None) -> contextlib.AbstractAsyncContextManager[RawClient]:
        """Connect to a GPU's port, or to the front door."""
        return raw(self.server.ports[0 if gpu is None else gpu + 1])

    async def get(self, target: str, gpu: int | None = None) -> Got:
        """One GET."""
        async with self.client(gpu) as client:
            return await client.get(target)

    async def post(self, target: str, value: Any, gpu: int | None = None) -> Got:
        """One POST of a JSON value."""
        async with self.client(gpu) as client:
            return await client.get(target, method="POST", body=json.dumps(value).encode())

    async def submit(self, job: str, gpu: int | None = None) -> Any:
        """Submit a job under this id; the answer's value."""
        graph = {"1": {"class_type": "Any", "inputs": {}}}
        got = await self.post("/prompt", {"prompt": graph, "prompt_id": job, "client_id": "c"}, gpu=gpu)
        assert got.status == 200, got.body
        return json.loads(got.body)

    def dies(self, index: int) -> None:
        """A backend goes, and takes everything with it."""
        self.sites[index].die()
        self.fleet.members[index].backend_down("it died", 3)

    def comes(self, index: int, boot: str) -> None:
        """Another life of it."""
        self.fleet.members[index].backend_up("double", boot=boot, booted=float(len(boot)))


@contextlib.asynccontextmanager
async def several(
    folder: Path | None,
    lanes: tuple[int, ...] = (2, 2),
    stay: str = "free",
    urls: list[str] | None = None,
    depth: int = 100,
    **jobs: Any,
) -> AsyncIterator[Several]:
    """Backends with so many lanes each, which take all jobs at once, up to ``depth``.

    With a ``folder`` there is a journal in it. ``urls``: others in their place.
    """
    sites = [Site(name=f"site{index}") for index in range(len(lanes))]
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(scripted(site.script)) for site in sites]
        settings = {"journal": str(folder or ""), "look": 0.02, "stay": stay, **jobs}
        listen = {"front_port": 0, "gpu_ports": (0,) * sum(lanes)}
        schedule = {"depth": depth}
        config = config_for(backends[0].url, jobs=settings, timeouts={"read": 5.0}, listen=listen, schedule=schedule)
        tables = [
            Settings(url=url, start=False, lanes=count)
            for url, count in zip(urls or [backend.url for backend in backends], lanes, strict=True)
        ]
        config = replace(config, backend=tables[0], further=tuple(tables[1:]))
        fleet = fleet_of(layout(config), config.jobs.stay)
        desk = Desk(config, fleet, SQLiteStore(folder / "jobs.sqlite3"), LocalBus()) if folder is not None else None
        if desk is not None:
            await desk.open()
        server = Server(config, fleet, Limiter(config.rate, config.gpus), Metrics(config.gpus, "t"), {}, desk)
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            confluences = server.confluences
            assert confluences is not None
            running = [tasks.create_task(confluences.run(), name="joiner")]
            if desk is not None:
                confluences.hold, confluences.missed = 30.0, desk.missed
                running.append(tasks.create_task(desk.run(), name="jobs"))
            fleet.on_change = lambda member: confluences.backend_back(member) if member.up else None
            await asyncio.sleep(0)
            made = Several(server, fleet, sites, backends, desk)
            for index in range(len(lanes)):
                made.comes(index, f"boot-{index}")
            try:
                yield made
            finally:
                for each in running:
                    each.cancel()
                await server.close()
                if desk is not None:
                    await desk.close()
