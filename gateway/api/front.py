"""The API put together: which handlers there are, under which paths, and their life from start to stop.

Owns the table. Must never answer anything itself.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from gateway.api.comfy import ComfyJobRoutes
from gateway.api.events import EventRoutes
from gateway.api.generate import GenerateRoutes, QueueAll
from gateway.api.hand_in import Desks
from gateway.api.jobs import JobRoutes
from gateway.api.route import Found, Route, Table
from gateway.api.watch import Watch
from gateway.api.webhooks import Deliveries
from gateway.config import Config
from gateway.fleet.ask import Ask
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.jobs.record import Record
from gateway.request import Kind

_WAIT: Mapping[str, Any] = {"type": "integer", "minimum": 0, "maximum": 600}
_JOB = {202: "Job", 200: "Job", 400: "Error", 404: "Error"}


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
        desks = Desks(desk, fleet)
        self._desk = desk
        self._jobs = jobs = JobRoutes(desk, desks, self.watch, fleet.gpus, self._more)
        self._events = EventRoutes(desk.journal, desk.live, self.watch, jobs.known, jobs.show)
        self.deliveries = Deliveries(desk.journal, config.webhooks, jobs.show)
        desk.live.on_news = self.watch.ring
        desk.live.on_end = self._over
        self.watch.on_wait = self._waits
        self._generate = GenerateRoutes(fleet, ask, queue_all, desks, self.watch, gpu_ports)
        self._comfy = ComfyJobRoutes(desk, desks)
        self.table = Table([*self._job_routes(), *self._generate_routes(), *self._comfy_routes()])

    def find(self, method: bytes, target: bytes, *, front: bool) -> Found | None:
        """Who answers this request; see ``Table.find``."""
        return self.table.find(method, target, front=front)

    def apply(self, config: Config) -> None:
        """Go by other settings of webhooks from now on."""
        self.deliveries.apply(config.webhooks)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch.run(), name="job-bells")
            tasks.create_task(self.deliveries.run(), name="webhooks")

    def leave(self) -> None:
        """The gateway is going to end: who waits for a job is told how it stands."""
        self.watch.leave()

    def _more(self, record: Record) -> Mapping[str, Any]:
        progress = None if record.ended else self._desk.live.of(record.id)
        return {
            "progress": None if progress is None else progress.shown(),
            "position": None,
            "eta_seconds": None,
        }

    def _over(self, job: str) -> None:
        """The backend says that a job is over: see at once how it ended, if somebody waits for that."""
        if self.watch.waited(job):
            self._desk.tracker.look_soon()

    def _waits(self, job: str) -> None:
        """Somebody begins to wait: the backend may have said before that it need not be for long."""
        if self._desk.live.over(job):
            self._desk.tracker.look_soon()

    def _job_routes(self) -> list[Route]:
        jobs = self._jobs
        wait = {"wait": _WAIT}
        return [
            Route("POST", "/jobs", jobs.submit, "Submit a workflow or a batch of them.", {
                200: "Submitted", 202: "Submitted", 400: "Error", 406: "Error", 415: "Error", 422: "Error",
                429: "Error", 503: "Error",
            }, body="Submission", query=wait, kind=Kind.SUBMIT),
            Route("GET", "/jobs", jobs.all, "List jobs, the youngest first.", {200: "JobList", 400: "Error"}, query={
                "state": {"type": "string", "description": "States, with commas between them."},
                "client": {"type": "string", "description": "A client_id, or a client's address."},
                "gpu": {"type": "integer", "minimum": 0},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "cursor": {"type": "integer", "minimum": 0, "description": "The field next of the page before."},
            }),
            Route("GET", "/jobs/{id}", jobs.one, "One job.", {200: "Job", 400: "Error", 404: "Error"}, query=wait),
            Route("GET", "/jobs/{id}/events", self._events.events, "A job's states and progress as they come.", {
                200: "text/event-stream", 204: "", 404: "Error",
            }, headers={"Last-Event-ID": {"type": "string"}}),
            Route("GET", "/jobs/{id}/preview", jobs.preview, "The newest preview of a running job.", {
                200: "image/jpeg", 404: "Error",
            }),
            Route("GET", "/jobs/{id}/outputs/{n}", jobs.output, "The bytes of one output.", {
                200: "*/*", 206: "*/*", 304: "", 404: "Error", 416: "", 503: "Error",
            }),
            Route("DELETE", "/jobs/{id}", jobs.cancel, "Cancel a job, wherever it is.", _JOB, kind=Kind.CONTROL),
        ]  # fmt: skip

    def _comfy_routes(self) -> list[Route]:
        its = self._comfy
        whole = {"type": "integer"}
        text = {"type": "string"}
        return [
            Route("GET", "/api/jobs", its.all, "List jobs as newer ComfyUI does.", {
                200: "ComfyJobList", 400: "ComfyError",
            }, query={
                "status": text, "workflow_id": text, "sort_by": text, "sort_order": text, "limit": whole,
                "offset": whole,
            }, everywhere=True),
            Route("GET", "/api/jobs/{id}", its.one, "One job as newer ComfyUI shows it.", {
                200: "ComfyJob", 404: "ComfyError",
            }, everywhere=True),
            Route("POST", "/api/jobs/{id}/cancel", its.cancel, "Cancel a job as newer ComfyUI does.", {
                200: "ComfyCancelled",
            }, kind=Kind.CONTROL, everywhere=True),
            Route("POST", "/api/jobs/cancel", its.cancel_many, "Cancel jobs as newer ComfyUI does.", {
                200: "ComfyCancelled", 400: "ComfyError",
            }, body="ComfyCancel", kind=Kind.CONTROL, everywhere=True),
        ]  # fmt: skip

    def _generate_routes(self) -> list[Route]:
        its = self._generate
        refused = {400: "Error", 415: "Error", 422: "Error", 429: "Error", 503: "Unhealthy"}
        return [
            Route("POST", "/generate", its.generate, "Submit to the best GPU.", {
                200: "Generated", **refused
            }, body="Generate", kind=Kind.SUBMIT),
            Route("POST", "/test/workflow", its.test_workflow, "Submit a small text-to-image workflow.", {
                200: "Generated", **refused
            }, body="TestWorkflow", kind=Kind.SUBMIT),
            Route("GET", "/status", its.status, "How full each GPU is.", {200: "Status"}),
            Route("GET", "/instances", its.instances, "The GPUs and their addresses.", {200: "Instances"}),
            Route("GET", "/queue/{instance*}", its.queue, "One GPU's queue.", {200: "Queue", 404: "Error"}),
            Route("GET", "/debug/queues", its.debug_queues, "Jobs per GPU.", {200: "QueueCounts", 503: "Error"}),
        ]  # fmt: skip
