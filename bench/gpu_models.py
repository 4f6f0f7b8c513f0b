"""Writes one Wan-shaped video model with random weights, as wide and deep as asked for.

usage: COMFYUI_DIR=/path/to/ComfyUI PYTHON_OF_COMFYUI gpu_models.py FILE DIM FFN LAYERS

Runs under ComfyUI's interpreter and uses its class for the shapes, so that its own detection and loaders take it.
"""

import os
import sys
from pathlib import Path
from typing import Any


def weights(dim: int, ffn: int, layers: int) -> dict[str, Any]:
    """Half-precision weights that keep a signal's size."""
    import comfy.ops  # noqa: PLC0415 (only now findable)
    import torch  # noqa: PLC0415 (after ComfyUI's options)
    from comfy.ldm.wan.model import WanModel  # noqa: PLC0415 (as above)

    model = WanModel(
        model_type="t2v", dim=dim, ffn_dim=ffn, num_heads=dim // 128, num_layers=layers, in_dim=16, out_dim=16,
        text_dim=4096, device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(1)
    found = {}
    for key, shape in ((key, tuple(each.shape)) for key, each in model.state_dict().items()):
        if len(shape) >= 2:
            spread = torch.Size(shape[1:]).numel() ** -0.5
            found[key] = (torch.randn(shape, generator=generator) * spread).half()
        else:
            found[key] = (torch.ones if key.endswith("weight") else torch.zeros)(shape, dtype=torch.float16)
    return found


def main() -> None:
    out, dim, ffn, layers = Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:5])
    folder = os.environ["COMFYUI_DIR"]
    sys.path.insert(0, folder)
    os.chdir(folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options  # noqa: PLC0415 (only now findable)

    comfy.options.enable_args_parsing(True)
    import safetensors.torch  # noqa: PLC0415 (as above)

    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights(dim, ffn, layers), out)


if __name__ == "__main__":
    main()
