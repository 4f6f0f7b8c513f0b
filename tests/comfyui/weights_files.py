"""Model files with random weights, of the kinds ComfyUI loads, made from ComfyUI's own classes.

Runs under ComfyUI's interpreter, after ComfyUI was made importable. Written once per folder; bytes depend on seeds.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Files:
    """Where each kind lies; made on first use."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder

    def checkpoint(self, name: str = "fp16") -> str:
        return str(self.tiny / "checkpoints" / f"tiny_sd15_{name}.safetensors")

    def lora(self) -> str:
        return str(self.tiny / "loras" / "tiny_lora.safetensors")

    def wan(self) -> str:
        return str(self.tiny / "diffusion_models" / "tiny_wan_fp16.safetensors")

    def made(self, name: str, make: Callable[[], dict[str, Any]]) -> str:
        import safetensors.torch  # noqa: PLC0415
        import torch  # noqa: PLC0415

        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            values = {key: value.detach().clone().contiguous() for key, value in make().items()}
            if name.endswith(".safetensors"):
                safetensors.torch.save_file(values, path)
            else:
                torch.save({"state_dict": values}, path)
        return str(path)

    def pickled(self) -> str:
        """A checkpoint as a .ckpt file."""
        import safetensors.torch  # noqa: PLC0415

        return self.made("tiny.ckpt", lambda: safetensors.torch.load_file(self.checkpoint()))

    def vae(self) -> str:
        """ComfyUI's smallest real auto-encoder: the widths of its layers are fixed, 83 million parameters."""
        def make() -> dict[str, Any]:
            from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: PLC0415

            config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
                      "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
            return randomised(AutoencoderKL(ddconfig=config, embed_dim=4)).state_dict()

        return self.made("vae.safetensors", make)

    def clip(self) -> str:
        def make() -> dict[str, Any]:
            import comfy.sd1_clip  # noqa: PLC0415
            import torch  # noqa: PLC0415

            return randomised(comfy.sd1_clip.SDClipModel(dtype=torch.float32, device="cpu").transformer).state_dict()

        return self.made("clip_l.safetensors", make)

    def clip_vision(self) -> str:
        """A CLIP vision tower of ViT-L's first layers' shape; ComfyUI tells the kind by its last layer's number."""
        def make() -> dict[str, Any]:
            import comfy.clip_model  # noqa: PLC0415
            import comfy.ops  # noqa: PLC0415
            import torch  # noqa: PLC0415

            config = json.loads((Path(os.environ["COMFYUI_DIR"]) / "comfy/clip_vision_config_vitl.json").read_text())
            model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.manual_cast)
            return randomised(model).half().state_dict()

        return self.made("clip_vision.safetensors", make)

    def controlnet(self, difference: bool = False) -> str:
        """A ControlNet of the tiny UNet's shape, whole or as the difference to a model."""
        def make() -> dict[str, Any]:
            import comfy.cldm.cldm  # noqa: PLC0415
            import comfy.ops  # noqa: PLC0415
            import torch  # noqa: PLC0415

            model = comfy.cldm.cldm.ControlNet(
                image_size=32, in_channels=4, model_channels=320, hint_channels=3, num_res_blocks=[1],
                channel_mult=[1], num_heads=8, num_head_channels=-1, use_spatial_transformer=True, context_dim=768,
                transformer_depth=[1], transformer_depth_middle=-2, use_linear_in_transformer=False, legacy=False,
                dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
            )
            values = randomised(model).state_dict()
            if not difference:
                return values
            return {"difference": torch.zeros(1), **{f"control_model.{key}": value for key, value in values.items()}}

        return self.made("controlnet_diff.safetensors" if difference else "controlnet.safetensors", make)

    def upscaler(self) -> str:
        """A small ESRGAN."""
        def make() -> dict[str, Any]:
            rrdb = importlib.import_module("spandrel.architectures.ESRGAN.__arch.RRDB")
            return randomised(rrdb.RRDBNet(num_filters=16, num_blocks=1, scale=2, shuffle_factor=None)).state_dict()

        return self.made("upscale_models/esrgan.pth", make)

    def style(self) -> str:
        def make() -> dict[str, Any]:
            from comfy.t2i_adapter import adapter  # noqa: PLC0415

            model = adapter.StyleAdapter(width=1024, context_dim=768, num_head=8, n_layes=3, num_token=8)
            return randomised(model).state_dict()

        return self.made("style.safetensors", make)

    def t2i(self) -> str:
        def make() -> dict[str, Any]:
            from comfy.t2i_adapter import adapter  # noqa: PLC0415

            return randomised(adapter.Adapter_light(cin=192, channels=[320, 640, 1280, 1280], nums_rb=4)).state_dict()

        return self.made("t2i.safetensors", make)


def randomised(module: Any) -> Any:
    """Seeded weights that keep a signal's size."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return module
