"""Writes an SD 1.5 shaped checkpoint with random weights: UNet, text encoder and a small VAE, about 1.5 GB in fp32.

usage: COMFYUI_DIR=/path/to/ComfyUI PYTHON_OF_COMFYUI memory_models.py FILE [fp32|fp16]

Runs under ComfyUI's interpreter and uses its classes for the shapes, so that its own detection and loaders take it.
"""

import os
import sys
from pathlib import Path
from typing import Any


def randomise(module: Any, generator: Any, gain: float = 1.0) -> None:
    """Weights that keep a signal's size, zero biases; 0-dim parameters keep their 1."""
    import torch  # noqa: PLC0415 (after ComfyUI's options)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                spread = (gain / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            elif parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def unet(generator: Any) -> Any:
    """A UNet of three levels with SD 1.5's telling numbers, 250 million parameters."""
    import comfy.ops  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415

    model = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1, 1, 1],
        channel_mult=[1, 2, 3],
        num_heads=8,
        num_head_channels=-1,
        use_spatial_transformer=True,
        context_dim=768,
        transformer_depth=[1, 1, 1],
        transformer_depth_output=[1] * 6,
        transformer_depth_middle=1,
        use_linear_in_transformer=False,
        legacy=False,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    randomise(model, generator)
    return model


def text_encoder(generator: Any) -> Any:
    """CLIP-L's text model: 123 million parameters, no smaller one exists."""
    import comfy.sd1_clip  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model = comfy.sd1_clip.SD1ClipModel(dtype=torch.float32, device="cpu")
    randomise(model, generator)
    return model


def vae(generator: Any) -> Any:
    """A TAESD, which ComfyUI takes as a checkpoint's VAE."""
    import comfy.taesd.taesd  # noqa: PLC0415

    model = comfy.taesd.taesd.TAESD(latent_channels=4)
    randomise(model, generator, 2.0)
    list(model.taesd_decoder.parameters())[-1].data.fill_(0.5)
    return model


def write(path: Path, dtype: Any, seed: int = 7) -> None:
    """One checkpoint file; its bytes depend on ``dtype`` and ``seed`` alone."""
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for prefix, module, cut in (
        ("model.diffusion_model.", unet(generator), ""),
        ("cond_stage_model.", text_encoder(generator), "clip_l."),
        ("first_stage_model.", vae(generator), ""),
    ):
        for key, value in module.state_dict().items():
            kept = value.dtype if "vae_s" in key or not value.is_floating_point() else dtype
            weights[prefix + key.removeprefix(cut)] = value.to(kept).contiguous().clone()
    safetensors.torch.save_file(weights, path)


def start() -> None:
    """Make ComfyUI importable, on the CPU; call before anything else of it."""
    folder = os.environ["COMFYUI_DIR"]
    sys.path.insert(0, folder)
    os.chdir(folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options  # noqa: PLC0415 (only now findable)

    comfy.options.enable_args_parsing(True)


def main() -> None:
    out, kind = Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else "fp32"
    start()
    import torch  # noqa: PLC0415

    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, {"fp32": torch.float32, "fp16": torch.float16}[kind])


if __name__ == "__main__":
    main()
