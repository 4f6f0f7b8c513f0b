"""How many CUDA devices there are, without loading torch where there is plainly none."""

import functools
from pathlib import Path

NO_CUDA = "no CUDA device: what only a GPU can show was NOT RUN; `make test-gpu` runs it on a machine that has one"


@functools.cache
def cuda_devices() -> int:
    """CUDA devices that torch can use."""
    if not any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "nvidia0", "dxg", "kfd")):
        return 0
    import torch  # noqa: PLC0415 (takes seconds, and only a machine with a GPU needs it)

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def lanes_on(kind: str, count: int, *, one_card: bool = False) -> list[str]:
    """One device name for each lane: all on the first card, or on as many as there are in turn."""
    if kind == "cpu":
        return ["cpu"] * count
    cards = 1 if one_card else cuda_devices()
    return [f"cuda:{index % cards}" for index in range(count)]


def card_name() -> str:
    """The first card's name."""
    import torch  # noqa: PLC0415 (as above)

    return torch.cuda.get_device_name(0)
