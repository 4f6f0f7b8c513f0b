"""A gateway with a journal in front of a backend whose queues and history a test holds in its hand, all in one loop."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gateway.api.front import Api
from gateway.auth.guard import Guard
from gateway.config import Jobs
from gateway.dashboard.front import add_dashboard
from gateway.fleet.ask import asker
from gateway.fleet.lanes import Fleet
from gateway.fleet.own_routes import OwnRoutes
from gateway.jobs.bus import LocalBus
from gateway.jobs.desk import Desk
from gateway.jobs.record import Record
from gateway.jobs.sqlite import SQLiteStore
from gateway.observe.metrics import Metrics
from gateway.observe.tail import Tail
from gateway.ratelimit import Limiter
from gateway.server import Server
from tests.doubles.http_backend import Backend, Peer, Seen, scripted
from tests.doubles.http_client import Got, RawClient, raw
from tests.doubles.http_stack import config_for


@dataclass
class Comfy:
    """The backend: what waits, what runs, what is done; nothing moves by itself."""

    pending: list[dict[str, Any]] = field(default_factory=list)
    running: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[str, Any]] = field(default_factory=list)
    """POSTs other than submissions: target and body."""
    hang_up: bool = False
    """Close the connection instead of answering a submission."""
    faulted: bool = False
    """Answer submissions with 503, as a backend does for a GPU that takes no jobs."""
    hold: asyncio.Event | None = None
    """Answer submissions only when this is set."""
    waiting: dict[str, int] = field(default_factory=dict)
    """What it was told of clients' jobs that wait at the gateway."""
    deletes: str = ""
    """What the order to drop waiting jobs does to them: "takes" them out, finds that each "starts", or nothing."""
    judges: bool = False
    """Whether it has a route that judges a submission without taking it."""
    knows_ids: bool = True
    """Whether it can show its queues without their graphs."""
    unreadable: set[str] = field(default_factory=set)
    """Ids whose history entry is answered with 500."""
    refuse: set[str] = field(default_factory=set)
    """Ids whose submission is answered with 400."""
    lanes: dict[str, int] = field(default_factory=dict)
    """The GPU that each submission named."""
    numbers: int = 0

    def finish(self, job: str, status: str = "success", event: str = "execution_success", **data: Any) -> None:
        """A job ends."""
        graph = next((each["prompt"] for each in self.pending + self.running if each["prompt_id"] == job), {})
        self.pending = [each for each in self.pending if each["prompt_id"] != job]
        self.running = [each for each in self.running if each["prompt_id"] != job]
        messages = [
            ["execution_start", {"prompt_id": job, "timestamp": 1_700_000_000_000}],
            [event, {"prompt_id": job, "timestamp": 1_700_000_005_000, **data}],
        ]
        self.history[job] = {
            "prompt": [1, job, graph, {}, []],
            "outputs": {"2": {"images": [{"filename": "a.png"}]}} if status == "success" else {},
            "status": {"status_str": status, "completed": status == "success", "messages": messages},
            "meta": {},
        }

    def start(self) -> str:
        """The first waiting job runs."""
        self.running.append(self.pending.pop(0))
        return str(self.running[-1]["prompt_id"])

    def die(self) -> None:
        """Everything is forgotten."""
        self.pending, self.running, self.history = [], [], {}

    async def script(self, peer: Peer) -> None:
        """One connection."""
        while True:
            seen = await peer.request()
            await self._answer(peer, seen)

    async def _answer(self, peer: Peer, seen: Seen) -> None:
        path = seen.target.decode().partition("?")[0].removeprefix("/api")
        if seen.method == b"POST" and path == "/prompt":
            await self._submission(peer, seen)
        elif seen.method == b"POST" and path == "/prompt/check":
            await self._check(peer, seen)
        elif path == "/queue/waiting":
            self.waiting |= json.loads(seen.body)["waiting"]
            await peer.reply(b"")
        elif seen.method == b"POST":
            self.told.append((path, json.loads(seen.body) if seen.body else None))
            self._drop(*self.told[-1])
            await peer.reply(b"")
        elif path == "/queue/all":
            short = 2 if self.knows_ids and seen.target.endswith(b"?ids=1") else None
            running, pending = ([item[:short] for item in _items(each)] for each in (self.running, self.pending))
            queue = {"gpu_id": 0, "queue_running": running, "queue_pending": pending}
            queue |= {"running_count": len(self.running), "pending_count": len(self.pending)}
            await peer.reply(json.dumps({"queues": [queue]}).encode())
        elif path == "/queue":
            queue = {"queue_running": _items(self.running), "queue_pending": _items(self.pending)}
            await peer.reply(json.dumps(queue).encode())
        elif path == "/prompt":
            left = len(self.running) + len(self.pending)
            await peer.reply(json.dumps({"exec_info": {"queue_remaining": left}}).encode())
        elif path == "/history":
            await peer.reply(json.dumps(self.history).encode())
        elif path.startswith("/history/"):
            await self._entry(peer, unquote(path.removeprefix("/history/")))
        elif path == "/view":
            await peer.reply(seen.method + b" " + seen.target, extra=b"Content-Type: image/png\r\n")
        elif path in {"/api/jobs", "/jobs", "/debug/queues"}:
            await peer.reply(b"", status="404 Not Found")
        else:
            await peer.reply(b"ok")

    async def _entry(self, peer: Peer, job: str) -> None:
        if "{" in job:
            # As aiohttp's router: a dynamic part of a path has no braces.
            await peer.reply(b"404: Not Found", status="404 Not Found")
        elif job in self.unreadable:
            await peer.reply(b"it broke", status="500 Internal Server Error")
        else:
            found = {job: self.history[job]} if job in self.history else {}
            await peer.reply(json.dumps(found).encode())

    def _drop(self, path: str, body: Any) -> None:
        if path != "/queue" or not self.deletes:
            return
        gone = [each for each in self.pending if each["prompt_id"] in body.get("delete", [])]
        self.pending = [each for each in self.pending if each not in gone]
        if self.deletes == "starts":
            self.running += gone

    async def _submission(self, peer: Peer, seen: Seen) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.hang_up:
            peer.close()
            return
        if self.faulted:
            error = {"error": {"type": "gpu_unavailable", "message": "it broke"}, "node_errors": {}}
            await peer.reply(json.dumps(error).encode(), status="503 Service Unavailable")
            return
        try:
            body = json.loads(seen.body)
        except ValueError:
            await peer.reply(b"not JSON", status="400 Bad Request")
            return
        if not isinstance(body, dict) or "prompt" not in body or body["prompt_id"] in self.refuse:
            error = {"error": {"type": "no_prompt", "message": "No prompt provided"}, "node_errors": {}}
            await peer.reply(json.dumps(error).encode(), status="400 Bad Request")
            return
        self.numbers += 1
        self.pending.append(body)
        self.lanes[body["prompt_id"]] = int(seen.all("x-target-gpu")[0])
        answer = {"prompt_id": body["prompt_id"], "number": self.numbers, "node_errors": {}}
        await peer.reply(json.dumps(answer).encode(), extra=b"Content-Type: application/json\r\nX-Theirs: 1\r\n")


    async def _check(self, peer: Peer, seen: Seen) -> None:
        if not self.judges:
            await peer.reply(b"", status="405 Method Not Allowed")
            return
        body = json.loads(seen.body)
        if body["prompt_id"] in self.refuse:
            error = {"error": {"type": "prompt_outputs_failed_validation"}, "node_errors": {"1": {"errors": []}}}
            await peer.reply(json.dumps(error).encode(), status="400 Bad Request")
            return
        answer = {"prompt_id": body["prompt_id"], "number": 1, "node_errors": {"9": {}}}
        await peer.reply(json.dumps(answer).encode(), extra=b"Content-Type: application/json\r\n")


def _items(jobs: list[dict[str, Any]]) -> list[list[Any]]:
    return [[1, each["prompt_id"], each["prompt"], {}, []] for each in jobs]


@dataclass
class House:
    """Everything a test may look at."""

    server: Server
    desk: Desk
    api: Api
    fleet: Fleet
    comfy: Comfy
    backend: Backend
    tails: list[Tail]

    def client(self, gpu: int | None = 0) -> contextlib.AbstractAsyncContextManager[RawClient]:
        """Connect to a GPU's port, or to the front door."""
        return raw(self.server.ports[0 if gpu is None else gpu + 1])

    async def get(self, target: str, gpu: int | None = 0) -> Got:
        """One GET."""
        async with self.client(gpu) as client:
            return await client.get(target)

    async def post(self, target: str, value: Any, *lines: str, gpu: int | None = 0) -> Got:
        """One POST of a JSON value, or of bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        async with self.client(gpu) as client:
            return await client.get(target, *lines, method="POST", body=body)

    async def submit(self, job: str, gpu: int = 0) -> Got:
        """Submit a job under this id."""
        got = await self.post("/prompt", {"prompt": {"1": {}}, "prompt_id": job, "client_id": "c"}, gpu=gpu)
        assert got.status == 200, got.body
        return got

    def record(self, job: str) -> Record:
        """What the journal knows."""
        record = self.desk.journal.get(job)
        assert record is not None, f"{job} is not in the journal"
        return record

    def states(self) -> dict[str, str]:
        """Every job's state."""
        return {record.id: record.state.value for record in self.desk.journal.newest_first()}

    def backend_dies(self) -> None:
        """And takes everything with it."""
        self.comfy.die()
        self.fleet.members[0].backend_down("it died", 3)

    def backend_comes(self, boot: str) -> None:
        """Another life of it."""
        self.fleet.members[0].backend_up("double", boot=boot, booted=float(len(boot)))


@contextlib.asynccontextmanager
async def house(
    folder: Path,
    *,
    up: str = "boot-1",
    webhooks: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
    guard: Guard | None = None,
    **jobs: Any,
) -> AsyncIterator[House]:
    """A gateway whose journal lies in ``folder``; ``jobs`` are settings, ``up`` the life of its backend.

    ``guard`` says who may pass; ``None``: everybody.
    """
    comfy = Comfy()
    async with scripted(comfy.script) as backend:
        settings = {"journal": str(folder), "look": 0.02, **jobs}
        more = {"webhooks": webhooks or {}, "schedule": schedule or {}}
        config = config_for(backend.url, jobs=settings, timeouts={"read": 5.0}, **more)
        assert isinstance(config.jobs, Jobs)
        fleet = Fleet(config.gpus)
        desk = Desk(config, fleet, SQLiteStore(folder / "jobs.sqlite3"), LocalBus())
        await desk.open()
        metrics = Metrics(config.gpus, "t")
        ask = asker(backend.url)
        own = OwnRoutes(fleet, metrics, [ask])
        api = Api(desk, fleet, ask, own.queue_all, lambda: server.ports[1:], config)
        tails = [Tail()]
        add_dashboard(api, desk, fleet, metrics, [ask], tails, dict)
        server = Server(config, fleet, Limiter(config.rate, config.gpus), metrics, own.table(), desk, api, guard)
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(desk.run(), name="jobs"), tasks.create_task(api.run(), name="api")]
            await asyncio.sleep(0)
            if up:
                fleet.members[0].backend_up("double", boot=up, booted=float(len(up)))
            try:
                yield House(server, desk, api, fleet, comfy, backend, tails)
            finally:
                for each in running:
                    each.cancel()
                await server.close()
                await desk.close()
