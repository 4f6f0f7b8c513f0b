"""``POST /preload``: what a body may ask, and what is answered. Pure; both bodies use it.

Knows no node and no model: how a lane loads what was asked is a body's own business.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

KEYS: Final = frozenset({"workflow", "models", "gpus", "wait"})
MOST_MODELS: Final = 64
_EXPORT: Final = "Export it with Save (API Format)."


class BadPreload(ValueError):  # noqa: N818 (what the client sent)
    """The body asks for what cannot be; the text says what, ``hint`` what to send instead."""

    def __init__(self, message: str, hint: str = "", node_errors: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.node_errors = node_errors or {}

    def answer(self) -> dict[str, Any]:
        """In the shape of ComfyUI's errors."""
        error = {"type": "invalid_preload", "message": str(self), "details": self.hint, "extra_info": {}}
        return {"error": error, "node_errors": self.node_errors}


@dataclass(frozen=True)
class Model:
    """One model by its folder's type and its name there; ``inputs`` go to its loader as they are."""

    folder: str
    name: str
    inputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What one request asks for: a workflow or models, on these lanes, answered at once or when it is done."""

    workflow: dict[str, Any] | None
    models: tuple[Model, ...]
    gpus: tuple[int, ...]
    wait: bool


@dataclass(frozen=True)
class Loaded:
    """What became of it on one lane."""

    gpu: int
    models: int = 0
    seconds: float = 0.0
    error: str | None = None


Outcome = Future[Loaded]


def parse(body: Any, gpus: int, lane: int | None) -> Wanted:
    """``lane`` is the GPU the request itself named, if any; raises ``BadPreload``."""
    if not isinstance(body, dict):
        raise BadPreload("The body must be a JSON object.", 'For example {"models": [{"type": "vae", "name": "x"}]}.')
    if unknown := sorted(set(body) - KEYS):
        raise BadPreload(f"{unknown[0]!r} means nothing here.", f"Known are {', '.join(sorted(KEYS))}.")
    if ("workflow" in body) == ("models" in body):
        raise BadPreload("Send either a workflow or models.", "workflow: API format; models: a list of type and name.")
    wait = body.get("wait", True)
    if not isinstance(wait, bool):
        raise BadPreload("wait must be true or false.")
    workflow = _workflow(body["workflow"]) if "workflow" in body else None
    models = _models(body["models"]) if "models" in body else ()
    return Wanted(workflow, models, _gpus(body.get("gpus"), gpus, lane), wait)


def of_words(words: Sequence[str], gpus: int) -> Wanted:
    """What ``checkpoints/x.safetensors`` and the like ask of every lane; raises ``BadPreload``."""
    parts = [word.partition("/") for word in words]
    return parse({"models": [{"type": folder, "name": name} for folder, _, name in parts]}, gpus, None)


def _workflow(found: Any) -> dict[str, Any]:
    if isinstance(found, dict) and isinstance(found.get("prompt"), dict):
        found = found["prompt"]
    if not isinstance(found, dict) or not found:
        raise BadPreload("workflow must be an object of nodes.", _EXPORT)
    for node_id, node in found.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise BadPreload(f"Node {node_id!r} of the workflow has no class_type.", _EXPORT)
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise BadPreload(f"The inputs of node {node_id!r} must be an object.")
    return found


def _models(found: Any) -> tuple[Model, ...]:
    if not isinstance(found, list) or not found:
        raise BadPreload("models must be a list that is not empty.", 'Each is {"type": "checkpoints", "name": "…"}.')
    if len(found) > MOST_MODELS:
        raise BadPreload(f"{len(found)} models are too many.", f"Send up to {MOST_MODELS}.")
    return tuple(_model(entry) for entry in found)


def _model(found: Any) -> Model:
    if not isinstance(found, dict) or set(found) - {"type", "name", "inputs"}:
        raise BadPreload("Each model is an object with type, name and, if need be, inputs.")
    folder, name, inputs = found.get("type"), found.get("name"), found.get("inputs", {})
    if not isinstance(folder, str) or not isinstance(name, str) or not folder or not name:
        raise BadPreload("Each model needs a type and a name.", "The type is its folder's name, as in GET /models.")
    if not isinstance(inputs, dict):
        raise BadPreload(f"The inputs of {name} must be an object.")
    return Model(folder, name, inputs)


def _gpus(found: Any, gpus: int, lane: int | None) -> tuple[int, ...]:
    if found is None:
        return tuple(range(gpus)) if lane is None else (lane,)
    if not isinstance(found, list) or not found:
        raise BadPreload("gpus must be a list of whole numbers.", f"This backend has GPUs 0 to {gpus - 1}.")
    for each in found:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each < gpus:
            raise BadPreload(f"gpus names {each!r}.", f"This backend has GPUs 0 to {gpus - 1}.")
    chosen = tuple(sorted(set(found)))
    if lane is not None and chosen != (lane,):
        raise BadPreload(f"gpus names {list(chosen)}, but the request is for GPU {lane}.", "Ask at the front door.")
    return chosen


def answer(done: Sequence[Loaded], weights: Sequence[dict[str, int]]) -> tuple[int, dict[str, Any]]:
    """Status and body once every lane has ended; ``weights`` is what each of them holds now."""
    shown = [
        {"gpu_id": each.gpu, "models": each.models, "seconds": round(each.seconds, 3), "error": each.error,
         "weights": held}
        for each, held in zip(done, weights, strict=True)
    ]
    failed = [each for each in done if each.error is not None]
    if not failed:
        return 200, {"preloaded": shown}
    message = f"GPU {failed[0].gpu} could not load it."
    error: dict[str, Any] = {"type": "preload_failed", "message": message, "details": failed[0].error, "extra_info": {}}
    return 500, {"error": error, "node_errors": {}, "preloaded": shown}
