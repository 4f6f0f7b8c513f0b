"""What each lane draws random numbers from: its own default generators of torch, numpy and ``random``.

Owns those states and whose they are. A lane's seed goes to the process-wide generators, too: operators that cannot be
given a generator draw from those, and with one job at a time they draw what plain ComfyUI's do.
The names through which code reaches them are in ``randomness`` and ``host_randomness``.
"""

import random
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from backend.context import current_job, current_lane
from backend.lanes import Lane

PROCESS: Final[torch.Generator] = torch.default_generator


class Draws:
    """What one lane draws from: torch's CPU and CUDA generators, numpy's legacy state, ``random``'s."""

    def __init__(self, device: str, shared: bool) -> None:
        self.device = torch.device(device)
        self._shared = shared
        self._private: torch.Generator | None = None
        # As the process-wide ones at start: seeded by the operating system.
        self.cpu = torch.Generator()
        self.cpu.seed()
        self.numpy = np.random.RandomState()
        self.python = random.Random()  # noqa: S311 (it stands in for the module of that name)

    def cuda(self) -> torch.Generator | None:
        """The generator of this lane's GPU; a private one where several lanes share the GPU."""
        if self.device.type != "cuda":
            return None
        if self._shared:
            if self._private is None:
                self._private = torch.Generator(self.device)
                self._private.seed()
            return self._private
        return self._of_gpu()

    def for_device(self, device: torch.device) -> torch.Generator | None:
        """What to draw from on ``device``; ``None`` where torch's own choice is right."""
        if device.type == "cpu":
            return self.cpu
        if self._shared and device.type == "cuda" and device.index in {None, self.device.index}:
            return self.cuda()
        return None

    def is_own(self, device: Any) -> bool:
        """Whether ``device``, as torch's functions take it, means this lane's GPU."""
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        return found.type == self.device.type and found.index in {None, self.device.index}

    def seed(self, seed: int) -> torch.Generator:
        """As ``torch.manual_seed``, of GPUs for this lane's alone."""
        self.seed_cpu(seed)
        self.seed_cuda(seed)
        return self.cpu

    def seed_cpu(self, seed: int) -> torch.Generator:
        """Seed the lane's generator on the CPU, and the process's."""
        PROCESS.manual_seed(seed)
        return self.cpu.manual_seed(seed)

    def set_cpu_state(self, state: torch.Tensor) -> None:
        """Put the lane's generator on the CPU, and the process's, where ``state`` was taken."""
        self.cpu.set_state(state)
        PROCESS.set_state(state)

    def seed_cuda(self, seed: int) -> None:
        """Seed this lane's GPU: where lanes share it, the lane's generator and the GPU's."""
        if (cuda := self.cuda()) is not None:
            cuda.manual_seed(seed)
            if self._shared:
                self._of_gpu().manual_seed(seed)

    def set_cuda_state(self, state: torch.Tensor) -> None:
        """Put what ``seed_cuda`` seeds where ``state`` was taken."""
        if (cuda := self.cuda()) is not None:
            cuda.set_state(state)
            if self._shared:
                self._of_gpu().set_state(state)

    def _of_gpu(self) -> torch.Generator:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it so
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        generator: torch.Generator = torch.cuda.default_generators[index]
        return generator


class LaneDraws:
    """The state of each lane's jobs, apart from that of requests which merely name the lane."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        devices = [lane.device for lane in lanes]
        self._lanes = {lane.index: (lane.device, devices.count(lane.device) > 1) for lane in lanes}
        self._made: dict[tuple[int, bool], Draws] = {}

    def current(self) -> Draws | None:
        """The state of the running code; ``None`` outside every lane."""
        lane = current_lane()
        if lane is None:
            return None
        key = (lane, current_job() is None)
        found = self._made.get(key)
        if found is None:
            found = self._made.setdefault(key, Draws(*self._lanes.get(lane, ("cpu", False))))
        return found
