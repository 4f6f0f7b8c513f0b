"""Which devices there are, one name per lane, and how full they are.

Imports torch only inside functions that need it: the parent of a ComfyUI must not load torch before it.
Knows nothing of lanes' jobs.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("backend.devices")


@dataclass(frozen=True)
class Memory:
    """Bytes: used by whom the device's driver counts (on the CPU: this process), free for new use, and in all."""

    used: int
    free: int
    total: int


def choose(gpus: int, given: Sequence[str], cuda_devices: int) -> list[str]:
    """One device name per lane: the given list as it stands, else ``cuda:0…``, else virtual lanes on the CPU.

    With fewer CUDA devices than lanes, lanes share devices in turn.
    """
    if given:
        return [normal(name) for name in given]
    if cuda_devices <= 0:
        return ["cpu"] * gpus
    return [f"cuda:{index % cuda_devices}" for index in range(gpus)]


def normal(name: str) -> str:
    """``0`` → ``cuda:0``, ``cuda`` → ``cuda:0``, others lower-cased; raises ``ValueError`` for what is no device."""
    text = name.strip().lower()
    if text.isascii() and text.isdigit():
        return f"cuda:{int(text)}"
    if text == "cuda":
        return "cuda:0"
    kind, _, index = text.partition(":")
    numbered = index.isascii() and index.isdigit()
    if kind not in {"cpu", "cuda", "xpu", "mps"} or (index and not numbered) or text.endswith(":"):
        raise ValueError(f"{name!r} is not a device; write cuda:0, cuda:1, … or cpu")
    return "cpu" if kind == "cpu" else text


def find(gpus: int, given: Sequence[str] = (), cpu: bool = False) -> list[str]:
    """``choose`` for this machine. Loads torch unless the answer is clear without it."""
    if given:
        return choose(gpus, given, 0)
    if cpu:
        return choose(gpus, (), 0)
    import torch  # noqa: PLC0415 (only when it must be asked)

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = choose(gpus, (), count)
    if count == 0:
        log.info("no CUDA device found: %d virtual lanes on the CPU", gpus)
    elif count < gpus:
        log.warning("%d lanes share %d CUDA device(s); name fewer GPUs or other devices to change that", gpus, count)
    return names


def memory(device: str) -> Memory:
    """How full ``device`` is, for ``cuda:N`` as its driver says, for the CPU as the kernel says."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415 (only when it must be asked)

        free, total = torch.cuda.mem_get_info(torch.device(device))
        return Memory(total - free, free, total)
    total, available = _meminfo()
    return Memory(resident(), available, total)


def full_name(device: str) -> str:
    """The device with its make, as clients show it: ``cuda:0 NVIDIA H200``, ``cpu``."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415 (only when it must be asked)

        return f"{device} {torch.cuda.get_device_name(torch.device(device))}"
    return device


def resident() -> int:
    """Bytes of RAM this process occupies; 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo() -> tuple[int, int]:
    """Total and available bytes of RAM."""
    found: dict[str, int] = {}
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    total = found.get("MemTotal", 0)
    return total, found.get("MemAvailable", total)
