"""Routes that submit, show, stop and forget jobs. ComfyUI's shapes (``server.py``), ``gpu_id`` added."""

import asyncio
import json
import logging
import math
import uuid
from typing import Any

from aiohttp import web

from backend.contract import RETRY_AFTER, queue_line
from backend.embedded import validation
from backend.embedded.engine import Engine
from backend.embedded.http import body_of, gpu_of, refuse
from backend.embedded.jobs import Job
from backend.verdict import describe

log = logging.getLogger("backend.embedded.api")


class JobRoutes:
    """``/prompt``, ``/queue``, ``/interrupt``, ``/history``, ``/free``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs = engine.jobs
        self._number = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/prompt", self.get_prompt),
            web.post("/prompt", self.post_prompt),
            web.post("/prompt/check", self.post_check),
            web.post("/queue/waiting", self.post_waiting),
            web.get("/queue", self.get_queue),
            web.post("/queue", self.post_queue),
            web.get("/queue/all", self.get_queue_all),
            web.get("/debug/queues", self.get_debug_queues),
            web.post("/interrupt", self.post_interrupt),
            web.get("/history", self.get_history),
            web.get("/history/{prompt_id}", self.get_history_of),
            web.post("/history", self.post_history),
            web.post("/free", self.post_free),
        ]

    async def get_prompt(self, request: web.Request) -> web.Response:
        remaining = self._jobs.remaining(gpu_of(request))
        return web.json_response({"exec_info": {"queue_remaining": remaining}})

    async def post_check(self, request: web.Request) -> web.Response:
        """What ``POST /prompt`` would answer; nothing is queued."""
        return await self.post_prompt(request, check=True)

    async def post_waiting(self, request: web.Request) -> web.Response:
        """Jobs that wait at the gateway count in ``status`` of their clients."""
        hub = self._engine.hub
        try:
            hub.waiting.update(await request.read())
        except ValueError as error:
            return refuse(400, "invalid_request", "These are no counts of waiting jobs.", str(error))
        hub.recount()
        return web.Response(status=200)

    async def post_prompt(self, request: web.Request, *, check: bool = False) -> web.Response:
        lane = self._engine.lanes[gpu_of(request) or 0]
        if (fault := lane.stats.broken) is not None:
            message = f"GPU {lane.index} takes no jobs: {fault.reason}."
            refusal = refuse(503, "gpu_unavailable", message, "The backend starts again.")
            refusal.headers["Retry-After"] = str(RETRY_AFTER)
            return refusal
        body = await body_of(request)
        if "prompt" not in body:
            return refuse(400, "no_prompt", "No prompt provided", "No prompt provided")
        extra = body.get("extra_data") or {}
        if not isinstance(extra, dict):
            return refuse(400, "invalid_request", "extra_data must be an object.", type(extra).__name__)
        targets = body.get("partial_execution_targets")
        if targets is not None and not isinstance(targets, list):
            return refuse(400, "invalid_request", "partial_execution_targets must be a list of node ids.")
        try:
            number = self._next_number(body)
        except (TypeError, ValueError) as error:
            return refuse(400, "invalid_request", "number must be a number.", str(error))
        verdict = validation.validate(body["prompt"], self._engine.registry, self._engine.files, targets)
        if verdict.error is not None:
            answer = {"error": verdict.error, "node_errors": verdict.node_errors}
            return web.json_response(answer, status=400)
        if body.get("client_id") is not None:
            extra = {**extra, "client_id": body["client_id"]}
        prompt_id = body.get("prompt_id")
        job = Job(
            number=number,
            prompt_id=str(uuid.uuid4()) if prompt_id is None else str(prompt_id),
            prompt=body["prompt"],
            extra_data=extra,
            outputs=verdict.outputs,
            lane=lane.index,
        )
        if not check:
            self._jobs.submit(job)
        return web.json_response(
            {"prompt_id": job.prompt_id, "number": number, "node_errors": verdict.node_errors, "gpu_id": job.lane}
        )

    def _next_number(self, body: dict[str, Any]) -> float:
        if "number" in body:
            number = float(body["number"])
            if not math.isfinite(number):
                raise ValueError(f"{number} has no place in a queue")
            return number
        found = -self._number if body.get("front") else self._number
        self._number += 1
        return found

    async def get_queue(self, request: web.Request) -> web.Response:
        gpu = gpu_of(request)
        found: dict[str, Any] = self._queue(gpu)
        if gpu is not None:
            found["gpu_id"] = gpu
        return web.json_response(found)

    def _queue(self, gpu: int | None) -> dict[str, Any]:
        running, waiting = self._jobs.view(gpu)
        return {"queue_running": [job.item() for job in running], "queue_pending": [job.item() for job in waiting]}

    async def get_queue_all(self, request: web.Request) -> web.Response:
        queues = []
        for lane in self._engine.lanes:
            each = self._queue(lane.index)
            if "ids" in request.query:
                each = {name: [item[:2] for item in items] for name, items in each.items()}
            counts = {"running_count": len(each["queue_running"]), "pending_count": len(each["queue_pending"])}
            queues.append({"gpu_id": lane.index, **each, **counts})
        return web.json_response(
            {
                "queues": queues,
                "total_running": sum(each["running_count"] for each in queues),
                "total_pending": sum(each["pending_count"] for each in queues),
            }
        )

    async def get_debug_queues(self, request: web.Request) -> web.Response:
        if not self._engine.options.sched:
            return web.json_response({"mode": "single-gpu"})
        queues = []
        for lane in self._engine.lanes:
            running, waiting = self._jobs.view(lane.index)
            held = lane.weights.names()
            queues.append(queue_line(lane.index, len(running), len(waiting), lane.stats.broken, held))
        return web.json_response({"queues": queues, "issuing": describe(self._engine.lanes)})

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        if body.get("clear"):
            self._jobs.clear(gpu_of(request))
        if (ids := _ids(body)) is not None:
            self._jobs.delete(gpu_of(request), ids)
        return web.Response(status=200)

    async def post_interrupt(self, request: web.Request) -> web.Response:
        body = await body_of(request, empty=True)
        prompt_id = body.get("prompt_id") or None
        told = self._jobs.interrupt(gpu_of(request), None if prompt_id is None else str(prompt_id))
        log.info("interrupt of %s: %d job(s) told to stop", prompt_id or "what runs", told)
        return web.Response(status=200)

    async def get_history(self, request: web.Request) -> web.Response:
        try:
            max_items = _number(request, "max_items")
            offset = _number(request, "offset")
        except ValueError as error:
            return refuse(400, "invalid_request", "max_items and offset are whole numbers.", str(error))
        found = self._jobs.history(max_items, -1 if offset is None else offset)
        # Thousands of prompts take the serializer long enough to hold up every lane's events.
        text = await asyncio.to_thread(json.dumps, found)
        return web.Response(text=text, content_type="application/json")

    async def get_history_of(self, request: web.Request) -> web.Response:
        return web.json_response(self._jobs.history_of(request.match_info["prompt_id"]))

    async def post_history(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        if body.get("clear"):
            self._jobs.forget(gpu_of(request))
        if (ids := _ids(body)) is not None:
            self._jobs.forget(gpu_of(request), ids)
        return web.Response(status=200)

    async def post_free(self, request: web.Request) -> web.Response:
        body = await body_of(request, empty=True)
        models, outputs = bool(body.get("unload_models")), bool(body.get("free_memory"))
        if models or outputs:
            self._jobs.free(gpu_of(request), models=models, outputs=outputs)
        return web.Response(status=200)


def _ids(body: dict[str, Any]) -> list[str] | None:
    found = body.get("delete")
    return [str(each) for each in found] if isinstance(found, list) else None


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    return None if text is None else int(text)
