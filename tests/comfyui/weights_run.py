"""Runs ComfyUI's own loaders, patchers and samplers in one process, lane after lane and lanes at once; prints JSON.

usage: COMFYUI_DIR=… COMFY_SHARE_WEIGHTS=off|on|strict PYTHON_OF_COMFYUI weights_run.py TINY_MODELS FOLDER

Prints, for every scenario, a hash of what came out, and what the store says. The caller compares both switches.
"""

import asyncio
import gc
import hashlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LANES = 4
Results = dict[str, Any]

sys.path.append(str(Path(__file__).parent))
from weights_files import Files  # noqa: E402 (a neighbour: ``tests`` is a folder of ComfyUI's as well)


def start() -> None:
    """Make ComfyUI and the backend importable, ComfyUI first."""
    folder = os.environ["COMFYUI_DIR"]
    sys.path[:0] = [folder]
    sys.path.append(os.environ["COMFY_GATEWAY_LIB"])
    sys.path.append(str(ROOT))
    os.chdir(folder)
    known = (Path(folder) / "comfy/cli_args.py").read_text()
    words = [word for word in ("--disable-dynamic-vram",) if f'"{word}"' in known]
    sys.argv = [sys.argv[0], "--cpu", *words]
    import comfy.options  # noqa: PLC0415 (only now findable)

    comfy.options.enable_args_parsing(True)
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    import main  # noqa: F401, PLC0415 (ComfyUI's, which loads all of it)


def digest(value: Any) -> str:
    """A hash over tensors, wherever they lie inside ``value``."""
    import torch  # noqa: PLC0415

    total = hashlib.sha256()

    def add(found: Any) -> None:
        if isinstance(found, torch.Tensor):
            total.update(str((found.dtype, tuple(found.shape))).encode())
            total.update(found.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(found, dict):
            for key in sorted(found):
                total.update(str(key).encode())
                add(found[key])
        elif isinstance(found, (list, tuple)):
            for item in found:
                add(item)

    add(value)
    return total.hexdigest()[:20]


def conditioning(seed: int = 5, width: int = 768) -> list[Any]:
    import torch  # noqa: PLC0415

    return [[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]]


def sampled(model: Any, seed: int = 3, positive: Any = None) -> Any:
    """Two steps at 64 px."""
    import comfy.sample  # noqa: PLC0415
    import torch  # noqa: PLC0415

    latent = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", positive or conditioning(), conditioning(6),
                               latent, seed=seed, disable_pbar=True)


def loaded(files: Files, name: str = "fp16") -> tuple[Any, Any, Any]:
    import comfy.sd  # noqa: PLC0415

    model, clip, vae = comfy.sd.load_checkpoint_guess_config(files.checkpoint(name))[:3]
    return model, clip, vae


def with_lora(files: Files, model: Any, strength: float = 0.8) -> Any:
    import comfy.sd  # noqa: PLC0415
    import comfy.utils  # noqa: PLC0415

    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(files.lora()), strength, 0.0)[0]


def free() -> None:
    """As ``POST /free`` does."""
    import comfy.model_management  # noqa: PLC0415

    comfy.model_management.unload_all_models()
    gc.collect()


def checkpoints(files: Files) -> Any:
    """Each of the tiny checkpoints, sampled and decoded."""
    found = []
    for name in ("fp16", "fp32", "mid_fp16"):
        model, _, vae = loaded(files, name)
        found.append(vae.decode(sampled(model)))
    return found


def ckpt(files: Files) -> Any:
    """A checkpoint that was pickled."""
    import comfy.sd  # noqa: PLC0415

    model, _, vae = comfy.sd.load_checkpoint_guess_config(files.pickled())[:3]
    return vae.decode(sampled(model))


def loras(files: Files) -> Any:
    """Without, with, with another strength, freed, and without again."""
    model, _, _ = loaded(files)
    found = [sampled(model), sampled(with_lora(files, model)), sampled(with_lora(files, model, 0.3))]
    assert len({digest(picture) for picture in found}) == 3, "the LoRA did nothing"
    free()
    return [*found, sampled(with_lora(files, model)), sampled(model)]


def low_memory(files: Files) -> Any:
    """Loaded in part, loaded further, unloaded in part, patched, and whole again; patches come with the cast."""
    import torch  # noqa: PLC0415

    found = []
    for patcher in (loaded(files)[0], with_lora(files, loaded(files)[0])):
        cpu = torch.device("cpu")
        for part in (10_000_000, 30_000_000):
            patcher.partially_load(cpu, part)
            found.append(weights(patcher))
        patcher.partially_unload(cpu, 15_000_000)
        found.append(forward(patcher))
        patcher.detach()
        found.append(weights(patcher))
    return found


def weights(patcher: Any) -> Any:
    return dict(patcher.model.state_dict())


def forward(patcher: Any) -> Any:
    """One call of the network as it stands, without loading anything."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(9)
    draw = [torch.randn(size, generator=generator) for size in ((1, 4, 8, 8), (1, 77, 768))]
    return patcher.model.apply_model(draw[0], torch.tensor([1.0]), c_crossattn=draw[1])


def hooks(files: Files) -> Any:
    """A LoRA as a hook on half of the conditioning, which patches in place at every step; then without."""
    import comfy.hooks  # noqa: PLC0415
    import comfy.utils  # noqa: PLC0415
    import torch  # noqa: PLC0415

    model, _, _ = loaded(files)
    group = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(files.lora()), 0.9, 0.0)
    lora = comfy.utils.load_torch_file(files.lora())
    hooked = comfy.hooks.load_hook_lora_for_models(model, None, lora, 0.9, 0.0)[0]
    positive = conditioning()
    positive[0][1]["hooks"] = group
    first, second = sampled(hooked, positive=positive), sampled(model)
    assert not torch.equal(first, second), "the hook did nothing"
    return [first, second, weights(model)]


def diffusion_models(files: Files) -> Any:
    """UNETLoader's path, in the file's type and in two of eight bits."""
    import comfy.sd  # noqa: PLC0415
    import torch  # noqa: PLC0415

    found = []
    for options in ({}, {"dtype": torch.float8_e4m3fn}, {"dtype": torch.bfloat16}):
        model = comfy.sd.load_diffusion_model(files.wan(), model_options=dict(options))
        found.append(weights(model))
    return found


def parts(files: Files) -> Any:
    """VAE, text encoder, CLIP vision and style model, each from a file of its own."""
    import comfy.clip_vision  # noqa: PLC0415
    import comfy.sd  # noqa: PLC0415
    import folder_paths  # noqa: PLC0415
    import nodes  # noqa: PLC0415
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, 64, 64, 3, generator=generator)
    folder_paths.add_model_folder_path("vae", str(Path(files.vae()).parent))
    vae = nodes.VAELoader().load_vae(Path(files.vae()).name)[0]
    clip = comfy.sd.load_clip([files.clip()])
    vision = comfy.clip_vision.load(files.clip_vision())
    seen = vision.encode_image(image)
    style = comfy.sd.load_style_model(files.style())
    text = clip.encode_from_tokens(clip.tokenize("a lighthouse"))
    return [vae.decode(vae.encode(image)), text, seen.last_hidden_state, style.get_cond(seen)]


def controlnets(files: Files) -> Any:
    """A ControlNet, one stored as a difference (which is added up in place), and a T2I adapter."""
    import comfy.controlnet  # noqa: PLC0415
    import torch  # noqa: PLC0415

    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    found = []
    for path in (files.controlnet(), files.controlnet(difference=True), files.t2i()):
        model, _, _ = loaded(files)
        control = comfy.controlnet.load_controlnet(path, model)
        positive = conditioning()
        positive[0][1].update(control=control.set_cond_hint(hint, 0.7, (0.0, 1.0)), control_apply_to_uncond=True)
        found.append(sampled(model, positive=positive))
    return found


def upscalers(files: Files) -> Any:
    """An ESRGAN through ComfyUI's node, twice: it goes to the device and back."""
    import folder_paths  # noqa: PLC0415
    import nodes  # noqa: PLC0415
    import torch  # noqa: PLC0415

    folder_paths.add_model_folder_path("upscale_models", str(Path(files.upscaler()).parent))
    loader, user = (nodes.NODE_CLASS_MAPPINGS[name] for name in ("UpscaleModelLoader", "ImageUpscaleWithModel"))
    model = loader.execute(Path(files.upscaler()).name)[0]
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(4))
    return [user.execute(model, image)[0] for _ in range(2)]


def merges(files: Files) -> Any:
    """Models merged, subtracted and added by ComfyUI's nodes: their patches are other models' weights."""
    import nodes  # noqa: PLC0415

    one, two = loaded(files, "fp16")[0], loaded(files, "fp32")[0]
    merge, subtract, add = (
        nodes.NODE_CLASS_MAPPINGS[f"ModelMerge{name}"]() for name in ("Simple", "Subtract", "Add")
    )
    merged = merge.merge(one, two, 0.3)[0]
    found = [sampled(merged), sampled(add.merge(subtract.merge(one, two, 0.6)[0], with_lora(files, two))[0])]
    return [*found, sampled(one), sampled(two)]


SCENARIOS: tuple[Callable[[Files], Any], ...] = (
    checkpoints, ckpt, loras, low_memory, hooks, diffusion_models, parts, controlnets, upscalers, merges,
)


def run_lane(lane: int, files: Files, results: Results, order: tuple[Callable[[Files], Any], ...]) -> None:
    import torch  # noqa: PLC0415

    from backend.context import in_lane  # noqa: PLC0415

    with in_lane(lane), torch.inference_mode():
        for scenario in order:
            try:
                found = digest(scenario(files))
            except Exception:  # noqa: BLE001 (it is the result)
                found = traceback.format_exc()[-3000:]
            results[f"{scenario.__name__} on lane {lane}"] = found
            free()


def fake_gpu(files: Files) -> Results:
    """Unloading to the host from a device that gives nothing back: how many parameters are not masters afterwards."""
    import torch  # noqa: PLC0415

    from backend.overlay.weights import modules  # noqa: PLC0415

    gpu = torch.device("meta")
    found: Results = {}
    patchers = {"plain": loaded(files, "mid_fp16")[0], "lora": with_lora(files, loaded(files, "mid_fp16")[0])}
    for name, patcher in patchers.items():
        patcher.load_device = gpu
        for buffer_owner in patcher.model.modules():
            buffer_owner._buffers.clear()
        before = [parameter.data_ptr() for parameter in patcher.model.parameters()]
        for turn, act in enumerate((
            lambda p: (p.partially_load(gpu, 1e32), p.detach()),
            lambda p: (p.partially_load(gpu, 20_000_000), p.partially_load(gpu, 1e32), p.detach()),
            lambda p: (p.partially_load(gpu, 1e32), p.partially_unload(torch.device("cpu"), 20_000_000), p.detach()),
        )):
            act(patcher)
            astray = [
                key for key, module, own in modules.places(patcher.model)
                if (kept := modules.kept(module, own)) is None or not kept.shared(module._parameters[own])
            ]
            found[f"{name} {turn}"] = {
                "astray": astray, "same": before == [parameter.data_ptr() for parameter in patcher.model.parameters()],
            }
    return found


def kinds(files: Files) -> dict[str, Callable[[], list[Any]]]:
    """How each kind of model is loaded by ComfyUI's own loader, and the module trees it gives."""
    import comfy.clip_vision  # noqa: PLC0415
    import comfy.controlnet  # noqa: PLC0415
    import comfy.sd  # noqa: PLC0415
    import folder_paths  # noqa: PLC0415
    import nodes  # noqa: PLC0415

    def checkpoint() -> list[Any]:
        model, _, vae = loaded(files, "fp32")
        return [model.model, vae.first_stage_model]

    def pickled() -> list[Any]:
        return [comfy.sd.load_checkpoint_guess_config(files.pickled())[0].model]

    def vae() -> list[Any]:
        return [nodes.VAELoader().load_vae(Path(files.vae()).name)[0].first_stage_model]

    def upscaler() -> list[Any]:
        folder_paths.add_model_folder_path("upscale_models", str(Path(files.upscaler()).parent))
        loader = nodes.NODE_CLASS_MAPPINGS["UpscaleModelLoader"]
        run = getattr(loader, "execute", None) or loader().load_model
        return [run(Path(files.upscaler()).name)[0].model]

    return {
        "checkpoint": checkpoint,
        "checkpoint, .ckpt": pickled,
        "diffusion model": lambda: [comfy.sd.load_diffusion_model(files.wan()).model],
        "text encoder": lambda: [comfy.sd.load_clip([files.clip()]).cond_stage_model],
        "VAE": vae,
        "ControlNet": lambda: [comfy.controlnet.load_controlnet(files.controlnet()).control_model],
        "T2I adapter": lambda: [comfy.controlnet.load_controlnet(files.t2i()).t2i_model],
        "CLIP vision": lambda: [comfy.clip_vision.load(files.clip_vision()).model],
        "style model": lambda: [comfy.sd.load_style_model(files.style()).model],
        "upscaler": upscaler,
    }


def shared_by_kind(files: Files) -> Results:
    """For each kind: bytes of the second lane's parameters, how many of them lie where the first lane's do, loads."""
    from backend.context import in_lane  # noqa: PLC0415
    from backend.overlay.patches.weights import stores  # noqa: PLC0415

    found: Results = {}
    for kind, load in kinds(files).items():
        before = stores[0].snapshot()
        trees = []
        for lane in (0, 1):
            with in_lane(lane):
                trees.append(load())
        places = [
            {(parameter.data_ptr(), parameter.nbytes) for tree in one for parameter in tree.parameters()}
            for one in trees
        ]
        now = stores[0].snapshot()
        found[kind] = {
            "bytes": sum(size for _, size in places[1]),
            "shared": sum(size for _, size in places[0] & places[1]),
            "loads": now.loads - before.loads,
            "avoided": now.avoided - before.avoided,
        }
        del trees
        free()
    return found


TEXTS = ("a lighthouse at night", "(fog:1.3), embedding:tiny and more", "naïve café ☕ 灯台 " * 20, "")


def tokenizers(files: Files) -> Results:
    """Tokens of two lanes' text encoders: on threads at once, and before and after one lane changed its own."""
    import torch  # noqa: PLC0415

    embeddings = files.folder / "embeddings"
    embeddings.mkdir(exist_ok=True)
    torch.save({"clip_l": torch.ones(2, 768)}, embeddings / "tiny.pt")
    one, two, three = (encoders(files, lane, str(embeddings)) for lane in (0, 1, 1))
    at_once: list[str] = []

    def again(mine: Results) -> None:
        at_once.extend(worded(mine) for _ in range(20))

    threads = [threading.Thread(target=again, args=(mine,)) for mine in (one, two, three)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = worded(one)
    tables = {name: len({id(word(mine[name])) for mine in (one, two, three)}) for name in one}
    for encoder in two.values():
        encoder.tokenizer.add_tokens(["lighthouse"])
        encoder.tokenizer("a b c", padding="max_length", max_length=50, truncation=True)
    return {
        "tokens": before, "at_once": sorted(set(at_once)), "tables": tables, "changed": worded(two),
        "after": [worded(one), worded(three), worded(encoders(files, 1, str(embeddings)))],
    }


def encoders(files: Files, lane: int, embeddings: str) -> Results:
    """ComfyUI's tokenizers of four kinds, made as its loaders make them."""
    import comfy.sd  # noqa: PLC0415
    import comfy.text_encoders.hydit  # noqa: PLC0415
    import comfy.text_encoders.qwen_image  # noqa: PLC0415
    import comfy.text_encoders.sd3_clip  # noqa: PLC0415

    from backend.context import in_lane  # noqa: PLC0415
    from backend.overlay.weights.loading import loading  # noqa: PLC0415

    text = comfy.text_encoders
    with in_lane(lane), loading():
        return {
            "clip_l": comfy.sd.load_clip([files.clip()], [embeddings]).tokenizer.clip_l,
            "t5": text.sd3_clip.T5XXLTokenizer(),
            "bert": text.hydit.HyditBertTokenizer(),
            "qwen": text.qwen_image.Qwen25_7BVLITokenizer(),
        }


def word(encoder: Any) -> str:
    """One of the words this text encoder knows: the same object where the tables are the same."""
    return max(encoder.inv_vocab.values(), key=len)


def worded(found: Results) -> str:
    """A hash over all texts' tokens and weights, and the words they stand for."""
    import torch  # noqa: PLC0415

    told = [
        [value.tolist() if isinstance(value, torch.Tensor) else value for value in token]
        + [None if isinstance(token[0], torch.Tensor) else encoder.inv_vocab.get(token[0])]
        for encoder in found.values() for text in TEXTS
        for batch in encoder.tokenize_with_weights(text) for token in batch
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:20]


def main() -> None:
    tiny, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    start()
    import logging  # noqa: PLC0415

    import nodes  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from backend.lanes import Lane  # noqa: PLC0415
    from backend.overlay.patch import PatchSet  # noqa: PLC0415
    from backend.overlay.patches import models  # noqa: PLC0415
    from backend.overlay.patches import weights as weights_patches  # noqa: PLC0415

    logging.getLogger().setLevel(logging.ERROR)
    lanes = [Lane(index, "cpu") for index in range(LANES)]
    PatchSet([*models.patches(lanes), *weights_patches.patches(lanes)]).install()
    asyncio.run(nodes.init_builtin_extra_nodes())
    files = Files(tiny, folder)
    results: Results = {}
    run_lane(0, files, results, SCENARIOS)
    order = SCENARIOS
    threads = []
    for lane in range(1, LANES):
        order = order[3:] + order[:3]
        threads.append(threading.Thread(target=run_lane, args=(lane, files, results, order)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report: dict[str, Any] = {"results": results, "tokenizers": tokenizers(files)}
    if weights_patches.stores:
        store = weights_patches.stores[0]
        with torch.inference_mode():
            report["fake_gpu"] = fake_gpu(files)
            report["kinds"] = shared_by_kind(files)
            kept = loaded(files)
            alive = store.files()
            report["written"] = [file.written() for file in alive]
            report["protected"] = [file.protected for file in alive]
            report["digests"] = [
                file.digest() == digest_of_file(file.key.path)
                for file in alive if file.key.path.endswith("safetensors")
            ]
            del kept
        del alive
        free()
        now = store.snapshot()
        report["snapshot"] = {"loads": now.loads, "avoided": now.avoided, "files": now.files, "mapped": now.mapped,
                              "anonymous": now.anonymous}
    sys.stdout.write("\n" + json.dumps(report) + "\n")
    sys.stdout.flush()


def digest_of_file(path: str) -> str:
    """The digest of what the file holds, read by nobody but this."""
    import safetensors.torch  # noqa: PLC0415

    from backend.overlay.weights.files import File, FileKey  # noqa: PLC0415
    from backend.overlay.weights.sealed import Memory  # noqa: PLC0415

    return File(FileKey.of(path), safetensors.torch.load_file(path), None, Memory(protect=False)).digest()


if __name__ == "__main__":
    main()
