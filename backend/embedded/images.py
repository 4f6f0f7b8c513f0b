"""Pictures between tensors, Pillow and bytes.

A picture is a float tensor (batch, height, width, channels), 0 … 1, as ComfyUI's ``IMAGE``. Knows nothing of nodes,
files' names or HTTP.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

PREVIEW_SIDE: Final = 256
SCALE_METHODS: Final = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")


def to_pillow(picture: Tensor) -> Image.Image:
    """One picture (height, width, channels) as 8-bit Pillow image; values are cut off, not rounded, as ComfyUI does."""
    values = picture.detach().to("cpu", torch.float32).numpy()
    return Image.fromarray(np.clip(values * 255.0, 0, 255).astype(np.uint8))


def png_text(prompt: Any, extra: Mapping[str, Any]) -> PngInfo:
    """The texts ComfyUI keeps in its PNGs: ``prompt``, and ``workflow`` or whatever ``extra_pnginfo`` holds."""
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(prompt))
    for name, value in extra.items():
        info.add_text(name, json.dumps(value))
    return info


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Picture (frames, height, width, 3) and mask (frames, height, width) of an image file.

    The mask is 1 where the file is transparent; without transparency it is 64 × 64 zeros. Frames of another size
    than the first are left out.
    """
    pictures: list[Tensor] = []
    masks: list[Tensor] = []
    with Image.open(path) as opened:
        for each in ImageSequence.Iterator(opened):
            frame = ImageOps.exif_transpose(each)
            if frame.mode == "I":
                frame = frame.point(lambda value: value * (1 / 255))
            picture = torch.from_numpy(np.array(frame.convert("RGB"), dtype=np.float32) / 255.0)
            if pictures and picture.shape != pictures[0].shape:
                continue
            pictures.append(picture)
            masks.append(_mask(frame))
            if opened.format == "MPO":  # its further frames are thumbnails
                break
    return torch.stack(pictures), torch.stack(masks)


def _mask(frame: Image.Image) -> Tensor:
    if "transparency" in frame.info and frame.mode == "P":
        frame = frame.convert("RGBA")
    if "A" not in frame.getbands():
        return torch.zeros((64, 64))
    return 1.0 - torch.from_numpy(np.array(frame.getchannel("A"), dtype=np.float32) / 255.0)


def scale(pictures: Tensor, width: int, height: int, method: str, *, crop: bool = False) -> Tensor:
    """Scale pictures; ``crop`` first cuts them around the middle to the new shape's proportions."""
    x = pictures.movedim(-1, 1)
    if crop:
        x = _cut(x, width / height)
    if method == "lanczos":
        resized = [
            np.asarray(to_pillow(each).resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255.0
            for each in x.movedim(1, -1)
        ]
        return torch.from_numpy(np.stack(resized)).to(pictures.device)
    return functional.interpolate(x, size=(height, width), mode=method).movedim(1, -1)


def _cut(x: Tensor, wanted: float) -> Tensor:
    height, width = x.shape[-2:]
    left = top = 0
    if width / height > wanted:
        left = round((width - height * wanted) / 2)
    elif width / height < wanted:
        top = round((height - width / wanted) / 2)
    return x[:, :, top : height - top, left : width - left]


def jpeg(image: Image.Image) -> bytes:
    """A small JPEG for a preview frame."""
    found = BytesIO()
    ImageOps.contain(image, (PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR).save(
        found, format="JPEG", quality=85
    )
    return found.getvalue()
