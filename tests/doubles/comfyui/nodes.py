"""A few nodes: plain functions of their inputs, run in the order of the prompt."""

import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import comfy.model_management
import folder_paths
import torch
from comfy_execution.graph_utils import GraphBuilder

OOM = {}
gates = {}


def interrupt_processing(value=True):
    comfy.model_management.interrupt_current_processing(value)


def before_node_execution():
    comfy.model_management.throw_exception_if_processing_interrupted()


class Wait:
    """Waits for ``gate`` (made and opened by name), looking whether it is interrupted."""

    @staticmethod
    def run(gate="", **_):
        opened = gates.setdefault(gate, threading.Event())
        while gate and not opened.wait(0.01):
            before_node_execution()


class Open:
    @staticmethod
    def run(gate, **_):
        gates.setdefault(gate, threading.Event()).set()


class Noise:
    @staticmethod
    def run(seed, pause=0.0, **_):
        torch.manual_seed(seed)
        time.sleep(pause)
        return torch.randn(4).tolist()


class Prefix:
    @staticmethod
    def run(**_):
        return GraphBuilder().prefix


class Save:
    @staticmethod
    def run(folder, **_):
        number = folder_paths.get_save_image_path("x", folder)[2]
        Path(folder, f"x_{number:05}_.png").touch()
        return int(number)


class Fail:
    KINDS: ClassVar[dict] = {"error": RuntimeError, "exit": SystemExit, "odd": type("Odd", (BaseException,), {})}

    @classmethod
    def run(cls, kind, **_):
        if kind == "fault":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        raise cls.KINDS[kind]("as asked")


class Desert:
    """Ends its worker's thread past every guard there is: their own log raises."""

    @staticmethod
    def run(**_):
        workers = sys.modules["backend.overlay.workers"]
        thread, log = threading.current_thread(), workers.log

        class Broken:
            def __getattr__(self, name):
                if threading.current_thread() is thread:
                    raise SystemExit
                return getattr(log, name)

        workers.log = Broken()
        raise SystemExit


class CheckpointLoaderSimple:
    """Gives a model patcher, which remembers whether it was loaded."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (its name there)
        return {"required": {"ckpt_name": (["one", "two", "bad", "huge"],), "kind": (["a", "b"],)}}

    @classmethod
    def run(cls, ckpt_name, kind, **_):
        if ckpt_name == "bad":
            raise ValueError("no checkpoint")
        return Patcher(ckpt_name)


class Patcher:
    def __init__(self, name):
        self.name, self.model, self.load_device = name, None, torch.device("cpu")

    def model_patches_models(self):
        return []


class Oom:
    """Runs out of memory the first ``times`` times for ``tag``."""

    @staticmethod
    def run(times, tag, **_):
        OOM[tag] = OOM.get(tag, 0) + 1
        if OOM[tag] <= times:
            raise comfy.model_management.OOM_EXCEPTION("out of memory (as asked)")
        return OOM[tag]


class Unsendable:
    @staticmethod
    def run(**_):
        return object()


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (Wait, Open, Noise, Prefix, Save, Fail, Desert, Oom, Unsendable,
                                                            CheckpointLoaderSimple)}
