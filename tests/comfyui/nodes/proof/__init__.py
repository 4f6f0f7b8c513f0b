"""Custom nodes of the proofs: each one does, in a few lines, what some node pack does and a parallel ComfyUI breaks.

Runs inside ComfyUI, plain or behind the overlay, and knows nothing of either: what ComfyUI offers to every node is all
that is used here.
"""

import asyncio
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import scipy.stats
import torch
from comfy_execution.graph_utils import GraphBuilder
from PIL import Image
from server import PromptServer

SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
TAG = ("STRING", {"default": ""})


class Node:
    """What all of these have in common."""

    FUNCTION = "run"
    CATEGORY = "proof"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()


def text(value: str) -> dict[str, Any]:
    """An output that history shows."""
    return {"ui": {"text": [value]}, "result": (value,)}


class RandomConditioning(Node):
    """Conditioning without a text encoder: private noise of ``seed``, as long as CLIP's."""

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"seed": SEED, "width": ("INT", {"default": 768})}}

    def run(self, seed: int, width: int) -> tuple[Any]:
        noise = torch.randn((1, 77, width), generator=torch.Generator().manual_seed(seed))
        return ([[noise, {"pooled_output": noise[:, 0]}]],)


class Sleep(Node):
    """Waits in small steps, asks at each whether it was interrupted, and shows progress."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 600.0}), "steps": ("INT", {"default": 10}),
                             "tag": TAG}, "optional": {"image": ("IMAGE",)}}

    def run(self, seconds: float, steps: int, tag: str, image: Any = None) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(seconds / steps)
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)
        if image is not None:
            return {"result": (image,)}
        return {"ui": {"text": [tag]}, "result": (torch.zeros(1, 8, 8, 3),)}


class AsyncSleep(Node):
    """The same in a coroutine, asking from another await each time."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"seconds": ("FLOAT", {"default": 1.0}), "steps": ("INT", {"default": 10}), "tag": TAG}}

    async def run(self, seconds: float, steps: int, tag: str) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            await asyncio.sleep(seconds / steps)
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)
        return text(tag)


class HelperThreadProgress(Node):
    """Reports progress from a thread, or a pool, that the node starts: the usual shape of a downloader or renderer."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"steps": ("INT", {"default": 10}), "pool": ("BOOLEAN", {"default": False}), "tag": TAG}}

    def run(self, steps: int, pool: bool, tag: str) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(steps)

        def work() -> None:
            for _ in range(steps):
                time.sleep(0.12)  # newer versions drop progress that comes faster than ten a second
                bar.update(1)

        if pool:
            with ThreadPoolExecutor(1) as workers:
                workers.submit(work).result()
        else:
            helper = threading.Thread(target=work)
            helper.start()
            helper.join()
        return text(tag)


class Serving:
    """A thread that does what it is handed, for as long as the process lives: many packs keep one."""

    def __init__(self) -> None:
        self.work: queue.Queue[tuple[Any, threading.Event]] = queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            call, done = self.work.get()
            try:
                call()
            finally:
                done.set()

    def do(self, call: Any) -> None:
        done = threading.Event()
        self.work.put((call, done))
        done.wait()


SERVING = {"import": Serving()}


class ServedProgress(Node):
    """Reports progress from a thread that lives on: started at import, or by the first job that asks for ``name``."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"steps": ("INT", {"default": 5}), "name": ("STRING", {"default": "import"}), "tag": TAG}}

    def run(self, steps: int, name: str, tag: str) -> dict[str, Any]:
        bar = comfy.utils.ProgressBar(steps)

        def work() -> None:
            for _ in range(steps):
                time.sleep(0.12)  # as above
                bar.update(1)

        if name not in SERVING:
            SERVING[name] = Serving()
        SERVING[name].do(work)
        return text(tag)


class ExpandLoop(Node):
    """Expands into ``count`` nodes of a chain, then into itself with ``depth`` one less."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "count": ("INT", {"default": 3}), "depth": ("INT", {"default": 2}),
                             "seed": SEED}}

    def run(self, image: Any, count: int, depth: int, seed: int) -> dict[str, Any]:
        graph = GraphBuilder()
        last: Any = image
        for step in range(count):
            last = graph.node("ProofTint", image=last, seed=seed + step).out(0)
            time.sleep(0.001)  # lets another lane expand in the middle of this one
        if depth > 0:
            last = graph.node("ProofExpandLoop", image=last, count=count, depth=depth - 1, seed=seed + 97).out(0)
        return {"result": (last,), "expand": graph.finalize()}


class Tint(Node):
    """Adds private noise of ``seed``: makes every picture of a loop depend on every node of it."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"image": ("IMAGE",), "seed": SEED}}

    def run(self, image: Any, seed: int) -> tuple[Any]:
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed % 2**63))
        return ((image + 0.2 * noise).remainder(1.0),)


class SeededNoise(Node):
    """A picture from a process-wide generator, seeded first: what many node packs do, one ``how`` for each way."""

    RETURN_TYPES = ("IMAGE",)
    HOW: ClassVar[list[str]] = ["torch", "torch_like", "torch_inplace", "torch_returned", "torch_perm", "numpy",
                                "python", "thread", "async", "dropout", "rrelu", "dirichlet", "scipy",
                                "default_generator"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"seed": SEED, "how": (cls.HOW,), "size": ("INT", {"default": 64})}}

    async def run(self, seed: int, how: str, size: int) -> tuple[Any]:
        if how == "async":
            torch.manual_seed(seed)
            await asyncio.sleep(0.003)
            return (torch.rand((1, size, size, 3)),)
        if how == "thread":
            with ThreadPoolExecutor(1) as pool:
                return (pool.submit(self.draw, seed, "torch", size).result(),)
        return (self.draw(seed, how, size),)

    def draw(self, seed: int, how: str, size: int) -> Any:
        shape = (1, size, size, 3)
        if how == "numpy":
            np.random.seed(seed % 2**32)
            time.sleep(0.003)
            return torch.from_numpy(np.random.rand(*shape).astype(np.float32))
        if how == "python":
            random.seed(seed)
            time.sleep(0.003)
            return torch.tensor([random.random() for _ in range(size * size * 3)]).reshape(shape)
        if how == "scipy":
            np.random.seed(seed % 2**32)
            time.sleep(0.003)
            return torch.from_numpy(scipy.stats.uniform.rvs(size=shape).astype(np.float32))
        if how == "default_generator":
            torch.default_generator.manual_seed(seed)
            time.sleep(0.003)
            return torch.rand(shape)
        generator = torch.manual_seed(seed)
        time.sleep(0.003)  # between seed and draw: the window in which a neighbour draws
        if how == "torch_like":
            return torch.rand_like(torch.zeros(shape))
        if how == "torch_inplace":
            return torch.empty(shape).uniform_()
        if how == "dropout":
            return torch.nn.functional.dropout(torch.ones(shape), 0.5, training=True) / 2
        if how == "rrelu":
            return -torch.nn.functional.rrelu(-torch.ones(shape), training=True)
        if how == "dirichlet":
            return torch.distributions.Dirichlet(torch.ones(3)).sample(shape[:3])
        if how == "torch_returned":
            return torch.rand(shape, generator=generator)
        if how == "torch_perm":
            return torch.randperm(size * size * 3).reshape(shape).float() / (size * size * 3)
        return torch.rand(shape)


class CountingSaver(Node):
    """Saves with its own numbering: looks for the highest number under the prefix, then counts upwards."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",), "prefix": TAG}}

    def run(self, images: Any, prefix: str) -> dict[str, Any]:
        output = folder_paths.get_output_directory()
        full, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
        saved = []
        for image, number in zip(images, self.numbers(counter, len(images), full, name), strict=True):
            file = f"{name}_{number:05}_.png"
            time.sleep(0.003)
            Image.fromarray((255 * image.numpy()).clip(0, 255).astype(np.uint8)).save(Path(full) / file)
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved}}

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        for _ in range(count):
            yield counter
            counter += 1


class EnumerateSaver(CountingSaver):
    """Counts by ``enumerate``."""

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        for number, _ in enumerate(range(count), start=counter):
            yield number


class IntSaver(CountingSaver):
    """Makes a plain number of what it is given, and adds to that."""

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        return super().numbers(int(counter), count, folder, name)


class NumpySaver(CountingSaver):
    """Adds numpy's numbers."""

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        for step in np.arange(count):
            yield int(counter + step)


class RangeSaver(CountingSaver):
    """Counts by ``range``."""

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        yield from range(counter, counter + count)


class ListingSaver(CountingSaver):
    """Looks into the folder for each picture."""

    def numbers(self, counter: int, count: int, folder: str, name: str) -> Iterator[int]:
        for _ in range(count):
            found = [re.match(rf"{re.escape(name)}_(\d+)_", entry) for entry in os.listdir(folder)]  # noqa: PTH208 (as packs do)
            yield 1 + max((int(match[1]) for match in found if match), default=0)


class RaiseOOM(Node):
    """Raises ComfyUI's own out-of-memory error the first ``times`` times that it runs for ``tag``."""

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_NODE = True
    runs: ClassVar[dict[str, int]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"times": ("INT", {"default": 1}), "tag": TAG}, "optional": {"after": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")

    def run(self, times: int, tag: str, after: Any = None) -> dict[str, Any]:
        self.runs[tag] = self.runs.get(tag, 0) + 1
        if self.runs[tag] <= times:
            raise comfy.model_management.OOM_EXCEPTION("Allocation on device (asked for by a proof)")
        return {"ui": {"text": [f"runs={self.runs[tag]}"]}, "result": (torch.zeros(1, 8, 8, 3),)}


class Odd(BaseException):
    """Not an ``Exception``: passes every guard that catches only those."""


class Unprintable(Exception):  # noqa: N818
    """Fails again when somebody wants to report it."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be told")


class Raise(Node):
    """Raises what no worker should die of."""

    OUTPUT_NODE = True
    KINDS: ClassVar[list[str]] = ["error", "system_exit", "keyboard", "generator_exit", "odd", "unprintable",
                                  "unsendable", "recursion", "stop_iteration", "cancelled", "device_fault"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"kind": (cls.KINDS,)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")

    def run(self, kind: str) -> dict[str, Any]:
        if kind == "unsendable":
            return {"ui": {"text": [object()]}}  # the event that carries it cannot be made
        if kind == "recursion":
            return self.run(kind)
        raise {"error": RuntimeError("as asked"), "system_exit": SystemExit(3), "keyboard": KeyboardInterrupt(),
               "generator_exit": GeneratorExit(), "odd": Odd("as asked"), "unprintable": Unprintable(),
               "stop_iteration": StopIteration(), "cancelled": asyncio.CancelledError(),
               "device_fault": RuntimeError("CUDA error: an illegal memory access was encountered")}[kind]


class Broadcast(Node):
    """Sends to nobody in particular: as a running node, or from a thread that outlives it and belongs to no job."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"tag": TAG, "size": ("INT", {"default": 0}), "count": ("INT", {"default": 1})}}

    def run(self, tag: str, size: int, count: int) -> dict[str, Any]:
        for index in range(count):
            PromptServer.instance.send_sync("proof.broadcast", {"tag": tag, "index": index, "filler": "x" * size})
        return text(tag)


def tick() -> None:
    """Once a second from a thread of no job, as resource monitors do."""
    count = 0
    while True:
        time.sleep(0.5)
        count += 1
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_sync("proof.tick", {"count": count})


if os.environ.get("PROOF_TICK"):
    threading.Thread(target=tick, name="proof-tick", daemon=True).start()


class KeptModel(Node):
    """Loads a checkpoint on its first use and keeps it in a class variable, as loaders with a cache of their own do."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    kept: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"name": TAG}}

    def run(self, name: str) -> Any:
        if name not in self.kept:
            path = folder_paths.get_full_path("checkpoints", name)
            self.kept[name] = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True)[:3]
        return self.kept[name]


class DeviceReport(Node):
    """Tells which device ComfyUI would use here, in which thread, and how many models are loaded."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"tag": TAG}, "optional": {"after": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")

    def run(self, tag: str, after: Any = None) -> dict[str, Any]:
        management = comfy.model_management
        models = len(management.current_loaded_models)
        return text(f"device={management.get_torch_device()} thread={threading.current_thread().name} models={models}")


class Patched(Node):
    """Lists which of ComfyUI's and torch's own functions are not their own any more."""

    OUTPUT_NODE = True
    NAMES: ClassVar[list[str]] = [
        "comfy.model_management.processing_interrupted", "comfy.model_management.interrupt_current_processing",
        "comfy.model_management.throw_exception_if_processing_interrupted",
        "comfy_execution.progress.get_progress_state", "comfy_execution.progress.reset_progress_state",
        "folder_paths.get_save_image_path", "torch.manual_seed", "torch.randn", "server.PromptServer.send_sync",
        "server.PromptServer.queue_updated", "comfy_execution.graph_utils.GraphBuilder.alloc_prefix",
        "threading.Thread.start",
    ]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"tag": TAG}}

    def run(self, tag: str) -> dict[str, Any]:
        import sys  # noqa: PLC0415

        foreign = []
        for path in self.NAMES:
            parts = path.split(".")
            module = ".".join(parts[:2])
            found: Any = sys.modules[module if module in sys.modules else parts[0]]
            for part in parts[len(found.__name__.split(".")) :]:
                found = getattr(found, part)
            if "backend" in (getattr(found, "__module__", "") or "").split("."):
                foreign.append(path)
        ours = sorted(name for name in sys.modules if re.match(r"backend\.overlay\.patches\.", name))
        return {"ui": {"foreign": foreign, "modules": ours}}


NODE_CLASS_MAPPINGS = {
    f"Proof{kind.__name__}": kind
    for kind in (RandomConditioning, Sleep, AsyncSleep, HelperThreadProgress, ServedProgress, ExpandLoop, Tint,
                 SeededNoise, CountingSaver, EnumerateSaver, IntSaver, NumpySaver, RangeSaver, ListingSaver, RaiseOOM,
                 Raise, Broadcast, KeptModel, DeviceReport, Patched)
}
