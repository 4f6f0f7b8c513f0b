"""One host copy of the weights for all lanes: where ComfyUI opens files, fills modules, moves and patches weights.

Owns the ComfyUI names this hangs on; the mechanism is in ``backend.overlay.weights``. All of it is optional: one
name that does not fit leaves all of it out. ``COMFY_SHARE_WEIGHTS`` switches it: ``on`` (also by default), ``off``, or
``strict`` for masters that are mapped read-only.
"""

import contextlib
import faulthandler
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from backend import share
from backend.context import current_lane
from backend.lanes import Lane
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.patches import tokenizers, weights_loaders
from backend.overlay.patches.memory import only_present
from backend.overlay.serialize import packs_used
from backend.overlay.weights import hooks, modules, pages, witness
from backend.overlay.weights.assign import load as fill
from backend.overlay.weights.guard import Guard
from backend.overlay.weights.loading import current
from backend.overlay.weights.report import Report
from backend.overlay.weights.store import Store
from backend.overlay.weights.vocabulary import Vocabularies

log = logging.getLogger("backend.overlay")

_COPY: Final = "each lane would load, and keep, a copy of its own"
_CPU: Final = torch.device("cpu")

stores: Final[list[Store]] = []
"""The store of this start, for those who report on it; empty when it is off."""


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """All of it or nothing."""
    mode = share.mode(os.environ)
    store = None if mode == "off" else _store(mode)
    for lane in lanes:
        lane.weights.read, lane.weights.names = Report(store, lane).now, _unknown
    if store is None:
        log.info("weights: %s=off, each GPU's lane loads its own copy", share.SWITCH)
        return []
    guard = Guard(store, lambda lane: lanes[lane].weights.forget())
    found = [*_files(store), *weights_loaders.patches(), *module_patches(store), *_patchers(store), _jobs(guard)]
    # Not part of it: no weights hang on whether tokenizers are shared, too.
    beside = tokenizers.patches(Vocabularies())
    if importlib.util.find_spec("comfy") is None:
        return [*found, *beside]  # nothing to look at: the list is asked for its names
    misfits = [misfit for patch in found if (misfit := patch.check()) is not None]
    if misfits:
        log.warning("weights: each GPU's lane loads its own copy, because %s", misfits[0])
        for lane in lanes:
            lane.weights.read = Report(None, lane).now
        return []
    for lane in lanes:
        lane.weights.names = functools.partial(_names, store, lane.index)
    stores[:] = [store]
    _say(store)
    return [*found, *beside]


def _store(mode: str) -> Store:
    watched = os.environ.get(witness.SWITCH, "").strip() not in {"", "0"}
    return Store(protect=mode == "strict", witness=witness.Witness() if watched else None)


def _unknown() -> None:
    """Which models a lane has cannot be told."""


def _names(store: Store, lane: int) -> list[str]:
    """What the lane's models were made of, as workflows name it: by the way from a folder of models."""
    folders = importlib.import_module("folder_paths").folder_names_and_paths
    roots = {f"{str(root).rstrip(os.sep)}{os.sep}" for paths, _ in list(folders.values()) for root in paths}
    paths = store.paths_of(lane)
    return sorted({path.removeprefix(root) for path in paths for root in roots if path.startswith(root)})


def describe() -> dict[str, Any]:
    """The store for ``GET /debug/weights``; takes as long as hashing every master, where that is asked for."""
    if not stores:
        return {"mode": "off", "files": [], "hashed": None, "changed": None}
    store = stores[0]
    watched = store.witness
    return {
        "mode": "strict" if store.protect else "on",
        "files": store.describe(),
        "hashed": None if watched is None else len(watched),
        "changed": None if watched is None else watched.changed(),
    }


def _say(store: Store) -> None:
    if not store.protect and not pages.visible():
        log.warning("weights: this system does not say which memory was written: a custom node that writes a model's "
                    "weights in place would change them for all GPUs, unnoticed")
    if store.protect and not faulthandler.is_enabled():
        # Who writes a master ends the process at that instruction: the log then names the line.
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.enable(all_threads=False)


def _files(store: Store) -> list[Patch]:
    return [
        _patch(
            "comfy.utils:load_torch_file",
            functools.partial(_load_torch_file, store),
            _COPY,
            "ckpt", "safe_load", "device", "return_metadata",
        ),
        _patch("comfy.controlnet:load_controlnet_state_dict", _difference, "adds to the loaded tensors", "state_dict"),
    ]


def module_patches(store: Store) -> list[Patch]:
    """torch's own part: how every module is filled, moved and converted."""
    module = "torch.nn.modules.module:Module"
    why = "weights that come back to the CPU would be copied there"
    goals: dict[str, modules.Goal] = {
        "to": _to,
        "cpu": lambda: (_CPU, None),
        "cuda": lambda device=None: (torch.device("cuda"), None),
        "half": lambda: (None, torch.float16),
        "bfloat16": lambda: (None, torch.bfloat16),
        "float": lambda: (None, torch.float32),
    }
    return [
        _patch(f"{module}.load_state_dict", functools.partial(_load_state_dict, store), _COPY,
               "self", "state_dict", "strict", "assign"),
        *(
            _patch(f"{module}.{name}", functools.partial(modules.moving, store, goal=goal), why, "self")
            for name, goal in goals.items()
        ),
    ]


def _patchers(store: Store) -> list[Patch]:
    patcher = "comfy.model_patcher:ModelPatcher"
    writes = "it writes weights in place"
    return [
        _patch("comfy.utils:copy_to_param", hooks.copying, writes, "obj", "attr", "value"),
        _patch(f"{patcher}.patch_weight_to_device", hooks.patching, writes, "self", "key"),
        _patch(f"{patcher}.patch_hook_weight_to_device", hooks.hooking(3), writes,
               "self", "hooks", "combined_patches", "key"),
        _patch(f"{patcher}.patch_cached_hook_weights", hooks.hooking(2), writes, "self", "cached_weights", "key"),
        _patch(f"{patcher}.unpatch_hooks", hooks.unhooking, "puts the weights back as they were", "self"),
        *only_present([
            _patch(
                "comfy.model_management:pin_memory",
                functools.partial(_pin_memory, store),
                "one lane would pin, and unpin, memory that another is reading",
                "tensor",
            )
        ]),
    ]


def _jobs(guard: Guard) -> Patch:
    return Patch(
        "execution:PromptExecutor.execute",
        functools.partial(_execute, guard),
        "weights that a custom node wrote in place are put right when its job ends",
        params("self", "prompt", "prompt_id", "extra_data", "execute_outputs"),
        required=False,
    )


def _execute(guard: Guard, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def execute(self: Any, prompt: Any, prompt_id: str, *args: Any, **kwargs: Any) -> Any:
        import nodes  # type: ignore[import-not-found]  # noqa: PLC0415 (ComfyUI's; loaded by then)

        lane = current_lane()
        if lane is None:
            return original(self, prompt, prompt_id, *args, **kwargs)
        with guard.job(lane, prompt_id, packs_used(prompt, nodes.NODE_CLASS_MAPPINGS)):
            return original(self, prompt, prompt_id, *args, **kwargs)

    return execute


def _patch(target: str, replace: Callable[[Any], Any], why: str, *names: str) -> Patch:
    return Patch(target, replace, why, params_start(*names), required=False)


def _load_torch_file(store: Store, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def load_torch_file(
        ckpt: Any, safe_load: bool = False, device: Any = None, return_metadata: bool = False, **more: Any
    ) -> Any:
        inside = current()
        if inside is None or more or (device is not None and torch.device(device).type != "cpu"):
            return original(ckpt, safe_load=safe_load, device=device, return_metadata=return_metadata, **more)
        values, metadata, file = store.load(
            ckpt, lambda: original(ckpt, safe_load=safe_load, device=device, return_metadata=True)
        )
        if file is not None:
            inside.files.append(file)
        return (values, metadata) if return_metadata else values

    return load_torch_file


def _load_state_dict(store: Store, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def load_state_dict(self: torch.nn.Module, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        inside = current()
        if inside is None or assign:
            modules.unshare(self, state_dict)
            return original(self, state_dict, strict=strict, assign=assign)
        return fill(store, inside, original, self, state_dict, strict)

    return load_state_dict


def _pin_memory(store: Store, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def pin_memory(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, torch.Tensor) and store.is_master(tensor):
            return False
        return original(tensor, *args, **kwargs)

    return pin_memory


def _difference(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def load_controlnet_state_dict(state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if "difference" in state_dict:
            state_dict = {
                key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state_dict.items()
            }
        return original(state_dict, *args, **kwargs)

    return load_controlnet_state_dict


def _to(*args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None] | None:
    parse: Any = torch._C._nn._parse_to  # noqa: SLF001 (how ``Module.to`` reads its own arguments)
    device, dtype, _, memory_format = parse(*args, **kwargs)
    return None if memory_format is not None else (device, dtype)
