"""A lane that runs out of memory, and one that empties the allocator's cache, beside lanes that go on sampling."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import allocator
from tests.gpu.cards import lanes_on

STEPS = 40
ROOT = Path(__file__).resolve().parents[2]


def sampled(device: str, seed: int) -> bytes:
    """Some steps of a small network from a seed."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, 64, generator=generator).to(device) / 8
    x = torch.randn(64, 64, generator=generator).to(device)
    with torch.inference_mode():
        for _ in range(STEPS):
            x = torch.tanh(x @ weight)
    found: bytes = x.cpu().numpy().tobytes()
    return found


def test_one_lane_runs_out_of_memory_and_the_others_go_on(kind: str) -> None:
    """The error is an out-of-memory error, the device is usable after it, and the other lanes' bytes are their own."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    from backend.context import in_lane  # noqa: PLC0415 (as above)
    from backend.lanes import Failure, classify  # noqa: PLC0415 (as above)
    from backend.overlay.workers import warm_up  # noqa: PLC0415 (as above)

    devices = lanes_on(kind, 4, one_card=True)
    wanted = [sampled(device, lane) for lane, device in enumerate(devices)]
    kinds: list[Failure] = []
    found: list[list[bytes]] = [[], [], []]
    over = threading.Event()

    def greedy() -> None:
        with in_lane(3):
            warm_up(devices[3])
            for _ in range(10):
                try:
                    torch.empty(1 << 50, dtype=torch.uint8, device=devices[3])
                except RuntimeError as error:
                    kinds.append(classify(error))
                if kind == "cuda":
                    torch.cuda.empty_cache()
            found.append([sampled(devices[3], 3)])
            over.set()

    def steady(lane: int) -> None:
        with in_lane(lane):
            warm_up(devices[lane])
            while len(found[lane]) < 5 or not over.is_set():
                found[lane].append(sampled(devices[lane], lane))

    workers = [threading.Thread(target=greedy)] + [threading.Thread(target=steady, args=(lane,)) for lane in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(120)
    assert kinds == [Failure.OOM] * 10
    assert [set(each) for each in found] == [{each} for each in wanted]


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync"])
def test_emptying_the_cache_under_load(kind: str, backend: str) -> None:
    """What ``empty_cache`` costs the caller and the others, with both of CUDA's allocators; results stay right."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_CUDA_ALLOC_CONF": f"backend:{backend}"}
    devices = lanes_on(kind, 2)
    done = subprocess.run(
        [sys.executable, allocator.__file__, *devices], env=env, capture_output=True, text=True, timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{report}")
    assert report["right"]
    assert kind == "cpu" or report["backend"] == backend


def test_what_asking_for_free_memory_costs(kind: str) -> None:
    """Microseconds of the question that ComfyUI asks at every step: the figure for this device."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    from backend import devices  # noqa: PLC0415 (as above)

    device = lanes_on(kind, 1)[0]
    began, count = time.perf_counter(), 50
    for _ in range(count):
        assert devices.memory(device).total > 0
        if kind == "cuda":
            torch.cuda.memory_stats(device)
    print(f"\nfree memory of {device}: {(time.perf_counter() - began) / count * 1e6:.0f} µs a question")
