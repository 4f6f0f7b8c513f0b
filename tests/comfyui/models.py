"""Writes tiny models with random weights that ComfyUI's own detection takes for SD 1.5, a LoRA of it, and Wan.

usage: COMFYUI_DIR=/path/to/ComfyUI PYTHON_OF_COMFYUI models.py OUT

Runs under ComfyUI's interpreter and uses its classes for the shapes, so that detection, loaders, samplers and the VAE
all run for real on a CPU. Written once per folder; the bytes depend on the seeds below alone.
"""

import os
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "fp16": "tiny_sd15_fp16.safetensors", "fp32": "tiny_sd15_fp32.safetensors", "mid": "tiny_sd15_mid_fp16.safetensors",
    "lora": "tiny_lora.safetensors", "wan": "tiny_wan_fp16.safetensors",
}


def randomise(module: Any, generator: Any, gain: float = 1.0) -> None:
    """Weights that keep a signal's size, zero biases; 0-dim parameters keep their 1, or every picture is black."""
    import torch  # noqa: PLC0415 (after ComfyUI's options)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                spread = (gain / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            elif parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def checkpoint(path: Path, dtype: Any, *, seed: int, middle: bool) -> None:
    """A one-level UNet with SD 1.5's telling numbers and a TAESD as its VAE; no text encoder."""
    import comfy.ops  # noqa: PLC0415
    import comfy.taesd.taesd  # noqa: PLC0415
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[1], channel_mult=[1],
        num_heads=8, num_head_channels=-1, use_spatial_transformer=True, context_dim=768, transformer_depth=[1],
        transformer_depth_output=[1, 1] if middle else [0, 0], transformer_depth_middle=1 if middle else -2,
        use_linear_in_transformer=False, legacy=False, dtype=torch.float32, device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    randomise(unet, generator)
    vae = comfy.taesd.taesd.TAESD(latent_channels=4)
    randomise(vae, generator, 2.0)
    list(vae.taesd_decoder.parameters())[-1].data.fill_(0.5)
    weights = {f"model.diffusion_model.{key}": value.to(dtype).contiguous() for key, value in unet.state_dict().items()}
    for key, value in vae.state_dict().items():
        kept = torch.float32 if "vae_s" in key else dtype
        weights[f"first_stage_model.{key}"] = value.to(kept).contiguous().clone()
    safetensors.torch.save_file(weights, path)


def lora(path: Path) -> None:
    """Rank 4 on the attention of the only transformer block, in the naming that trainers write."""
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(2)
    weights: dict[str, Any] = {}
    for attention, inner in (("attn1", 320), ("attn2", 768)):
        for target, width in (("q", 320), ("k", inner), ("v", inner)):
            key = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_{attention}_to_{target}"
            weights[f"{key}.lora_down.weight"] = torch.randn((4, width), generator=generator) * 0.1
            weights[f"{key}.lora_up.weight"] = torch.randn((320, 4), generator=generator) * 0.1
            weights[f"{key}.alpha"] = torch.tensor(4.0)
    safetensors.torch.save_file(weights, path)


def wan(path: Path) -> None:
    """One layer of a Wan text-to-video model; its dimensions are read from the weights."""
    import comfy.ops  # noqa: PLC0415
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from comfy.ldm.wan.model import WanModel  # noqa: PLC0415

    model = WanModel(model_type="t2v", dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_dim=16, out_dim=16,
                     text_dim=4096, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    randomise(model, torch.Generator().manual_seed(1))
    weights = {key: value.to(torch.float16).contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(weights, path)


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    folder = os.environ["COMFYUI_DIR"]
    sys.path.insert(0, folder)
    os.chdir(folder)
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options  # noqa: PLC0415 (only now findable)

    comfy.options.enable_args_parsing(True)
    import torch  # noqa: PLC0415

    for kind in ("checkpoints", "loras", "diffusion_models"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    checkpoint(out / "checkpoints" / NAMES["fp16"], torch.float16, seed=0, middle=False)
    checkpoint(out / "checkpoints" / NAMES["fp32"], torch.float32, seed=3, middle=False)
    checkpoint(out / "checkpoints" / NAMES["mid"], torch.float16, seed=5, middle=True)
    lora(out / "loras" / NAMES["lora"])
    wan(out / "diffusion_models" / NAMES["wan"])
    for path in sorted(out.rglob("*.safetensors")):
        print(path.name, f"{path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
