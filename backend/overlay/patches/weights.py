"""One host copy of the weights for all lanes: where ComfyUI opens files, fills modules, moves and patches weights.

Owns the ComfyUI names this hangs on; the mechanism is in ``backend.overlay.weights``. All of it is optional: one
name that does not fit leaves all of it out. ``COMFY_SHARE_WEIGHTS`` switches it: ``1`` (also by default), ``0``, or
``writable`` for masters that are not mapped read-only.
"""

import contextlib
import faulthandler
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from backend.lanes import Lane
from backend.overlay.patch import Patch, absent, params_start, read
from backend.overlay.patches.memory import only_present
from backend.overlay.weights import hooks, modules
from backend.overlay.weights.assign import load as fill
from backend.overlay.weights.loading import as_loading, current
from backend.overlay.weights.store import Store

log = logging.getLogger("backend.overlay")

SWITCH: Final = "COMFY_SHARE_WEIGHTS"
_OFF: Final = {"0", "false", "off", "no"}
_COPY: Final = "each lane would load, and keep, a copy of its own"
_CPU: Final = torch.device("cpu")

LOADERS: Final = (
    ("comfy.sd:load_checkpoint_guess_config", ("ckpt_path",)),
    ("comfy.sd:load_diffusion_model", ("unet_path",)),
    ("comfy.sd:load_clip", ("ckpt_paths",)),
    ("comfy.sd:load_style_model", ("ckpt_path",)),
    ("comfy.sd:load_gligen", ("ckpt_path",)),
    ("comfy.controlnet:load_controlnet", ("ckpt_path",)),
    ("comfy.clip_vision:load", ("ckpt_path",)),
    ("comfy.diffusers_load:load_diffusers", ("model_path",)),
    ("comfy.taesd.taesd:TAESD.__init__", ("self",)),
    ("nodes:VAELoader.load_vae", ("self", "vae_name")),
)
NEWER_LOADERS: Final = (
    ("comfy.sd:load_checkpoint_guess_config_model_only", ("ckpt_path",)),
    ("comfy.sd:load_checkpoint_guess_config_clip_only", ("ckpt_path",)),
)
LOADER_NODES: Final = (
    *("UpscaleModelLoader", "LatentUpscaleModelLoader", "ModelPatchLoader", "AudioEncoderLoader"),
    *("PhotoMakerLoader", "LTXVAudioVAELoader", "LTXAVTextEncoderLoader", "FrameInterpolationModelLoader"),
)
"""Loaders whose modules ComfyUI imports under names of its own; they are found in its list of nodes."""

stores: Final[list[Store]] = []
"""The store of this start, for those who report on it; empty when it is off."""


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """All of it or nothing."""
    choice = os.environ.get(SWITCH, "").strip().lower()
    if choice in _OFF:
        log.info("weights: %s=%s, each GPU's lane loads its own copy", SWITCH, choice)
        return []
    store = Store(protect=choice != "writable")
    found = [*_files(store), *_loaders(), *module_patches(store), *_patchers(store)]
    if importlib.util.find_spec("comfy") is None:
        return found  # nothing to look at: the list is asked for its names
    misfits = [misfit for patch in found if (misfit := patch.check()) is not None]
    if misfits:
        log.warning("weights: each GPU's lane loads its own copy, because %s", misfits[0])
        return []
    stores[:] = [store]
    if store.protect and not faulthandler.is_enabled():
        # Who writes a master ends the process at that instruction: the log then names the line.
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.enable(all_threads=False)
    return found


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


def _loaders() -> list[Patch]:
    return [
        *(_patch(target, as_loading, _COPY, *names) for target, names in LOADERS),
        *only_present([_patch(target, as_loading, _COPY, *names) for target, names in NEWER_LOADERS]),
        _patch("nodes:init_builtin_extra_nodes", _extra_nodes, _COPY),
        _patch(
            "comfy.model_management:unet_inital_load_device",
            _on_host,
            "weights loaded straight to a GPU have no host copy to share",
            "parameters", "dtype",
        ),
        _patch(
            "comfy.model_management:text_encoder_initial_device",
            _on_host_text,
            "weights loaded straight to a GPU have no host copy to share",
            "load_device", "offload_device",
        ),
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


def _on_host(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def unet_inital_load_device(*args: Any, **kwargs: Any) -> Any:
        from comfy import model_management  # type: ignore[import-not-found]  # noqa: PLC0415 (ComfyUI's)

        # With everything kept on the GPU there is no host copy at all.
        offload = model_management.unet_offload_device()
        return _CPU if offload.type == "cpu" else original(*args, **kwargs)

    return unet_inital_load_device


def _on_host_text(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def text_encoder_initial_device(load_device: Any, offload_device: Any, *args: Any, **kwargs: Any) -> Any:
        host = torch.device(offload_device).type == "cpu"
        return offload_device if host else original(load_device, offload_device, *args, **kwargs)

    return text_encoder_initial_device


def _extra_nodes(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    async def init_builtin_extra_nodes(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        import nodes  # type: ignore[import-not-found]  # noqa: PLC0415 (ComfyUI's)

        for name in LOADER_NODES:
            _wrap_node(nodes.NODE_CLASS_MAPPINGS.get(name))
        return result

    return init_builtin_extra_nodes


def _wrap_node(node: Any) -> None:
    """Run the node's own function as a loader: ``execute`` of newer nodes, the one that ``FUNCTION`` names of older."""
    if node is None:
        return
    name = "execute" if "execute" in vars(node) else str(getattr(node, "FUNCTION", ""))
    stored = read(node, name)
    if isinstance(stored, classmethod):
        setattr(node, name, classmethod(as_loading(stored.__func__)))
    elif callable(stored) and absent(stored) is not None:
        setattr(node, name, as_loading(stored))
