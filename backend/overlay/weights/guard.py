"""Jobs that write shared weights in place: noticed when they end, put right, and kept apart from then on.

A custom node may change a model's weights in host memory past ComfyUI's patches. All lanes look at that memory, so
the bytes are brought back, the lanes that used the file forget what they made of it, and the node packs that may have
done it work on copies of their own, as in plain ComfyUI, as long as the process lives. Knows no ComfyUI name.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.overlay.weights import modules
from backend.overlay.weights.loading import apart
from backend.overlay.weights.store import Store

log = logging.getLogger("backend.overlay")

PAUSE: Final = 60.0
"""Seconds between two looks after jobs without custom nodes."""
SHARE: Final = 0.01
"""Part of the time that those looks may take."""


@dataclass(frozen=True)
class Worker:
    """A job, the lane it is on, and the custom node packs in its workflow."""

    lane: int
    prompt_id: str
    packs: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """Masters of these files were written while these jobs ran."""

    paths: tuple[str, ...]
    suspects: tuple[Worker, ...]
    """Jobs whose nodes may have done it: with custom nodes if there is one, else all that ran."""
    lanes: tuple[int, ...]
    """Lanes with models over these files: what they have computed since may be wrong."""

    def text(self) -> str:
        """For the log: what happened, whose doing it is, what has been done."""
        names = ", ".join(Path(path).name for path in self.paths)
        jobs = ", ".join(f"{job.prompt_id} on GPU {job.lane}" for job in self.suspects)
        packs = sorted(set().union(*(job.packs for job in self.suspects)))
        who = f"custom nodes of {', '.join(packs)}" if packs else "ComfyUI's own nodes"
        then = " Jobs with these packs load copies of their own from now on." if packs else ""
        gpus = ", ".join(str(lane) for lane in self.lanes) or "none"
        return (
            f"weights that all GPUs share were written in place ({names}) while this ran: {jobs}; likely by {who}. "
            f"They are as in the file again; what GPU {gpus} made of them is forgotten, and pictures computed there "
            f"meanwhile may be wrong.{then} docs/memory.md says more."
        )


class Guard:
    """Watches the jobs of all lanes; ``forget`` is told each lane that must drop its models and kept outputs."""

    def __init__(
        self, store: Store, forget: Callable[[int], None] = lambda lane: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forget = forget
        self._clock = clock
        self._next = clock() + PAUSE
        self._store = store
        self._lock = threading.Lock()
        self._running: dict[int, Worker] = {}
        self._apart: set[str] = set()
        self._told = False

    @property
    def packs(self) -> frozenset[str]:
        """The packs whose jobs work on copies of their own."""
        with self._lock:
            return frozenset(self._apart)

    @contextlib.contextmanager
    def job(self, lane: int, prompt_id: str, packs: frozenset[str]) -> Iterator[None]:
        """Run the block as this job."""
        worker = Worker(lane, prompt_id, packs)
        with self._lock:
            self._running[lane] = worker
            own = bool(packs & self._apart)
        try:
            if not own:
                yield
                return
            for module, name in self._store.places(lane):
                modules.own(module, name)
            with apart():
                yield
        finally:
            self._look(worker)

    def _look(self, ended: Worker) -> None:
        with self._lock:
            self._running.pop(ended.lane, None)
            others = list(self._running.values())
        # Looking costs some 17 ms per GiB. ComfyUI's own nodes change weights in ways that are followed: whether all
        # of them do is looked at now and then.
        begin = self._clock()
        if not ended.packs and begin < self._next:
            return
        try:
            paths = self._store.written()
            now = self._clock()
            self._next = now + max(PAUSE, (now - begin) / SHARE)
        except OSError as error:
            if not self._told:
                self._told = True
                log.warning("weights: cannot see whether they were written: %s", error)
            return
        if paths:
            self._found(paths, [ended, *others])

    def _found(self, paths: list[str], workers: list[Worker]) -> None:
        suspects = tuple(worker for worker in workers if worker.packs) or tuple(workers)
        with self._lock:
            for worker in suspects:
                self._apart |= worker.packs
        lanes = tuple(sorted(self._store.lanes_over(paths) | {worker.lane for worker in suspects}))
        for worker in suspects:
            self._store.ledgers.of(worker.lane).wrote()
        log.warning("%s", Finding(tuple(paths), suspects, lanes).text())
        for lane in lanes:
            self.forget(lane)
