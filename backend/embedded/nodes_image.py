"""Nodes that load, change, show and save pictures. ComfyUI's names and inputs."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from backend.embedded import images
from backend.embedded.files import BadName, Files, Outside
from backend.embedded.node import Inputs, NodeClass, Result, Run
from backend.embedded.nodes_latent import MAX_RESOLUTION

BLEND_MODES: Final = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")


def _load(run: Run, image: str) -> Result:
    return Result(images.load(run.files.annotated(image)))


def _loadable(files: Files, inputs: Mapping[str, Any]) -> str | None:
    name = inputs["image"]
    try:
        if isinstance(name, str) and files.annotated(name).is_file():
            return None
    except (BadName, Outside):
        pass
    return f"Invalid image file: {name}"


def _content(files: Files, inputs: Mapping[str, Any]) -> str:
    with files.annotated(inputs["image"]).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _keep(run: Run, pictures: Tensor, kind: str, prefix: str, compress: int) -> Result:
    text = images.png_text(run.prompt, run.extra_pnginfo)
    kept = []
    for number, picture in enumerate(pictures):
        run.check()
        image = images.to_pillow(picture)
        name, subfolder = run.files.save(
            kind,
            prefix.replace("%batch_num%", str(number)),
            ".png",
            lambda path, image=image: image.save(  # type: ignore[misc]  # mypy: a default makes it untyped
                path, format="PNG", pnginfo=text, compress_level=compress
            ),
            width=image.width,
            height=image.height,
        )
        kept.append({"filename": name, "subfolder": subfolder, "type": kind})
    return Result(ui={"images": kept})


def _save(run: Run, images: Tensor, filename_prefix: str) -> Result:
    return _keep(run, images, "output", filename_prefix, 4)


def _preview(run: Run, images: Tensor) -> Result:
    return _keep(run, images, "temp", "ComfyUI_temp", 1)


def _scale(run: Run, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> Result:
    if width == 0 and height == 0:
        return Result((image,))
    width = width or max(1, round(image.shape[2] * height / image.shape[1]))
    height = height or max(1, round(image.shape[1] * width / image.shape[2]))
    return Result((images.scale(image, width, height, upscale_method, crop=crop == "center"),))


def _invert(run: Run, image: Tensor) -> Result:
    return Result((1.0 - image,))


def _blend(run: Run, image1: Tensor, image2: Tensor, blend_factor: float, blend_mode: str) -> Result:
    if image1.shape[1:3] != image2.shape[1:3]:
        image2 = images.scale(image2, image1.shape[2], image1.shape[1], "bicubic", crop=True)
    channels = min(image1.shape[-1], image2.shape[-1])
    a, b = image1[..., :channels], image2[..., :channels]
    mixed = _mixed(a, b, blend_mode)
    return Result((torch.clamp(a + (mixed - a) * blend_factor, 0.0, 1.0),))


def _mixed(a: Tensor, b: Tensor, mode: str) -> Tensor:
    """The W3C compositing formulas of these names; ``difference`` keeps its sign, as ComfyUI's does."""
    if mode == "multiply":
        return a * b
    if mode == "screen":
        return a + b - a * b
    if mode == "overlay":
        return torch.where(a <= 0.5, 2 * a * b, 2 * (a + b - a * b) - 1)
    if mode == "soft_light":
        curve = torch.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, a.clamp(min=0).sqrt())
        return torch.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (curve - a))
    if mode == "difference":
        return a - b
    return b


def _blur(run: Run, image: Tensor, blur_radius: int, sigma: float) -> Result:
    x = image.to(run.device).movedim(-1, 1)
    channels, height, width = x.shape[1:]
    if blur_radius >= min(height, width):
        raise ValueError(f"blur_radius {blur_radius} needs a picture of more than {blur_radius} pixels a side")
    # Distance is measured in radii, so that sigma 1 is one radius whatever its size.
    line = torch.linspace(-1, 1, 2 * blur_radius + 1, device=x.device)
    kernel = torch.exp(-(line**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(x, (blur_radius,) * 4, mode="reflect")
    across = functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    both = functional.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return Result((both.movedim(1, -1).cpu(),))


def _empty(run: Run, width: int, height: int, batch_size: int, color: int) -> Result:
    rgb = torch.tensor([(color >> 16) & 0xFF, (color >> 8) & 0xFF, color & 0xFF]) / 255.0
    return Result((rgb.expand(batch_size, height, width, 3).clone(),))


def _side(default: int, low: int) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": low, "max": MAX_RESOLUTION, "step": 1})


def _scale_inputs(_: Files) -> Inputs:
    return {
        "image": ("IMAGE", {}),
        "upscale_method": (list(images.SCALE_METHODS), {}),
        "width": _side(512, 0),
        "height": _side(512, 0),
        "crop": (["disabled", "center"], {}),
    }


def _empty_inputs(_: Files) -> Inputs:
    return {
        "width": _side(512, 1),
        "height": _side(512, 1),
        "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
        "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
    }


def _blend_inputs(_: Files) -> Inputs:
    return {
        "image1": ("IMAGE", {}),
        "image2": ("IMAGE", {}),
        "blend_factor": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
        "blend_mode": ("COMBO", {"multiselect": False, "options": list(BLEND_MODES)}),
    }


def _blur_inputs(_: Files) -> Inputs:
    return {
        "image": ("IMAGE", {}),
        "blur_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
        "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
    }


_PNG: Final = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_POST: Final = "comfy_extras.nodes_post_processing"

NODES: Final = (
    NodeClass(
        name="LoadImage", run=_load, category="image", display_name="Load Image", outputs=("IMAGE", "MASK"),
        inputs=lambda files: {"image": (files.inputs(), {"image_upload": True})},
        changed=_content, check=_loadable, checked=frozenset({"image"}),
    ),
    NodeClass(
        name="SaveImage", run=_save, category="image", display_name="Save Image", output_node=True, hidden=_PNG,
        inputs=lambda _: {"images": ("IMAGE", {}), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
        description="Saves pictures in the output folder.",
    ),
    NodeClass(
        name="PreviewImage", run=_preview, category="image", display_name="Preview Image", output_node=True,
        hidden=_PNG, inputs=lambda _: {"images": ("IMAGE", {})}, description="Keeps pictures until the next start.",
    ),
    NodeClass(
        name="ImageScale", run=_scale, category="image/upscaling", display_name="Upscale Image",
        inputs=_scale_inputs, outputs=("IMAGE",),
    ),
    NodeClass(
        name="ImageInvert", run=_invert, category="image", display_name="Invert Image",
        inputs=lambda _: {"image": ("IMAGE", {})}, outputs=("IMAGE",),
    ),
    NodeClass(
        name="ImageBlend", run=_blend, category="image/postprocessing", display_name="Image Blend",
        inputs=_blend_inputs, outputs=("IMAGE",), python_module=_POST,
    ),
    NodeClass(
        name="ImageBlur", run=_blur, category="image/postprocessing", display_name="Image Blur",
        inputs=_blur_inputs, outputs=("IMAGE",), python_module=_POST,
    ),
    NodeClass(
        name="EmptyImage", run=_empty, category="image", display_name="EmptyImage",
        inputs=_empty_inputs, outputs=("IMAGE",),
    ),
)  # fmt: skip
