"""Helper threads of nodes belong to the lane that started them: its context, and its GPU as their current device.

Only work that starts inside a lane is touched. Pool threads outlive their first task, so the context belongs to
the task and never to the thread. A thread that outlives its job works on for its lane. Knows nothing of ComfyUI.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from backend.context import current_lane, handed_on, in_job, in_lane
from backend.lanes import Lane
from backend.overlay.patch import Patch, params, params_start

WHY: Final = "a node's helper thread would belong to no job and allocate on the first GPU"

POOL_METHODS: Final = ("apply_async", "_map_async", "imap", "imap_unordered")


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """Threads, executors (asyncio's ``run_in_executor`` and ``to_thread`` go through them) and thread pools."""
    devices = {lane.index: lane.device for lane in lanes}
    return [
        Patch("threading:Thread.start", functools.partial(_start, devices), WHY, params_start("self")),
        Patch(
            "concurrent.futures.thread:ThreadPoolExecutor.submit",
            functools.partial(_submit, devices),
            WHY,
            params("self", "fn", "args", "kwargs"),
        ),
    ] + [
        Patch(
            f"multiprocessing.pool:ThreadPool.{name}",
            functools.partial(_pool, devices),
            WHY,
            params_start("self", "func"),
            required=False,
        )
        for name in POOL_METHODS
    ]


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Run the block with ``device`` as this thread's current one, if it is a CUDA device."""
    if not device.startswith("cuda"):
        yield
        return
    import torch  # noqa: PLC0415 (a lane on the CPU needs none of it)

    with torch.cuda.device(device):
        yield


def bound(devices: dict[int, str], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as the running code would call it: in a copy of its context and on its lane's device."""
    lane = current_lane()
    device = devices.get(lane, "cpu") if lane is not None else "cpu"
    context = handed_on()

    def run(*args: Any, **kwargs: Any) -> Any:
        with on_device(device):
            # A copy for each call: one context cannot be entered by two threads at a time.
            return context.copy().run(function, *args, **kwargs)

    return run


def _start(devices: dict[int, str], original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def start(self: Any) -> Any:
        # A thread can start once; the second try is for the original to refuse.
        if current_lane() is not None and not self._started.is_set():
            run = bound(devices, self.run)

            def run_once() -> None:
                # Without this the thread would hold itself alive.
                self.__dict__.pop("run", None)
                run()

            self.run = run_once
        return original(self)

    return start


def _submit(devices: dict[int, str], original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if current_lane() is None:
            return original(self, fn, *args, **kwargs)
        task = bound(devices, fn)
        # Outside the lane: a pool thread that starts now will serve others later.
        with in_lane(None), in_job(None):
            return original(self, task, *args, **kwargs)

    return submit


def _pool(devices: dict[int, str], original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def method(self: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(self, func if current_lane() is None else bound(devices, func), *args, **kwargs)

    return method
