"""The scheduler's routes: submit to whichever GPU is best, say how full each is, and show one GPU's queue.

Owns their shapes, which clients of a queue-aware balancer know: each GPU is an "instance", and its address is this
front door's with the GPU's prefix. Must never choose a GPU.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.api.hand_in import Desks, told
from gateway.api.orders import LONGEST_WAIT, PRIORITIES, Order, webhook_of, workflow_of
from gateway.api.reading import Fields, object_in
from gateway.api.route import Call
from gateway.api.shape import link
from gateway.api.watch import Watch
from gateway.errors import BACKEND_BROKE, NOT_FOUND, GatewayError
from gateway.fleet.ask import Ask, AskError
from gateway.fleet.lanes import Fleet
from gateway.jobs.record import Record, State, unnamed
from gateway.request import Request
from gateway.wire.answer import Answer, Made, json_answer

_NO_STORE: Final = ((b"Cache-Control", b"no-store"),)
_CHECKPOINT: Final = "v1-5-pruned-emaonly.safetensors"

_WORDS: Final[Mapping[State, str]] = {
    State.QUEUED: "The job waits.",
    State.RUNNING: "The job runs.",
    State.SUCCEEDED: "The job has succeeded.",
    State.FAILED: "The job has failed.",
    State.CANCELED: "The job was canceled.",
    State.LOST: "Nobody knows what became of the job.",
}

QueueAll = Callable[[Request], Awaitable[Answer]]


class GenerateRoutes:
    """The handlers. ``queue_all`` answers with every lane's queue."""

    def __init__(
        self,
        fleet: Fleet,
        ask: Ask,
        queue_all: QueueAll,
        desks: Desks,
        watch: Watch,
        gpu_ports: Callable[[], list[int]],
    ) -> None:
        self._fleet = fleet
        self._ask = ask
        self._queue_all = queue_all
        self._desks = desks
        self._watch = watch
        self._gpu_ports = gpu_ports

    async def generate(self, call: Call) -> Made:
        """``POST /generate``."""
        found = object_in(call.incoming)
        return await self._submit(call, found, _order(call, found, workflow_of(found), self._fleet.gpus))

    async def test_workflow(self, call: Call) -> Made:
        """``POST /test/workflow``: a small picture with a checkpoint that is there."""
        found = object_in(call.incoming, empty=True)
        checkpoint = found.text("checkpoint") or await self._checkpoint()
        return await self._submit(call, found, _order(call, found, small_picture(checkpoint), self._fleet.gpus))

    async def _submit(self, call: Call, found: Fields, order: Order) -> Made:
        wait = found.flag("wait_for_completion", False)
        timeout = found.seconds("timeout", LONGEST_WAIT, LONGEST_WAIT)
        made = await self._desks.submit(call, order)
        if isinstance(made, Answer):
            return _unhealthy(made) if made.status == 503 else made
        record = made
        if wait:
            record = await self._watch.ended(record.id, timeout) or record
        return json_answer(200, told(self._generated(call, record, timeout if wait else None)), _NO_STORE)

    def _generated(self, call: Call, record: Record, waited: float | None) -> dict[str, Any]:
        error: str | None = None
        message = _WORDS[record.state]
        if record.gpu is None and not record.ended:
            message = f"The job waits for a GPU at the front door; {link(record.id)} says which one it gets."
        if waited is not None and not record.ended:
            error, message = "TIMEOUT", f"The job has not ended within {waited:g} s; it goes on."
        elif record.ended and record.state is not State.SUCCEEDED:
            error = str((record.error or {}).get("message") or record.state.value)
        return {
            "prompt_id": record.id,
            "assigned_gpu": record.gpu,
            "assigned_instance": None if record.gpu is None else _address(call, record.gpu),
            "message": message,
            "error": error,
        }

    async def instances(self, call: Call) -> Made:
        """``GET /instances``."""
        fleet = self._fleet
        listed = [
            {"url": _address(call, gpu), "gpu_id": gpu, "weight": fleet.member(gpu).weight} for gpu in range(fleet.gpus)
        ]
        return json_answer(200, told({"instances": listed}), _NO_STORE)

    async def status(self, call: Call) -> Made:
        """``GET /status``: looked at now, not remembered."""
        queues, error = await self._queues(call)
        at = time.time()
        instances: dict[str, dict[str, Any]] = {}
        for gpu in range(self._fleet.gpus):
            queue = queues.get(gpu)
            running, pending = (0, 0) if queue is None else (len(queue["queue_running"]), len(queue["queue_pending"]))
            instances[_address(call, gpu)] = {
                "gpu_id": gpu,
                "running": running,
                "pending": pending,
                "total": running + pending,
                "healthy": queue is not None,
                "last_error": None if queue is not None else error or self._fleet.unseen(gpu),
                "last_update": at if queue is not None else None,
                "draining": self._fleet.member(gpu).drain or gpu in self._fleet.member(gpu).drained,
            }
        total = [sum(each[name] for each in instances.values()) for name in ("running", "pending")]
        # What waits here is no instance's yet, and pending all the same: a sum of 0 means that there is nothing to do.
        line = self._desks.line
        summary = {
            "total_instances": len(instances),
            "healthy_instances": sum(each["healthy"] for each in instances.values()),
            "total_running": total[0],
            "total_pending": total[1] + line.waiting_count,
            "total_load": sum(total) + line.waiting_count,
            "waiting_in_line": line.waiting_count,
            "line_paused": line.paused,
        }
        whole = {"success": True, "data": {"instances": instances, "summary": summary}}
        return json_answer(200, told(whole), _NO_STORE)

    async def queue(self, call: Call) -> Made:
        """``GET /queue/{instance}``: ``0``, ``gpu0``, a GPU port's address, or one out of ``/instances``."""
        name = call.given["instance"]
        if name == "all":
            return await self._queue_all(call.incoming.request)  # under a prefix, where it is no route of its own
        gpu = gpu_named(name, self._gpu_ports())
        queues, error = await self._queues(call)
        if gpu is None or gpu not in queues:
            text = f"No queue of {name[:200]!r} can be had."
            raise GatewayError(NOT_FOUND, text, error or f"The GPUs are 0 to {self._fleet.gpus - 1}; see /instances.")
        queue = queues[gpu]
        return json_answer(200, told({"gpu_id": gpu, **queue}), _NO_STORE)

    async def debug_queues(self, call: Call) -> Made:
        """``GET /debug/queues``: the backend's own answer, or the same counted by us."""
        try:
            reply = await self._ask("/debug/queues")
            if reply.status == 200 and isinstance(json.loads(reply.body), dict):
                return json_answer(200, reply.body, _NO_STORE)
        except (AskError, ValueError):
            pass  # the other way says what is wrong, if anything is
        answer = await self._queue_all(call.incoming.request)
        if answer.status != 200:
            return answer
        counts = [
            {"gpu_id": gpu, "queued": len(queue["queue_pending"]), "running": len(queue["queue_running"])}
            for gpu, queue in queues_in(answer.body).items()
        ]
        return json_answer(200, told({"queues": counts}), _NO_STORE)

    async def _queues(self, call: Call) -> tuple[dict[int, Any], str]:
        """Each lane's queue; why there are none, when there are none."""
        answer = await self._queue_all(call.incoming.request)
        if answer.status != 200:
            error = json.loads(answer.body)["error"]
            return {}, str(error["details"] or error["message"])
        return queues_in(answer.body), ""

    async def _checkpoint(self) -> str:
        try:
            found = json.loads((await self._ask("/models/checkpoints")).body)
        except (AskError, ValueError):
            return _CHECKPOINT
        return str(found[0]) if isinstance(found, list) and found else _CHECKPOINT


def _order(call: Call, found: Fields, workflow: Any, gpus: int) -> Order:
    gpu = found.whole("gpu", 0, gpus - 1, call.incoming.request.gpu)
    return Order(
        workflow,
        found.text("client_id", unnamed(call.incoming.request.owner)),
        gpu,
        call.field(b"idempotency-key").strip(),
        found.whole("priority", *PRIORITIES),
        webhook=webhook_of(found.raw("webhook")),
    )


def queues_in(body: bytes) -> dict[int, dict[str, list[Any]]]:
    """``queue_running`` and ``queue_pending`` by GPU, out of an answer of ``/queue/all``."""
    try:
        return {
            int(each["gpu_id"]): {name: list(each[name]) for name in ("queue_running", "queue_pending")}
            for each in json.loads(body)["queues"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayError(BACKEND_BROKE, "The backend's queues are not what was expected.", repr(error)) from error


def _unhealthy(answer: Answer) -> Answer:
    """503 as clients of such a scheduler read it, and as ours do."""
    try:
        said = json.loads(answer.body)
        message = f"{said['error']['message']} {said['error']['details']}".strip()
    except (ValueError, KeyError, TypeError):
        return answer
    detail = {"error": "NO_HEALTHY_INSTANCE", "message": message}
    return replace(answer, body=told({"detail": detail, **said}))


def _address(call: Call, gpu: int) -> str:
    """A GPU's address as this client would reach it: the front door with the prefix."""
    lines = call.incoming.lines
    host = _line(lines, b"x-forwarded-host") or _line(lines, b"host") or "localhost"
    return f"{_line(lines, b'x-forwarded-proto') or 'http'}://{host}/gpu{gpu}"


def _line(lines: bytes, name: bytes) -> str:
    for line in lines.split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode("latin-1")
    return ""


def gpu_named(name: str, ports: list[int]) -> int | None:
    """The GPU that a client means: its number, ``gpuN``, an address that ends in ``/gpuN``, or its port's address."""
    found = re.fullmatch(r"(?:gpu)?([0-9]{1,4})|.*/gpu([0-9]{1,4})/?", name)
    if found:
        return int(found[1] or found[2])
    try:
        port = urlsplit(name if "//" in name else f"//{name}").port
    except ValueError:
        return None
    return ports.index(port) if port in ports else None


def small_picture(checkpoint: str) -> dict[str, Any]:
    """Text to image as SD 1.5 does it, small."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse on a cliff", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"filename_prefix": "test-workflow", "images": ["6", 0]}},
    }
