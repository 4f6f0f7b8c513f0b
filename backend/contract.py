"""The wire contract between gateway and backend: header, routes beyond ComfyUI's own, ready line, exit codes.

Pure. Both bodies import it; the gateway keeps its own copy of what it needs and a test compares the two.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from backend.faults import Fault

GPU_HEADER: Final = "X-TARGET-GPU"
RETRY_AFTER: Final = 5
"""Seconds that a client is told to wait when its GPU takes no jobs: about what a new process needs."""
READY_PREFIX: Final = "BACKEND-READY "
"""A backend prints this, then one JSON object (see ``Ready``), on one line of stdout once it can take jobs."""

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
"""Bad arguments or a ComfyUI that does not fit: starting again will not help."""
EXIT_PORT_IN_USE: Final = 3
EXIT_DEVICE_FAULT: Final = 4
"""A device fault has poisoned the process: start again at once."""


class BadGpuHeader(ValueError):  # noqa: N818 (the name says what the client sent)
    """The header is malformed or names a GPU that is not there; answered with 400, never with GPU 0."""


def parse_gpu(values: list[str], gpus: int) -> int | None:
    """Lane index named by the request's ``X-TARGET-GPU`` values; ``None`` when there is none.

    Raises ``BadGpuHeader`` for anything but exactly one plain decimal in ``0 … gpus-1``.
    """
    if not values:
        return None
    if len(values) > 1:
        raise BadGpuHeader(f"{GPU_HEADER} was sent {len(values)} times; send it once")
    text = values[0].strip(" \t")
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise BadGpuHeader(f"{GPU_HEADER} is {text[:40]!r}; it must be a whole number from 0 to {gpus - 1}")
    gpu = int(text)
    if gpu >= gpus:
        raise BadGpuHeader(f"{GPU_HEADER} is {gpu}; this backend has GPUs 0 to {gpus - 1}")
    return gpu


def queue_line(
    gpu: int, running: int, waiting: int, fault: Fault | None, models: Sequence[str] | None = None
) -> dict[str, object]:
    """A lane's entry in ``GET /debug/queues``.

    ``faulted``, if there, says why it takes no jobs; ``models``, if there, which model files it has built models of.
    """
    line: dict[str, object] = {"gpu_id": gpu, "queued": waiting, "running": running}
    if models is not None:
        line["models"] = sorted(models)
    return line if fault is None else {**line, "faulted": fault.reason}


@dataclass(frozen=True)
class Ready:
    """What the ready line says: where the backend listens, what it is, and one device name per lane."""

    url: str
    body: str  # "embedded 0.1.0" or "comfyui 0.3.64"
    devices: list[str]
    pid: int

    def line(self) -> str:
        return READY_PREFIX + json.dumps(asdict(self))
