"""``[schedule]``, as ``config.py`` has it: the line at the front door, and where its jobs may run.

Pure. Owns the settings, and the two small languages in them: pins and shares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gateway.schedule.terms import Rules
from gateway.schedule.workflow import Workflow
from gateway.spec import Count, Flag, Seconds, Text


@dataclass(frozen=True)
class Schedule:
    """``[schedule]``: where jobs of the front door wait, and which GPU gets which; needs ``[jobs] journal``."""

    enabled: Flag = True
    """false: a job of the front door goes at once to the GPU with the fewest."""
    depth: Count = 2
    """Jobs on a GPU, the running one included, from which on others wait at the front door."""
    patience: Seconds = 120.0
    """Seconds for which others may be let past the first in the line, so that fewer models are loaded."""
    ageing: Seconds = 60.0
    """Seconds of waiting that count as one step of priority."""
    pending: Count = 10_000
    """Jobs that may wait at the front door in all; 429 above."""
    pending_client: Count = 2_000
    """Jobs of one client that may wait there; 429 above."""
    pending_gpu: Count = 2_000
    """Jobs that may wait on one GPU; 429 above, on its own port."""
    shares: tuple[Text, ...] = ()
    """Shares of GPU time other than 1, by key or client_id: "alice = 2"."""
    pins: tuple[Text, ...] = ()
    """GPUs of a model or a workflow class, * stands for anything: "flux* = 2, 3"."""

    def rules(self) -> Rules:
        """As the scheduler takes them; raises ``ValueError`` with a line for the user."""
        return Rules(
            depth=self.depth,
            patience=self.patience,
            ageing=self.ageing,
            most=self.pending,
            most_of_client=self.pending_client,
            most_of_lane=self.pending_gpu + 1,
            shares=read_shares(self.shares),
        )


@dataclass(frozen=True)
class Pin:
    """What matches ``pattern``, a model's name or a workflow's class, runs on these GPUs alone."""

    pattern: str
    gpus: frozenset[int]

    def fits(self, workflow: Workflow) -> bool:
        """Whether it concerns such jobs."""
        names = (workflow.kind, *workflow.models)
        return any(fnmatchcase(name, self.pattern) for name in names)


def pinned(pins: Iterable[Pin], workflow: Workflow) -> frozenset[int] | None:
    """GPUs that all fitting pins allow, or, where they contradict each other, the first one's; ``None``: any."""
    allowed: frozenset[int] | None = None
    for pin in pins:
        if pin.fits(workflow):
            both = pin.gpus if allowed is None else allowed & pin.gpus
            allowed = both or allowed
    return allowed


def read_pins(lines: Iterable[str], gpus: int) -> list[Pin]:
    """``"flux* = 2, 3"``; raises ``ValueError`` with a line for the user."""
    pins = []
    for line in lines:
        pattern, value = _sides(line, "flux* = 2, 3")
        named = [part.strip() for part in value.split(",")]
        for name in named:
            if not (name.isascii() and name.isdigit() and int(name) < gpus):
                raise ValueError(f"{line!r} names GPU {name or 'nothing'}; there are 0 to {gpus - 1}")
        pins.append(Pin(pattern, frozenset(map(int, named))))
    return pins


def read_shares(lines: Iterable[str]) -> Mapping[str, float]:
    """``"alice = 2"``; raises ``ValueError`` with a line for the user."""
    shares: dict[str, float] = {}
    for line in lines:
        name, value = _sides(line, "alice = 2")
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not 0.001 <= share <= 1000:
            raise ValueError(f"{line!r}: a share is a number from 0.001 to 1000")
        if name in shares:
            raise ValueError(f"{line!r}: {name} is named twice")
        shares[name] = share
    return shares


def _sides(line: str, example: str) -> tuple[str, str]:
    name, equals, value = line.rpartition("=")
    if not equals or not name.strip():
        raise ValueError(f"{line!r} is not of the form {example!r}")
    return name.strip(), value.strip()
