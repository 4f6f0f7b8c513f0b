"""Runs one job's nodes in order on one lane, keeps their outputs for the next job, tells what happens.

One executor per lane, used by that lane's worker alone. Events have ComfyUI's names, fields and order
(``execution.py``, ``comfy_execution/progress.py``). Knows no socket: events go to ``Events``.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from PIL import Image

from backend.embedded import graph
from backend.embedded.files import Files
from backend.embedded.jobs import Job
from backend.embedded.node import Interrupted, NodeClass, Result, Run, is_link
from backend.embedded.store import ModelStore
from backend.lanes import Lane
from backend.model_calls import ModelCalls

log = logging.getLogger("backend.embedded.executor")

TEXT_LIMIT: Final = 2000
"""Characters of one input value in an error message."""


class Events(Protocol):
    """Where events go; called from the worker's thread."""

    def send(self, job: Job, event: str, data: dict[str, Any]) -> None:
        """To the job's client."""

    def preview(self, job: Job, image: Callable[[], Image.Image], metadata: dict[str, Any]) -> None:
        """A picture of work under way, made only if somebody will see it."""


@dataclass(frozen=True)
class Failure:
    """Why a job did not get through; ``error`` comes without its traceback, whose frames would hold tensors."""

    node_id: str | None
    error: BaseException
    trace: list[str]
    inputs: dict[str, list[Any]]

    @property
    def interrupted(self) -> bool:
        return isinstance(self.error, Interrupted)


@dataclass
class Attempt:
    """What one run through a job's nodes came to."""

    outputs: dict[str, Any] = field(default_factory=dict)
    """Node id → what it shows, for the history."""
    meta: dict[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Nodes whose output an earlier job left."""
    failure: Failure | None = None


class Progress:
    """How far each node of one job is, as ``progress_state`` tells it."""

    def __init__(self, job: Job, events: Events) -> None:
        self._job = job
        self._events = events
        self._nodes: dict[str, dict[str, Any]] = {}

    def start(self, node_id: str) -> None:
        self._tell(node_id, "running", 0.0, 1.0)

    def update(self, node_id: str, value: float, total: float) -> None:
        self._tell(node_id, "running", value, total)
        data = {"value": value, "max": total, "prompt_id": self._job.prompt_id, "node": node_id}
        self._events.send(self._job, "progress", data)

    def finish(self, node_id: str) -> None:
        total = self._nodes.get(node_id, {}).get("max", 1)
        self._tell(node_id, "finished", total, total)

    def _tell(self, node_id: str, state: str, value: float, total: float) -> None:
        self._nodes[node_id] = {
            "value": value, "max": total, "state": state, "prompt_id": self._job.prompt_id, **names(node_id)
        }  # fmt: skip
        data = {"prompt_id": self._job.prompt_id, "nodes": self._nodes}
        self._events.send(self._job, "progress_state", data)


def names(node_id: str) -> dict[str, Any]:
    """A node's names in progress and preview events; they differ only in ComfyUI's expanded graphs."""
    return {"node_id": node_id, "display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}


class Executor:
    """The way through a job's nodes; keeps the last job's outputs by key, as ComfyUI's classic cache does."""

    def __init__(self, lane: Lane, registry: Mapping[str, NodeClass], files: Files, models: ModelStore) -> None:
        self._lane = lane
        self._registry = registry
        self._files = files
        self._models = models
        self._calls = ModelCalls([lane])
        self._declared = {name: tuple(node.inputs(files)) for name, node in registry.items()}
        self._kept: dict[str, Result] = {}

    def forget(self, *, for_retry: bool = False) -> None:
        """Drop kept outputs; before a retry what output nodes showed stays, so that no picture is saved twice."""
        self._kept = {key: kept for key, kept in self._kept.items() if for_retry and not kept.values}

    def run(
        self, job: Job, events: Events, attempt: int = 0, cached: Callable[[list[str]], None] | None = None
    ) -> Attempt:
        """Run what the job's outputs need and nobody kept; never raises. ``cached`` hears what was kept."""
        found = Attempt()
        at: list[str] = []
        inputs: dict[str, Any] = {}
        try:
            with torch.inference_mode():
                self._walk(job, events, attempt, found, at, inputs, cached)
        except BaseException as error:  # whatever a node raises ends its job and nothing else
            trace = traceback.format_tb(error.__traceback__)
            if not isinstance(error, Interrupted):
                log.warning("%s at node %s: %s", job.prompt_id, at[-1] if at else None, error, exc_info=error)
            error.__traceback__ = error.__context__ = error.__cause__ = None
            shown = {name: [shortened(value)] for name, value in inputs.items()}
            found.failure = Failure(at[-1] if at else None, error, trace, shown)
        job.node = None
        return found

    def _walk(
        self, job: Job, events: Events, attempt: int, found: Attempt, at: list[str], inputs: dict[str, Any],
        cached: Callable[[list[str]], None] | None,
    ) -> None:  # fmt: skip
        def declared(node_id: str) -> Sequence[str]:
            return self._declared[job.prompt[node_id]["class_type"]]

        ordered = graph.order(job.prompt, job.outputs, declared)
        keys = graph.keys(job.prompt, ordered, declared, lambda node_id: self._changed(job, node_id))
        self._kept = {key: self._kept[key] for key in keys.values() if key in self._kept}
        found.kept = [node_id for node_id in ordered if keys[node_id] in self._kept]
        if cached is not None:
            cached(found.kept)
            self._lane.stats.cache_hit(len(found.kept))
        progress = Progress(job, events)
        needed = self._needed(job, keys, declared)
        for node_id in ordered:
            if node_id not in needed:
                continue
            at.append(node_id)
            kept = self._kept.get(keys[node_id])
            if kept is None:
                progress.start(node_id)
                inputs.clear()
                inputs.update(self._inputs(job, node_id, keys, declared(node_id)))
                self._kept[keys[node_id]] = kept = self._run_node(job, node_id, inputs, events, progress, attempt)
                found.executed.append(node_id)
            elif not kept.ui:
                continue
            self._show(job, node_id, kept, events, found)
            progress.finish(node_id)

    def _needed(self, job: Job, keys: Mapping[str, str], declared: graph.Declared) -> set[str]:
        """The outputs, and what nodes that are not kept are linked to."""
        needed: set[str] = set()
        open_ids = list(job.outputs)
        while open_ids:
            node_id = open_ids.pop()
            if node_id in needed:
                continue
            needed.add(node_id)
            if keys[node_id] not in self._kept:
                open_ids += [source for source, _ in graph.sources(job.prompt, node_id, declared).values()]
        return needed

    def _changed(self, job: Job, node_id: str) -> Any:
        node = self._registry[job.prompt[node_id]["class_type"]]
        if node.changed is None:
            return None
        try:
            return node.changed(self._files, job.prompt[node_id]["inputs"])
        except Exception:  # noqa: BLE001 (as in ComfyUI: then the node runs, and says itself what is wrong)
            return float("nan")

    def _inputs(self, job: Job, node_id: str, keys: Mapping[str, str], declared: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        given = job.prompt[node_id]["inputs"]
        for name in declared:
            if is_link(given.get(name)):
                source, slot = given[name]
                found[name] = self._kept[keys[source]].values[slot]
            elif name in given:
                found[name] = given[name]
        return found

    def _run_node(
        self, job: Job, node_id: str, inputs: Mapping[str, Any], events: Events, progress: Progress, attempt: int
    ) -> Result:
        class_type = job.prompt[node_id]["class_type"]

        def check() -> None:
            if job.stop.is_set():
                raise Interrupted

        def update(value: float, total: float, preview: Callable[[], Image.Image] | None = None) -> None:
            check()
            progress.update(node_id, value, total)
            if preview is not None:
                events.preview(job, preview, {"prompt_id": job.prompt_id, **names(node_id)})

        check()
        job.node = node_id
        events.send(
            job, "executing", {"node": node_id, "display_node": node_id, "prompt_id": job.prompt_id}
        )
        extra = job.extra_data.get("extra_pnginfo")
        run = Run(
            node_id, self._models.device, self._files, self._models, update, check, job.prompt,
            extra if isinstance(extra, dict) else {}, attempt, lambda: self._call(job, node_id),
        )  # fmt: skip
        start = time.monotonic()
        result = self._registry[class_type].run(run, **inputs)
        self._lane.stats.node_executed(class_type, time.monotonic() - start)
        return result

    def _call(self, job: Job, node_id: str) -> AbstractContextManager[None]:
        return self._calls.around(self._lane.index, (job.prompt_id, node_id), None)

    def _show(self, job: Job, node_id: str, result: Result, events: Events, found: Attempt) -> None:
        if not result.ui:
            return
        found.outputs[node_id] = result.ui
        found.meta[node_id] = {
            "node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id
        }  # fmt: skip
        data = {"node": node_id, "display_node": node_id, "output": result.ui, "prompt_id": job.prompt_id}
        events.send(job, "executed", data)


def shortened(value: Any) -> Any:
    """A value as an error message can carry it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, torch.Tensor):
        return f"Tensor {list(value.shape)} {value.dtype} {value.device}"
    return str(value)[:TEXT_LIMIT]
