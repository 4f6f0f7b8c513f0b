"""Weights on a GPU come from one host copy and go back to it; how fast they get there, mapped and pinned."""

import time
from pathlib import Path
from typing import Any

from tests.gpu.cards import lanes_on

LANES = 4
MIB = 1 << 20


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file of random weights of these shapes."""
    import safetensors.torch  # noqa: PLC0415 (collecting must be cheap)
    import torch  # noqa: PLC0415 (as above)

    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    safetensors.torch.save_file(values, path)
    return path


def test_lanes_share_masters_through_their_devices(kind: str, tmp_path: Path) -> None:
    """Each lane's model goes to its device and back: a copy there, the file's own memory here, no byte changed."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    from backend.overlay.patches import weights  # noqa: PLC0415 (as above)
    from backend.overlay.weights.store import Store  # noqa: PLC0415 (as above)
    from tests.backend.overlay import test_weights_modules as double  # noqa: PLC0415 (as above)
    from tests.backend.overlay.doubles import installed, job  # noqa: PLC0415 (as above)

    shapes = {key: tuple(each.shape) for key, each in double.Net().state_dict().items()}
    path = write(tmp_path / "net.safetensors", shapes)
    store, models = Store(), []
    with installed(weights.module_patches(store)):
        for index in range(LANES):
            with job(index):
                models.append(double.loaded(store, path))
        before = [parameter.detach().clone() for parameter in models[0].parameters()]
        homes = [parameter.data_ptr() for parameter in models[0].parameters()]
        with double.unwritten(store):
            for model, device in zip(models, lanes_on(kind, LANES), strict=True):
                model.to(device)
                assert {str(each.device) for each in model.parameters()} == {device}
                for now, then in zip(model.parameters(), before, strict=True):
                    assert torch.equal(now.detach().cpu(), then)
                    assert kind == "cpu" or now.data_ptr() not in homes
            for model in models:
                model.to("cpu")
                assert [parameter.data_ptr() for parameter in model.parameters()] == homes


def gigabytes_a_second(source: Any, device: str, rounds: int = 5) -> float:
    """The best of some copies to the device."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        copied = source.to(device, non_blocking=source.is_pinned(), copy=True)
        if device != "cpu":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
        del copied
    return float(source.numel() * source.element_size()) / best / 1e9


def test_how_fast_weights_reach_the_device(kind: str, tmp_path: Path) -> None:
    """From a file's mapping, from plain memory, from pinned memory: the figures, and the same bytes from each."""
    import safetensors  # noqa: PLC0415 (collecting must be cheap)
    import torch  # noqa: PLC0415 (as above)

    rows = 512 if kind == "cuda" else 4
    path = write(tmp_path / "large.safetensors", {"large": (rows, MIB // 4)})
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        mapped = file.get_tensor("large")
    sources = {"mapped": mapped, "plain": mapped.clone()}
    if kind == "cuda":
        sources["pinned"] = mapped.clone().pin_memory()
    device = lanes_on(kind, 1)[0]
    speeds = {name: gigabytes_a_second(source, device) for name, source in sources.items()}
    print(f"\n{rows} MiB to {device}: " + ", ".join(f"{name} {speed:.1f} GB/s" for name, speed in speeds.items()))
    assert all(torch.equal(source.to(device).cpu(), mapped) for source in sources.values())
