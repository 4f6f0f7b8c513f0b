"""ComfyUI's loaders: which functions and nodes read weights files and fill modules, and where they fill them.

Owns their names. What happens inside a loader is the business of ``weights``.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

import torch

from backend.overlay.patch import Patch, absent, params_start, read
from backend.overlay.patches.memory import only_present
from backend.overlay.weights.loading import as_loading

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


def patches() -> list[Patch]:
    """Every loader there is, and the devices they fill models on."""
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


def _patch(target: str, replace: Callable[[Any], Any], why: str, *names: str) -> Patch:
    return Patch(target, replace, why, params_start(*names), required=False)


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
