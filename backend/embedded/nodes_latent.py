"""Nodes that make a picture from text: checkpoint, prompts, latents, sampling, codec. ComfyUI's names and inputs."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from backend.embedded import images, model, samplers
from backend.embedded.checkpoint import ensure
from backend.embedded.files import Files
from backend.embedded.node import Inputs, NodeClass, Result, Run
from backend.embedded.store import Part

MAX_RESOLUTION: Final = 16384


def _load(run: Run, ckpt_name: str) -> Result:
    part = Part(run.models, ckpt_name)
    part.model()  # a missing or foreign file is this node's error, not a later one's
    return Result((part, part, part))


def _checkpoints(files: Files) -> Inputs:
    if not (names := files.models("checkpoints")):
        ensure(files.data / "models" / "checkpoints")
        names = files.models("checkpoints")
    return {"ckpt_name": (names, {"tooltip": "The checkpoint to load."})}


def _encode_text(run: Run, text: str, clip: Part) -> Result:
    ids = torch.tensor([model.tokenize(text)], device=run.device)
    return Result(([[clip.model().cond_stage_model(ids), {}]],))


def _empty_latent(run: Run, width: int, height: int, batch_size: int) -> Result:
    shape = (batch_size, model.LATENT, height // model.SCALE, width // model.SCALE)
    return Result(({"samples": torch.zeros(shape)},))


def _sample(
    run: Run, model: Part, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
    positive: Any, negative: Any, latent_image: Mapping[str, Tensor], denoise: float,
) -> Result:  # fmt: skip
    loaded = model.model()
    latent = latent_image["samples"].to(run.device)
    batch = latent.shape[0]
    text = torch.cat([positive[0][0].expand(batch, -1, -1), negative[0][0].expand(batch, -1, -1)])

    def clean(x: Tensor, sigma: float) -> Tensor:
        run.check()
        both = torch.cat([x, x])
        with run.model_call():
            wanted, unwanted = loaded.denoiser(both, torch.full((2 * batch,), sigma, device=x.device), text).chunk(2)
        guided: Tensor = unwanted + (wanted - unwanted) * cfg
        return guided

    def preview(now: Tensor) -> Image.Image:
        return images.to_pillow(loaded.first_stage_model.to_colours(now[:1])[0].movedim(0, -1))

    found = samplers.sample(
        clean, latent, seed, steps, sampler_name, scheduler, denoise,
        lambda done, now: run.progress(done, steps, lambda: preview(now)),
    )  # fmt: skip
    return Result(({**latent_image, "samples": found.cpu()},))


def _decode(run: Run, samples: Mapping[str, Tensor], vae: Part) -> Result:
    pixels = vae.model().first_stage_model.decode(samples["samples"].to(run.device))
    return Result((pixels.movedim(1, -1).cpu(),))


def _encode(run: Run, pixels: Tensor, vae: Part) -> Result:
    height, width = (side // model.SCALE * model.SCALE for side in pixels.shape[1:3])
    if not height or not width:
        raise ValueError(f"the picture is smaller than {model.SCALE} pixels")
    x = pixels[:, :height, :width, :3].movedim(-1, 1).to(run.device)
    return Result(({"samples": vae.model().first_stage_model.encode(x).cpu()},))


def _ksampler_inputs(_: Files) -> Inputs:
    return {
        "model": ("MODEL", {"tooltip": "Denoises the latent."}),
        "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}),
        "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
        "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
        "sampler_name": (list(samplers.SAMPLERS), {}),
        "scheduler": (list(samplers.SCHEDULERS), {}),
        "positive": ("CONDITIONING", {"tooltip": "What the picture should show."}),
        "negative": ("CONDITIONING", {"tooltip": "What it should not show."}),
        "latent_image": ("LATENT", {"tooltip": "The latent to start from."}),
        "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
    }


def _latent_inputs(_: Files) -> Inputs:
    return {
        "width": ("INT", {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8}),
        "height": ("INT", {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8}),
        "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
    }


NODES: Final = (
    NodeClass(
        name="CheckpointLoaderSimple", run=_load, category="loaders", display_name="Load Checkpoint",
        inputs=_checkpoints, outputs=("MODEL", "CLIP", "VAE"), description="Loads a checkpoint.",
    ),
    NodeClass(
        name="CLIPTextEncode", run=_encode_text, category="conditioning", display_name="CLIP Text Encode (Prompt)",
        inputs=lambda _: {"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP", {})},
        outputs=("CONDITIONING",), description="Turns text into what guides the sampling.",
    ),
    NodeClass(
        name="EmptyLatentImage", run=_empty_latent, category="latent", display_name="Empty Latent Image",
        inputs=_latent_inputs, outputs=("LATENT",), description="A batch of empty latents to sample into.",
    ),
    NodeClass(
        name="KSampler", run=_sample, category="sampling", display_name="KSampler",
        inputs=_ksampler_inputs, outputs=("LATENT",), description="Denoises a latent under guidance.",
    ),
    NodeClass(
        name="VAEDecode", run=_decode, category="latent", display_name="VAE Decode",
        inputs=lambda _: {"samples": ("LATENT", {}), "vae": ("VAE", {})}, outputs=("IMAGE",),
        description="Turns latents into pictures.",
    ),
    NodeClass(
        name="VAEEncode", run=_encode, category="latent", display_name="VAE Encode",
        inputs=lambda _: {"pixels": ("IMAGE", {}), "vae": ("VAE", {})}, outputs=("LATENT",),
        description="Turns pictures into latents.",
    ),
)  # fmt: skip
