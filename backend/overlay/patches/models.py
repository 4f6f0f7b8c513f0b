"""``comfy.model_management`` per lane: the list of loaded models, the device, and who may free what.

Owns where ComfyUI's functions are wrapped. The lists are in ``model_lists``; cached memory, pins and buffers in
``memory``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from backend.lanes import Lane
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.patches import memory
from backend.overlay.patches.memory import MANAGEMENT, only_present
from backend.overlay.patches.model_lists import LoadedModels


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """The list of loaded models, every function that walks it, the device, and newer versions' memory state."""
    loaded = LoadedModels(lanes)
    for lane in lanes:
        lane.weights.models = functools.partial(loaded.of, lane.index)
    by_lane = "one lane would change the list under another's loop, or free its models"
    required = [
        Patch(f"{MANAGEMENT}:current_loaded_models", lambda _: loaded.entries, by_lane, _empty_list),
        Patch(
            f"{MANAGEMENT}:cleanup_models",
            functools.partial(_finalizer, loaded),
            "runs in whatever thread the garbage collector does",
            params(),
        ),
        Patch(f"{MANAGEMENT}:cleanup_models_gc", functools.partial(_cleanup, loaded), by_lane, params()),
        Patch(
            f"{MANAGEMENT}:free_memory",
            functools.partial(_steady, loaded),
            by_lane,
            params_start("memory_required", "device", "keep_loaded"),
        ),
        Patch(
            f"{MANAGEMENT}:load_models_gpu",
            functools.partial(_load, loaded),
            "models of other lanes are refused; " + by_lane,
            params_start("models", "memory_required", "force_patch_weights", "minimum_memory_required"),
        ),
        Patch(f"{MANAGEMENT}:loaded_models", functools.partial(_listing, loaded), by_lane),
        Patch(
            f"{MANAGEMENT}:LoadedModel.model_load",
            functools.partial(_counted_load, loaded),
            "model loads by lane",
            params_start("self"),
        ),
        Patch(
            f"{MANAGEMENT}:LoadedModel.model_unload",
            functools.partial(_counted_unload, loaded),
            "model unloads by lane",
            params_start("self"),
        ),
        Patch(
            f"{MANAGEMENT}:get_torch_device",
            functools.partial(_device, loaded),
            "a request or a helper thread of a lane would get the first GPU",
            params(),
        ),
    ]
    newer = [
        Patch(
            f"{MANAGEMENT}:get_all_torch_devices",
            functools.partial(_devices, loaded),
            "a lane would free, or work on, other lanes' GPUs",
            params("exclude_current"),
        ),
    ]
    return required + only_present(newer) + memory.patches(lanes)


def _empty_list(original: Any) -> str | None:
    if type(original) is not list:
        return f"expected a list, found {type(original).__name__}"
    return f"expected no models loaded yet, found {len(original)}" if original else None


def _finalizer(loaded: LoadedModels, original: Callable[[], None]) -> Any:
    @functools.wraps(original)
    def cleanup_models() -> None:
        """Nothing now: the lane drops dead entries itself before it looks at its list."""

    return cleanup_models


def _cleanup(loaded: LoadedModels, original: Callable[[], None]) -> Any:
    @functools.wraps(original)
    def cleanup_models_gc() -> None:
        with loaded.outermost() as first:
            # Inside the others it was done at their start, and what they hold cannot be collected anyway.
            if first:
                loaded.purge()
                original()
                loaded.purge()

    return cleanup_models_gc


def _steady(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    cleanup: Callable[[], None] | None = None

    @functools.wraps(original)
    def steady(*args: Any, **kwargs: Any) -> Any:
        nonlocal cleanup
        if cleanup is None:
            from comfy import model_management  # type: ignore[import-not-found]  # noqa: PLC0415 (ComfyUI's)

            cleanup = model_management.cleanup_models_gc
        cleanup()
        with loaded.outermost() as first:
            held = loaded.hold() if first else None
            try:
                return original(*args, **kwargs)
            finally:
                del held

    return steady


def _load(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    steady = _steady(loaded, original)

    @functools.wraps(original)
    def load_models_gpu(models: Any, *args: Any, **kwargs: Any) -> Any:
        models = list(models)
        with loaded.claimed([each for model in models for each in (model, *model.model_patches_models())]):
            return steady(models, *args, **kwargs)

    return load_models_gpu


def _listing(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def loaded_models(*args: Any, **kwargs: Any) -> Any:
        loaded.purge()
        return original(*args, **kwargs)

    return loaded_models


def _counted_load(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def model_load(self: Any, *args: Any, **kwargs: Any) -> Any:
        # ComfyUI comes through here before every use of a model, loaded already or not.
        new = self.model_loaded_memory() == 0
        result = original(self, *args, **kwargs)
        if new:
            loaded.count_load()
        return result

    return model_load


def _counted_unload(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def model_unload(self: Any, *args: Any, **kwargs: Any) -> Any:
        unloaded = original(self, *args, **kwargs)
        if unloaded:
            loaded.count_unload()
        return unloaded

    return model_unload


def _device(loaded: LoadedModels, original: Callable[[], Any]) -> Any:
    @functools.wraps(original)
    def get_torch_device() -> Any:
        lane = loaded.lane
        if lane is None or lane.device == "cpu":
            return original()
        return torch.device(lane.device)

    return get_torch_device


def _devices(loaded: LoadedModels, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def get_all_torch_devices(exclude_current: bool = False) -> Any:
        lane = loaded.lane
        if lane is None:
            return original(exclude_current)
        if exclude_current:
            return []
        return original()[:1] if lane.device == "cpu" else [torch.device(lane.device)]

    return get_all_torch_devices
