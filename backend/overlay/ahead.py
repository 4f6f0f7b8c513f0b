"""Models that lanes load ahead of any job: the nodes that do it, and who waits for it.

A preload is an item of a lane's queue like any other, so it never runs beside a job of that lane; it is no job: no
client hears of it, no history keeps it, no counter of jobs moves. Knows ComfyUI's nodes by class and types only.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

from backend.preload import BadPreload, Loaded, Model, Outcome, Wanted

MODEL_TYPES: Final = frozenset({
    "MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL", "GLIGEN", "UPSCALE_MODEL", "MODEL_PATCH",
    "LATENT_UPSCALE_MODEL", "AUDIO_ENCODER", "PHOTOMAKER",
})  # fmt: skip
LOADERS: Final = {
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name"),
    "diffusion_models": ("UNETLoader", "unet_name"),
    "unet": ("UNETLoader", "unet_name"),
    "text_encoders": ("CLIPLoader", "clip_name"),
    "clip": ("CLIPLoader", "clip_name"),
    "vae": ("VAELoader", "vae_name"),
    "controlnet": ("ControlNetLoader", "control_net_name"),
    "clip_vision": ("CLIPVisionLoader", "clip_name"),
    "style_models": ("StyleModelLoader", "style_model_name"),
    "gligen": ("GLIGENLoader", "gligen_name"),
    "upscale_models": ("UpscaleModelLoader", "model_name"),
    "model_patches": ("ModelPatchLoader", "name"),
    "audio_encoders": ("AudioEncoderLoader", "audio_encoder_name"),
    "photomaker": ("PhotoMakerLoader", "photomaker_model_name"),
}
"""Folder type to its loader's class and the input that takes the name."""

Prompt = dict[str, Any]


def nodes_of(wanted: Wanted, classes: Mapping[str, Any]) -> Prompt:
    """The nodes to run; raises ``BadPreload``."""
    if wanted.workflow is not None:
        return _of_workflow(wanted.workflow, classes)
    return {f"preload-{index}": _loader(model, classes) for index, model in enumerate(wanted.models)}


def _of_workflow(workflow: Prompt, classes: Mapping[str, Any]) -> Prompt:
    """Its nodes that make nothing but models out of nothing but models: loaders, LoRAs, patches of models."""
    for node_id, node in workflow.items():
        if node["class_type"] not in classes:
            raise BadPreload(f"There is no node {node['class_type']}.", f"It is node {node_id!r} of the workflow.")
    chosen = {node_id for node_id, node in workflow.items() if _makes_models(classes[node["class_type"]])}
    while True:
        kept = {node_id for node_id in chosen if set(_sources(workflow[node_id])) <= chosen}
        if kept == chosen:
            break
        chosen = kept
    if not chosen:
        raise BadPreload("The workflow loads no models.", "No node of it makes models alone, as loaders do.")
    return {node_id: workflow[node_id] for node_id in workflow if node_id in chosen}


def _makes_models(node_class: Any) -> bool:
    types = getattr(node_class, "RETURN_TYPES", ())
    return bool(types) and all(isinstance(each, str) and each in MODEL_TYPES for each in types)


def _sources(node: Mapping[str, Any]) -> list[str]:
    return [str(value[0]) for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2]


def _loader(model: Model, classes: Mapping[str, Any]) -> dict[str, Any]:
    found = LOADERS.get(model.folder)
    if found is None:
        raise BadPreload(f"{model.folder!r} is no type of models that can be preloaded.",
                         f"Known are {', '.join(sorted(LOADERS))}; send a workflow for anything else.")
    name, takes = found
    if name not in classes:
        raise BadPreload(f"This ComfyUI has no {name}.", "Send a workflow with the loader it has.")
    required = classes[name].INPUT_TYPES().get("required", {})
    inputs = {key: _default(kind) for key, kind in required.items() if key != takes}
    return {"class_type": name, "inputs": {**inputs, takes: model.name, **model.inputs}}


def _default(kind: Any) -> Any:
    """What a loader's other input is when nobody says: its default, else its first choice."""
    choices, options = kind[0], kind[1] if len(kind) > 1 and isinstance(kind[1], Mapping) else {}
    if "default" in options:
        return options["default"]
    if not isinstance(choices, list):
        choices = options.get("options", ())
    return choices[0] if choices else None


class Aheads:
    """Preloads on their way, by the id their queue items have; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Outcome] = {}
        self._began: dict[str, float] = {}
        self._found: dict[str, tuple[int, str | None]] = {}

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._waiting

    def accept(self, prompt_id: str) -> Outcome:
        """A preload is about to be queued; the result comes when its lane has ended it, or dropped it."""
        made: Outcome = Future()
        with self._lock:
            self._waiting[prompt_id] = made
        return made

    def begin(self, prompt_id: str) -> None:
        """Its lane's worker took it."""
        with self._lock:
            self._began[prompt_id] = time.monotonic()

    def found(self, prompt_id: str, models: int, error: str | None = None) -> None:
        """So many models are loaded; ``error`` when they could not be brought to the device."""
        with self._lock:
            self._found[prompt_id] = (models, error)

    def end(self, prompt_id: str, lane: int, error: str | None) -> int:
        """It left its lane; returns how many models were loaded."""
        with self._lock:
            waiting = self._waiting.pop(prompt_id, None)
            began = self._began.pop(prompt_id, None)
            models, failed = self._found.pop(prompt_id, (0, None))
        error = error or failed
        if waiting is not None:
            seconds = 0.0 if began is None else time.monotonic() - began
            waiting.set_result(Loaded(lane, 0 if error else models, seconds, error))
        return 0 if error else models


def reason(status: Any) -> str | None:
    """Why a queue item did not succeed, in the words of its last message; ``None`` when it did."""
    if status is None or status.status_str == "success":
        return None
    for event, data in reversed(status.messages):
        if event == "execution_interrupted":
            return "It was interrupted."
        if event == "execution_error":
            return f"{data.get('exception_type', 'error')}: {str(data.get('exception_message', '')).strip()}"
    return "It failed."
