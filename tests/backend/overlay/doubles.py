"""Modules shaped like ComfyUI's, as far as the overlay's library patches look at them; written from its behaviour."""

import argparse
import sys
import types
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch

from backend.context import in_job, in_lane
from backend.lanes import Lane
from backend.overlay.patch import Patch, PatchSet


def cpu_lanes(count: int = 4) -> list[Lane]:
    """Virtual lanes, all on the CPU."""
    return [Lane(index, "cpu") for index in range(count)]


@contextmanager
def installed(patches: Sequence[Patch]) -> Iterator[PatchSet]:
    """The patches in place for the block, and what they replaced back in place after it."""
    held = PatchSet([patch for patch in patches if patch.required or patch.check() is None])
    before = [patch.locate()[2] for patch in held.patches]
    held.install()
    try:
        yield held
    finally:
        held.remove()
        for patch, original in zip(held.patches, before, strict=True):
            assert patch.locate()[2] is original, patch.target


@contextmanager
def job(lane: int, prompt_id: str = "job") -> Iterator[None]:
    """As a lane's worker runs a job."""
    with in_lane(lane), in_job(prompt_id):
        yield


class Patcher:
    """A ``ModelPatcher``: a model, where it is to run, and how much of it is loaded."""

    parent = None

    def __init__(self, name: str = "Net", device: str = "cpu", size: int = 100) -> None:
        self.model = type(name, (), {"memory": 0})()
        self.load_device = torch.device(device)
        self.size = size
        self.during_detach: Any = None

    def model_patches_models(self) -> list[Any]:
        return []

    def loaded_size(self) -> int:
        loaded: int = self.model.memory
        return loaded

    def is_clone(self, other: Any) -> bool:
        return self.model is other.model


class LoadedModel:
    """ComfyUI's record of a loaded model: weak references, and a finalizer on the model."""

    def __init__(self, patcher: Patcher) -> None:
        self._model = weakref.ref(patcher)
        self.device = patcher.load_device
        self.real_model: Any = None
        self.model_finalizer: Any = None

    @property
    def model(self) -> Any:
        return self._model()

    def model_loaded_memory(self) -> int:
        loaded: int = self.model.loaded_size()
        return loaded

    def model_load(self, lowvram_model_memory: int = 0, force_patch_weights: bool = False) -> Any:
        patcher = self.model
        patcher.model.memory = patcher.size
        self.real_model = weakref.ref(patcher.model)
        self.model_finalizer = weakref.finalize(patcher.model, sys.modules["comfy.model_management"].cleanup_models)
        return patcher.model

    def model_unload(self, memory_to_free: int | None = None, unpatch_weights: bool = True) -> bool:
        self.model.model.memory = 0
        if self.model.during_detach is not None:
            self.model.during_detach()
        self.model_finalizer.detach()
        self.real_model = None
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoadedModel) and self.model is other.model

    __hash__ = None  # type: ignore[assignment]

    def is_dead(self) -> bool:
        return self.real_model() is not None and self.model is None


MANAGEMENT = '''
import torch
current_loaded_models = []
emptied = []

def get_torch_device():
    return torch.device("cpu")

def cleanup_models_gc():
    for i in range(len(current_loaded_models)):
        current_loaded_models[i].is_dead()

def cleanup_models():
    gone = [i for i in range(len(current_loaded_models)) if current_loaded_models[i].real_model() is None]
    for i in reversed(gone):
        current_loaded_models.pop(i)

def free_memory(memory_required, device, keep_loaded=[]):
    cleanup_models_gc()
    chosen = []
    for i in range(len(current_loaded_models) - 1, -1, -1):
        entry = current_loaded_models[i]
        if entry.device == device and entry not in keep_loaded and not entry.is_dead():
            chosen.append(i)
    unloaded = [i for i in chosen if current_loaded_models[i].model_unload()]
    found = [current_loaded_models.pop(i) for i in sorted(unloaded, reverse=True)]
    if found:
        soft_empty_cache()
    return found

def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None):
    cleanup_models_gc()
    for patcher in models:
        entry = LoadedModel(patcher)
        for i in reversed(range(len(current_loaded_models))):
            if patcher.is_clone(current_loaded_models[i].model):
                current_loaded_models.pop(i).model_finalizer.detach()
        entry.model_load()
        current_loaded_models.insert(0, entry)

def loaded_models(only_currently_used=False):
    return [entry.model for entry in current_loaded_models]

def soft_empty_cache(force=False):
    emptied.append(force)

def unload_all_models():
    free_memory(1e30, get_torch_device())
'''

NEWER = '''
import weakref
STREAM_CAST_BUFFERS = {}
DIRTY_MMAPS = set()
CROSS_STEP_STATE = weakref.WeakSet()
PINNED = []

def get_all_torch_devices(exclude_current=False):
    return [torch.device("cuda", 0), torch.device("cuda", 1)]

def pin_memory(tensor):
    PINNED.append(tensor)
    return True

def unpin_memory(tensor):
    PINNED.remove(tensor)
    return True
'''


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None


class PromptExecutor:
    """Calls each node of a prompt, as a function, with nothing else around it."""

    def execute(self, prompt: Any, prompt_id: str, extra_data: Any = None, execute_outputs: Any = ()) -> None:
        for node in prompt.values():
            node["run"]()


def _node_context() -> types.ModuleType:
    module = types.ModuleType("comfy_execution.utils")
    current: ContextVar[ExecutionContext | None] = ContextVar("current_executing_context", default=None)

    class CurrentNodeContext:
        def __init__(self, prompt_id: str, node_id: str, list_index: int | None = None) -> None:
            self.context = ExecutionContext(prompt_id, node_id, list_index)

        def __enter__(self) -> Any:
            self.token = current.set(self.context)
            return self

        def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
            current.reset(self.token)

    module.CurrentNodeContext = CurrentNodeContext  # type: ignore[attr-defined]
    module.get_executing_context = current.get  # type: ignore[attr-defined]
    return module


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """One more than the largest number there is, as ComfyUI counts."""
    folder = Path(output_dir) / Path(filename_prefix).parent
    name = Path(filename_prefix).name
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [
        int(entry.name[len(name) + 1 :].split("_")[0])
        for entry in folder.iterdir()
        if entry.name.startswith(name + "_") and entry.name[len(name) + 1 :].split("_")[0].isdigit()
    ]
    return str(folder), name, max(numbers, default=0) + 1, str(Path(filename_prefix).parent), filename_prefix


def comfy_modules(newer: bool = False) -> dict[str, types.ModuleType]:
    """By name, what is to stand in ``sys.modules``."""
    names = ("comfy", "comfy.model_management", "comfy.cli_args", "comfy_execution", "folder_paths", "execution")
    found: dict[str, Any] = {name: types.ModuleType(name) for name in (*names, "nodes", "node_helpers")}
    management: Any = found["comfy.model_management"]
    management.LoadedModel = LoadedModel
    exec(MANAGEMENT + (NEWER if newer else ""), vars(management))
    found["comfy_execution.utils"] = _node_context()
    found["comfy"].model_management = management
    found["comfy"].cli_args = found["comfy.cli_args"]
    found["comfy.cli_args"].args = argparse.Namespace(preview_method="none")
    found["folder_paths"].get_save_image_path = get_save_image_path
    found["execution"].PromptExecutor = type("PromptExecutor", (PromptExecutor,), dict(vars(PromptExecutor)))
    found["nodes"].NODE_CLASS_MAPPINGS = {}
    return found
