"""The engine put together: lanes, their jobs and workers, files, nodes, events, metrics. No HTTP here."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend import devices
from backend.embedded import checkpoint, validation
from backend.embedded.executor import Executor
from backend.embedded.files import Files
from backend.embedded.jobs import Job, Jobs
from backend.embedded.node import NodeClass
from backend.embedded.registry import registry
from backend.embedded.sockets import Hub
from backend.embedded.store import ModelStore
from backend.embedded.worker import Worker
from backend.instance import temp_name
from backend.lanes import Lane
from backend.metrics import Metrics
from backend.options import Options
from backend.preload import BadPreload, of_words

log = logging.getLogger("backend.embedded.engine")


class CannotStart(Exception):  # noqa: N818 (what happened)
    """The engine cannot be started as asked; the text is for the user."""


@dataclass
class Engine:
    """Everything the routes use."""

    options: Options
    lanes: list[Lane]
    jobs: Jobs
    files: Files
    registry: Mapping[str, NodeClass]
    hub: Hub
    metrics: Metrics
    workers: list[Worker]

    async def warm(self) -> None:
        """Start the workers and wait until each can take jobs; raises ``CannotStart``."""
        job = self._warm_up_job(self.options.warmup) if self.options.warmup is not None else None
        loop = asyncio.get_running_loop()
        told = [asyncio.Event() for _ in self.workers]
        for worker, ready in zip(self.workers, told, strict=True):
            worker.start(job(worker.lane.index) if job else None, _from_thread(loop, ready))
        for worker, ready in zip(self.workers, told, strict=True):
            await ready.wait()
            if worker.refused is not None:
                raise CannotStart(worker.refused)
        if self.options.warmup_models:
            await self._load(self.options.warmup_models)

    async def _load(self, words: Sequence[str]) -> None:
        try:
            names = [model.name for model in of_words(words, len(self.lanes)).models]
        except BadPreload as error:
            raise CannotStart(f"--warmup-model: {error} {error.hint}") from error
        waiting = [self.jobs.preload(lane.index, names) for lane in self.lanes]
        for found in await asyncio.gather(*(asyncio.wrap_future(each) for each in waiting)):
            if found.error is not None:
                raise CannotStart(f"--warmup-model: lane {found.gpu}: {found.error}")

    def stop(self, timeout: float) -> bool:
        """Stop what runs and end the workers; whether all ended within ``timeout`` seconds each."""
        self.jobs.close()
        for worker in self.workers:
            worker.abandon_warm_up()
        ends = [worker.join(timeout) for worker in self.workers]  # a list: every worker gets its time
        return all(ends)

    def _warm_up_job(self, path: Path) -> Callable[[int], Job]:
        try:
            prompt = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CannotStart(f"--warmup {path}: {error}") from error
        prompt = prompt.get("prompt", prompt) if isinstance(prompt, dict) else prompt
        verdict = validation.validate(prompt, self.registry, self.files)
        if verdict.error is not None:
            raise CannotStart(f"--warmup {path}: {verdict.error['message']} {verdict.error['details']}")
        return lambda lane: Job(0, "warm-up", prompt, {}, verdict.outputs, lane)


def build(options: Options, loop: asyncio.AbstractEventLoop, on_fault: Callable[[Lane], None]) -> Engine:
    """Build the engine; ``on_fault`` is called from a worker's thread."""
    names = devices.find(options.gpus if options.sched else 1, options.devices, options.cpu)
    lanes = [Lane(index, name) for index, name in enumerate(names)]
    _make_deterministic()
    files = Files(options.data, temp_name(options.instance))
    files.empty_temp()
    checkpoint.ensure(files.data / "models" / "checkpoints")
    known = registry(testing=options.testing)
    jobs = Jobs(lanes)
    hub = Hub(jobs, loop)
    jobs.on_change = hub.changed
    workers = [_worker(lane, jobs, known, files, hub, on_fault) for lane in lanes]
    return Engine(options, lanes, jobs, files, known, hub, Metrics(lanes), workers)


def _worker(
    lane: Lane, jobs: Jobs, known: Mapping[str, NodeClass], files: Files, hub: Hub, on_fault: Callable[[Lane], None]
) -> Worker:
    models = ModelStore(files, torch.device(lane.device), lane.stats)
    lane.weights.read = models.weights
    lane.weights.names = models.names
    return Worker(lane, jobs, models, lambda: Executor(lane, known, files, models), hub, on_fault)


def _from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def call() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(event.set)

    return call


def _make_deterministic() -> None:
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def system_stats(engine: Engine, lane: int | None, argv: list[str], python: str, os_name: str) -> dict[str, Any]:
    """``GET /system_stats``: the machine, and the lane's device first and alone, or every lane's."""
    ram = devices.memory("cpu")
    chosen = engine.lanes if lane is None else [engine.lanes[lane]]
    return {
        "system": {
            "os": os_name,
            "ram_total": ram.total,
            "ram_free": ram.free,
            "comfyui_version": CONTRACT_VERSION,
            "python_version": python,
            "pytorch_version": torch.__version__,
            "embedded_python": False,
            "argv": argv,
        },
        "devices": [_device(each) for each in chosen],
        "weights": [{"gpu_id": each.index, **each.weights.now().shown()} for each in chosen],
    }


CONTRACT_VERSION = "0.3.64+embedded"
"""The ComfyUI whose contract this engine speaks, and that it is not that ComfyUI."""


def _device(lane: Lane) -> dict[str, Any]:
    found = devices.memory(lane.device)
    kind, _, index = lane.device.partition(":")
    return {
        "name": devices.full_name(lane.device),
        "type": kind,
        "index": int(index) if index else None,
        "vram_total": found.total,
        "vram_free": found.free,
        "torch_vram_total": found.total,
        "torch_vram_free": found.free,
    }
