"""The API put together: which handlers there are, under which paths, and their life from start to stop.

Owns the table. Must never answer anything itself.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from gateway.api.comfy import ComfyJobRoutes
from gateway.api.events import EventRoutes
from gateway.api.generate import GenerateRoutes, QueueAll
from gateway.api.hand_in import Desks, told
from gateway.api.jobs import JobRoutes
from gateway.api.openapi import document
from gateway.api.route import Call, Found, Route, Table
from gateway.api.routes import ELSEWHERE, OWN_ROUTES, comfy_routes, document_routes, generate_routes, job_routes
from gateway.api.watch import Watch
from gateway.api.webhooks import Deliveries
from gateway.config import Config
from gateway.fleet.ask import Ask
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.jobs.record import Record
from gateway.wire.answer import Made, json_answer

Work = Callable[[], Coroutine[Any, Any, None]]


class Api:
    """What the proxy asks whether a request is for it."""

    def __init__(
        self,
        desk: Desk,
        fleet: Fleet,
        ask: Ask,
        queue_all: QueueAll,
        gpu_ports: Callable[[], list[int]],
        config: Config,
    ) -> None:
        self.watch = Watch(desk.journal)
        self.desks = desks = Desks(desk, fleet)
        self._desk = desk
        self._jobs = jobs = JobRoutes(desk, desks, self.watch, fleet.gpus, self._more, self._explained)
        self._events = EventRoutes(desk.journal, desk.live, self.watch, jobs.known, jobs.show)
        self.deliveries = Deliveries(desk.journal, config.webhooks, jobs.show)
        self._work: list[Work] = []
        desk.live.on_news = self.watch.ring
        desk.live.on_end = self._over
        self.watch.on_wait = self._waits
        self._schedule = desk.schedule
        self._generate = GenerateRoutes(fleet, ask, queue_all, desks, self.watch, gpu_ports)
        self._comfy = ComfyJobRoutes(desk, desks)
        routes = [
            *job_routes(jobs, self._events),
            *generate_routes(self._generate),
            *comfy_routes(self._comfy),
            *document_routes(self._document),
        ]
        self.table = Table(routes)
        self._text = told(document([*OWN_ROUTES, *ELSEWHERE, *routes]))

    def find(self, method: bytes, target: bytes, *, front: bool) -> Found | None:
        """Who answers this request; see ``Table.find``."""
        return self.table.find(method, target, front=front)

    def add(self, routes: Iterable[Route], work: Work) -> None:
        """Answer these, too; ``work`` is what they need to be done meanwhile. Comes before ``run``."""
        self.table.add(routes)
        self._work.append(work)
        self._text = told(document([*OWN_ROUTES, *ELSEWHERE, *self.table.routes]))

    def show(self, record: Record) -> dict[str, Any]:
        """A job as all routes show it."""
        return self._jobs.show(record)

    def known(self, call: Call) -> Record:
        """The job that a path names; raises ``GatewayError``."""
        return self._jobs.known(call)

    def apply(self, config: Config) -> None:
        """Go by other settings of webhooks from now on."""
        self.deliveries.apply(config.webhooks)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch.run(), name="job-bells")
            tasks.create_task(self.deliveries.run(), name="webhooks")
            for work in self._work:
                tasks.create_task(work(), name="api-work")

    def leave(self) -> None:
        """The gateway is going to end: who waits for a job is told how it stands."""
        self.watch.leave()

    def _more(self, record: Record) -> Mapping[str, Any]:
        if record.ended:
            return {"progress": None, "position": None, "eta_seconds": None}
        progress, schedule = self._desk.live.of(record.id), self._schedule
        eta = schedule.eta(record.id)
        return {
            "progress": None if progress is None else progress.shown(),
            "position": schedule.position(record.id),
            "eta_seconds": None if eta is None else round(eta, 1),
        }

    def _explained(self, record: Record) -> Mapping[str, Any]:
        """Why a job is where it is: what was weighed, and in words where nothing was."""
        told = dict(self._schedule.explain(record.id))
        if record.port != "front":
            told["reason"] = f"It was submitted for GPU {record.gpu}: by port, prefix or field."
        elif told.get("waiting") and self._schedule.paused:
            told["reason"] = "It waits at the front door, whose line is paused: POST /admin/line/resume lets it go on."
        elif told.get("waiting"):
            told["reason"] = "It waits at the front door: lanes says when it would be done on each GPU."
        elif told.get("choice") is None:
            told["reason"] = "Nothing was weighed: it was the only choice, or how it was chosen is not remembered."
        else:
            told["reason"] = "The scores under choice were weighed when it was sent."
        return told

    async def _document(self, call: Call) -> Made:
        """``GET /openapi.json``."""
        return json_answer(200, self._text)

    def _over(self, job: str) -> None:
        """The backend says that a job is over: see at once how it ended, if anybody or anything waits for that."""
        if self.watch.waited(job) or self._schedule.has(job):
            self._desk.tracker.look_soon()

    def _waits(self, job: str) -> None:
        """Somebody begins to wait: the backend may have said before that it need not be for long."""
        if self._desk.live.over(job):
            self._desk.tracker.look_soon()
