"""A program: one device computes while the other's lane empties the cache; prints what that cost, as JSON.

Started anew for each of CUDA's allocators, which are chosen before torch is loaded.
"""

import json
import statistics
import sys
import threading
import time

import torch

EMPTIED = 20


def step(device: str, x: torch.Tensor) -> torch.Tensor:
    """One step of work, done when it returns."""
    x = torch.tanh(x @ x.T) / 2
    if device != "cpu":
        torch.cuda.synchronize(device)
    return x


def main(devices: list[str]) -> None:
    busy, other = devices
    cuda = busy != "cpu"
    start = torch.ones(256, 256, device=busy) / 256
    wanted = step(busy, start).cpu()
    took: dict[str, list[float]] = {"quiet": [], "emptied": []}
    phase, over, right = ["quiet"], threading.Event(), [True]

    def compute() -> None:
        with torch.inference_mode():
            while not over.is_set():
                name, began = phase[0], time.perf_counter()
                found = step(busy, start)
                took[name].append(time.perf_counter() - began)
                right[0] = right[0] and torch.equal(found.cpu(), wanted)

    worker = threading.Thread(target=compute)
    worker.start()
    time.sleep(0.5)
    phase[0] = "emptied"
    calls = []
    for _ in range(EMPTIED):
        held = torch.empty(1 << 20, device=other)
        del held
        began = time.perf_counter()
        if cuda:
            torch.cuda.empty_cache()
        calls.append(time.perf_counter() - began)
        time.sleep(0.01)
    over.set()
    worker.join()
    print(json.dumps({
        "backend": torch.cuda.get_allocator_backend() if cuda else "none",
        "right": right[0],
        "empty_cache_ms": round(statistics.median(calls) * 1e3, 3),
        "step_ms": {name: round(statistics.median(each) * 1e3, 3) for name, each in took.items() if each},
        "longest_step_ms": {name: round(max(each) * 1e3, 3) for name, each in took.items() if each},
    }))


if __name__ == "__main__":
    main(sys.argv[1:])
