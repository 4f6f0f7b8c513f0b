"""``mode = "auto"``: one backend process for all GPUs or one for each, chosen at the start by what was measured before.

Owns the rule, its words, and a note in the journal's folder. Backends say how much of Python's lock their lanes ask
for; the rule knows when one process is too few for that. Must never start or end a backend.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from gateway.config import Config
from gateway.fleet.estate import Estate, Life
from gateway.fleet.member import Member
from gateway.layout import layout
from gateway.opening import StartError, check_free
from gateway.reload import Read

log = logging.getLogger("gateway.auto")

FINE: Final = 0.5
"""Sum of h/T over all lanes up to which one process is as good; the backend's verdict has the same bounds."""
BOUND: Final = 0.8
"""From here on the lanes of one process wait for each other."""
ENOUGH: Final = 60
"""Seconds with models at work that make a measurement."""
LOOK: Final = 1.0
"""Seconds between two looks at what the backends have said."""
SAVE: Final = 60.0
"""Seconds between two notes; the last one is written at the end."""

SINGLE, PER_GPU = "single", "per-gpu"
ONE, EACH = "one process for all GPUs", "one process for each GPU"
RAN = "in which models ran"


@dataclass(frozen=True)
class Measured:
    """What one run of the gateway saw. ``busy``: seconds in which models ran; ``bound``, ``fine``: of these."""

    mode: str
    """In which mode that was."""
    gpus: int
    busy: int = 0
    bound: int = 0
    """Seconds with a demand of ``BOUND`` and more."""
    fine: int = 0
    """Seconds with a demand below ``FINE``."""
    memory: int = 0
    """Bytes of RAM that the largest process had at most; 0: not known."""

    def after(self, demand: float) -> Self:
        """With one more second of models at work."""
        return replace(
            self, busy=self.busy + 1, bound=self.bound + (demand >= BOUND), fine=self.fine + (demand < FINE)
        )


@dataclass(frozen=True)
class Choice:
    """``mode``, and ``why`` in one sentence for the user."""

    mode: str
    why: str


def choose(seen: Measured | None, gpus: int, memory: int) -> Choice:
    """The mode for a start with so many GPUs, on a machine with ``memory`` bytes (0: not known).

    There is a gap between the two bounds, so that a mode is not left for its own effect or for one odd hour.
    """
    if seen is None or seen.busy < ENOUGH or seen.gpus != gpus:
        return Choice(SINGLE, f"{ONE}: no run with so many GPUs has measured yet how much Python its models need")
    bound, fine = seen.bound / seen.busy, seen.fine / seen.busy
    if seen.mode == PER_GPU:
        if fine > 0.5:
            return Choice(SINGLE, f"{ONE}: in the last run it would have been as good {fine:.0%} of the time {RAN}")
        would = f"in the last run the lanes of one would have waited for each other {1 - fine:.0%} of the time {RAN}"
        return Choice(PER_GPU, f"{EACH}: {would}")
    waited = f"in the last run the lanes of one waited for Python's lock {bound:.0%} of the time {RAN}"
    if bound < 0.5:
        return Choice(SINGLE, f"{ONE}: {waited}")
    if memory and seen.memory * gpus > memory:
        sizes = f"{gpus} as large as that one ({seen.memory / 2**30:.1f} GiB) do not fit into {memory / 2**30:.1f} GiB"
        return Choice(SINGLE, f"{ONE}: {waited}, but {sizes}")
    return Choice(PER_GPU, f"{EACH}: {waited}")


def demand_of(members: Iterable[Member]) -> float | None:
    """Threads' worth of issuing that all lanes ask for at once; ``None`` when no backend can tell.

    One that cannot is taken to be as the others are.
    """
    told = [(member.demand, member.gpus) for member in members if member.up]
    known = [(demand, gpus) for demand, gpus in told if demand is not None]
    if not known:
        return None
    return sum(demand for demand, _ in known) / sum(gpus for _, gpus in known) * sum(gpus for _, gpus in told)


class Automatic:
    """The choice of one start, and the measuring for the next one."""

    def __init__(self, folder: Path, choice: Choice, gpus: int) -> None:
        self._folder = folder
        self.choice: Final = choice
        self.seen = Measured(choice.mode, gpus)
        self._members: tuple[Member, ...] = ()
        self._pids: Callable[[], Iterable[int]] = tuple
        self._calls = 0
        self._told = False

    @classmethod
    def of(cls, config: Config, env: Mapping[str, str]) -> "Automatic | None":
        """The choice for this configuration; ``None`` where there is none to make, or nowhere to keep a note."""
        backend, journal = config.backend, config.jobs.journal
        if backend.mode != "auto" or config.further or config.gpus < 2 or not (backend.start and journal):
            return None
        if env.get("COMFY_MULTI_GPU_SCHED", "").strip() == "0":
            return None
        folder = Path(journal)
        if (life := left(folder, config.gpus)) is not None:
            mode = PER_GPU if "--instance" in life.argv else SINGLE
            said = EACH if mode == PER_GPU else ONE
            return cls(folder, Choice(mode, f"{said}, as what an earlier gateway has left at work"), config.gpus)
        choice = choose(read(folder), config.gpus, machine_memory())
        if choice.mode == PER_GPU and (problem := unfit(config)):
            choice = Choice(SINGLE, f"{ONE}, though one for each would do better: {problem}")
        return cls(folder, choice, config.gpus)

    def settled(self, config: Config) -> Config:
        """The configuration with the mode that was chosen: "auto" stands for one process that gives advice."""
        return per_gpu(config) if self.choice.mode == PER_GPU and config.backend.mode == "auto" else config

    def reading(self, read: Read) -> Read:
        """The same for a reload: what was chosen at the start stays."""

        def settled() -> tuple[Config, Sequence[object]]:
            config, warnings = read()
            return self.settled(config), warnings

        return settled

    def watch(self, members: Iterable[Member], pids: Callable[[], Iterable[int]]) -> None:
        """Measure these; ``pids``: the backends that run now. Comes before ``run``."""
        self._members, self._pids = tuple(members), pids

    async def run(self) -> None:
        """Measure until cancelled."""
        saved = time.monotonic()
        try:
            while True:
                await asyncio.sleep(LOOK)
                self.look()
                if time.monotonic() - saved >= SAVE:
                    saved = time.monotonic()
                    self.save()
        finally:
            self.save()

    def look(self) -> None:
        """One second has passed: count it if models have run meanwhile, and what it takes to tell is known."""
        calls, demand = sum(member.calls for member in self._members), demand_of(self._members)
        if calls != self._calls and demand is not None:
            self.seen = self.seen.after(demand)
        self._calls = calls

    def save(self) -> None:
        """Note what was measured, once it is enough; says in the log when the next start will choose otherwise."""
        self.seen = replace(self.seen, memory=max([self.seen.memory, *map(most_memory, self._pids())]))
        if self.seen.busy < ENOUGH:
            return
        try:
            fresh = note(self._folder).with_suffix(".new")
            fresh.write_text(json.dumps(asdict(self.seen)), encoding="utf-8")
            fresh.replace(note(self._folder))
        except OSError as error:
            log.warning('mode = "auto": what was measured cannot be noted: %s', error)
        following = choose(self.seen, self.seen.gpus, machine_memory())
        if following.mode != self.choice.mode and not self._told:
            self._told = True
            log.warning('mode = "auto": the next start will take %s', following.why)


def per_gpu(config: Config) -> Config:
    """The configuration with one process for each GPU."""
    return replace(config, backend=replace(config.backend, mode=PER_GPU))


def unfit(config: Config) -> str:
    """Why there cannot be one process for each GPU; empty when there can."""
    own = {config.listen.front_port, *config.listen.gpu_ports}
    for place in layout(per_gpu(config)):
        if urlsplit(place.backend.url).port in own:
            return f"the process of GPU {place.first} would listen on {place.backend.url}, which is in [listen]"
        try:
            check_free(place.backend.url)
        except StartError as error:
            return str(error)
    return ""


def left(folder: Path, gpus: int) -> Life | None:
    """A backend that an earlier gateway has left at work."""
    return next((life for index in range(gpus) if (life := Estate(folder, index).read()) is not None), None)


def note(folder: Path) -> Path:
    """Where it is written what the last run has measured."""
    return folder / "issuing.json"


def read(folder: Path) -> Measured | None:
    """What the last run has measured, if that is noted and can be read."""
    try:
        found = Measured(**json.loads(note(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    numbers = (found.gpus, found.busy, found.bound, found.fine, found.memory)
    return found if all(isinstance(number, int) and number >= 0 for number in numbers) else None


def most_memory(pid: int) -> int:
    """Bytes of RAM that a process has had at most; 0 when that cannot be seen."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def machine_memory() -> int:
    """Bytes of RAM that this process and its children may use: the machine's, or its container's; 0: not known."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").partition("::")[2].strip()
        allowed = Path(f"/sys/fs/cgroup{group}/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return there
    return min(there, int(allowed)) if allowed.isdigit() else there
