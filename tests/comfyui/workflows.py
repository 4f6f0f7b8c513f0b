"""The workflows of the proofs, in API format. Pure: a workflow is made from numbers and knows no server."""

from typing import Any

from tests.comfyui.models import NAMES

Prompt = dict[str, Any]
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m_sde", "ddim", "lcm")


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def sampled(
    seed: int, *, model: str = "fp16", sampler: str = "euler", steps: int = 2, size: int = 64, batch: int = 1,
    prefix: str = "proof/sampled", lora: float = 0.0, denoise: float = 1.0,
) -> Prompt:
    """Checkpoint, random conditioning, KSampler, VAE, SaveImage; with the LoRA when its strength is not 0."""
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=NAMES[model]),
        "2": node("ProofRandomConditioning", seed=1, width=768),
        "3": node("ProofRandomConditioning", seed=2, width=768),
        "4": node("EmptyLatentImage", width=size, height=size, batch_size=batch),
        "5": node("KSampler", model=["1", 0], seed=seed, steps=steps, cfg=5.0, sampler_name=sampler,
                  scheduler="normal", positive=["2", 0], negative=["3", 0], latent_image=["4", 0], denoise=denoise),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix=prefix),
    }
    if lora:
        prompt["8"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=NAMES["lora"], strength_model=lora)
        prompt["5"]["inputs"]["model"] = ["8", 0]
    return prompt


def kept(seed: int, prefix: str = "proof/kept") -> Prompt:
    """The same with a model that a node keeps in a variable all GPUs share."""
    return {**sampled(seed, prefix=prefix), "1": node("ProofKeptModel", name=NAMES["fp16"])}


def wan(seed: int, prefix: str = "proof/wan") -> Prompt:
    """Two steps of the Wan-shaped video model, its latent saved: no VAE of that size exists."""
    return {
        "1": node("UNETLoader", unet_name=NAMES["wan"], weight_dtype="default"),
        "2": node("ProofRandomConditioning", seed=1, width=4096),
        "4": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "5": node("KSampler", model=["1", 0], seed=seed, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple",
                  positive=["2", 0], negative=["2", 0], latent_image=["4", 0], denoise=1.0),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix=prefix),
    }


def sleeping(seconds: float, *, steps: int = 10, tag: str = "", kind: str = "ProofSleep") -> Prompt:
    """One node that waits."""
    return {"1": node(kind, seconds=seconds, steps=steps, tag=tag)}


def noise(seed: int, how: str, *, size: int = 64, prefix: str = "proof/noise") -> Prompt:
    """A picture of seeded noise."""
    return {"1": node("ProofSeededNoise", seed=seed, how=how, size=size),
            "2": node("SaveImage", images=["1", 0], filename_prefix=prefix)}


def added_noise(seed: int, size: int = 768, prefix: str = "proof/added") -> Prompt:
    """ComfyUI's own node that seeds the process-wide generator and draws from it."""
    return {"1": node("EmptyImage", width=size, height=size, batch_size=1, color=0x808080),
            "2": node("ImageAddNoise", image=["1", 0], seed=seed, strength=0.5),
            "3": node("SaveImage", images=["2", 0], filename_prefix=prefix)}


def expanding(seed: int, *, count: int = 4, depth: int = 3, prefix: str = "proof/expanded") -> Prompt:
    """A loop that expands into itself ``depth`` times."""
    return {"1": node("EmptyImage", width=32, height=32, batch_size=1, color=seed % 0xFFFFFF),
            "2": node("ProofExpandLoop", image=["1", 0], count=count, depth=depth, seed=seed),
            "3": node("SaveImage", images=["2", 0], filename_prefix=prefix)}


def saved(colour: int, prefix: str, *, batch: int = 1, saver: str = "SaveImage") -> Prompt:
    """A picture that nobody else makes, saved by ComfyUI's node or by a proof's of this name, which counts itself."""
    prompt = {"1": node("EmptyImage", width=32, height=32, batch_size=batch, color=colour)}
    if saver == "SaveImage":
        prompt["2"] = node("SaveImage", images=["1", 0], filename_prefix=prefix)
    else:
        prompt["2"] = node(f"Proof{saver}", images=["1", 0], prefix=prefix)
    return prompt


def sized(seed: int) -> Prompt:
    """ComfyUI's node that sends its text to nobody in particular."""
    return {"1": node("EmptyImage", width=32 + seed, height=32, batch_size=1, color=1),
            "2": node("GetImageSize", image=["1", 0]), "3": node("PreviewImage", images=["1", 0]),
            "4": node("PreviewAny", source=["2", 0])}


def watched(seed: int, prefix: str = "proof/watched") -> Prompt:
    """Seeded noise, a node that shows ten steps of progress, SaveImage: what the public clients are given."""
    return {"1": node("ProofSeededNoise", seed=seed, how="torch", size=32),
            "2": node("ProofSleep", seconds=1.0, steps=10, tag=str(seed), image=["1", 0]),
            "3": node("SaveImage", images=["2", 0], filename_prefix=prefix)}
