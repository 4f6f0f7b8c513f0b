"""Nodes that sleep and fail on purpose, offered only with ``--testing-nodes``.

``TestSleep`` has the name and inputs of the one in ComfyUI's own testing pack, so that one workflow tests both bodies.
"""

import os
import signal
import time
from typing import Any, Final

import torch

from backend.embedded.node import ANY, NodeClass, Result, Run

SLICE: Final = 0.02
"""Seconds between two looks at whether a client stopped the job."""


def _sleep(run: Run, value: Any, seconds: float) -> Result:
    start = time.monotonic()
    while (left := seconds - (time.monotonic() - start)) > 0:
        run.check()
        run.progress(seconds - left, seconds)
        time.sleep(min(SLICE, left))
    return Result((value,))


def _out_of_memory(run: Run, value: Any, count: int) -> Result:
    if run.attempt < count:
        raise torch.OutOfMemoryError("CUDA out of memory (raised by the node TestOutOfMemory).")
    return Result((value,))


def _fault(run: Run, value: Any) -> Result:
    raise RuntimeError("CUDA error: an illegal memory access was encountered (raised by the node TestFault)")


def _fail(run: Run, value: Any, exit_thread: bool) -> Result:
    if exit_thread:
        raise SystemExit("raised by the node TestFail")
    raise RuntimeError("raised by the node TestFail")


def _kill(run: Run, value: Any) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
    return Result((value,))


NODES: Final = (
    NodeClass(
        name="TestSleep", run=_sleep, category="_for_testing", display_name="Test Sleep", outputs=(ANY,),
        inputs=lambda _: {
            "value": (ANY, {}), "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 9999.0, "step": 0.01}),
        },
    ),
    NodeClass(
        name="TestOutOfMemory", run=_out_of_memory, category="_for_testing", display_name="Test Out Of Memory",
        inputs=lambda _: {"value": (ANY, {}), "count": ("INT", {"default": 1, "min": 0, "max": 100})},
        outputs=(ANY,), description="Runs out of memory in the job's first `count` attempts.",
    ),
    NodeClass(
        name="TestFault", run=_fault, category="_for_testing", display_name="Test Fault", outputs=(ANY,),
        inputs=lambda _: {"value": (ANY, {})}, description="Fails as a broken CUDA device does.",
    ),
    NodeClass(
        name="TestFail", run=_fail, category="_for_testing", display_name="Test Fail", outputs=(ANY,),
        inputs=lambda _: {"value": (ANY, {}), "exit_thread": ("BOOLEAN", {"default": False})},
        description="Raises an error, or what would end a careless worker thread.",
    ),
    NodeClass(
        name="TestKill", run=_kill, category="_for_testing", display_name="Test Kill", outputs=(ANY,),
        inputs=lambda _: {"value": (ANY, {})}, description="Takes the whole process down, as a crash in a driver does.",
    ),
)  # fmt: skip
