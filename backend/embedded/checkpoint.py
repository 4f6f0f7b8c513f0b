"""The tiny model's file: made once, the same bytes on every machine, written whole or not at all.

Knows the model's shape and safetensors; nothing of lanes or nodes.
"""

import logging
import math
import tempfile
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.embedded.model import TinyModel

log = logging.getLogger("backend.embedded.checkpoint")

NAME: Final = "tiny.safetensors"
FORMAT: Final = "comfy-gateway-tiny-1"
SEED: Final = 20250


class NotOurModelError(ValueError):
    """The file is no checkpoint of the embedded engine."""


def weights() -> dict[str, Tensor]:
    """All weights, drawn from one private generator in the order of their names."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in TinyModel().state_dict().items()}
    return {name: _draw(name, shapes[name], generator) for name in sorted(shapes)}


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if name.endswith("colours"):
        # Fixed, so that channels mean warm, cool, bright and a green-magenta balance.
        return torch.tensor([[0.9, -0.3, 0.5, 0.3], [0.1, 0.2, 0.6, -0.7], [-0.7, 0.9, 0.5, 0.2]])
    if ".norm" in name or "norm1" in name or "norm2" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    drawn = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return drawn * 0.02
    if len(shape) == 2 and ("token" in name or "position" in name):
        return drawn * (1.0 if "token" in name else 0.2)
    fan_in = math.prod(shape[1:])
    return drawn * (1.2 / math.sqrt(fan_in))


def ensure(folder: Path) -> Path:
    """Path of the checkpoint in ``folder``; makes it when it is not there. Safe between threads and processes:
    whoever renames last puts the same bytes in place."""
    path = folder / NAME
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as beside:
        part = Path(beside) / NAME
        # One key: with more, their order in the file would differ from run to run.
        save_file(weights(), part, metadata={"model": FORMAT})
        part.replace(path)
    log.info("made %s", path)
    return path


def load(path: Path, device: torch.device) -> TinyModel:
    """The model in ``path`` on ``device``, for inference; raises ``NotOurModelError``."""
    try:
        with safe_open(path, framework="pt") as opened:
            found = (opened.metadata() or {}).get("model")
    except (OSError, SafetensorError) as error:
        raise NotOurModelError(f"{path.name} cannot be read: {error}") from error
    if found != FORMAT:
        raise NotOurModelError(
            f"{path.name} is no model of the embedded engine, which runs only its own {NAME}; "
            "start the backend with --comfyui DIR to use real checkpoints"
        )
    with torch.device("meta"):
        model = TinyModel()
    model.load_state_dict(load_file(path, device="cpu"), assign=True)
    return model.to(device).eval().requires_grad_(requires_grad=False)
