"""Garbage collection and the return of cached device memory: done for all lanes at once, and not once per lane.

Owns how often. Both stop every lane: a collection holds the interpreter, and ``empty_cache`` makes every GPU wait and
throws all their caches away. What a user asked for, or an out-of-memory error, is never put off. What the C library
keeps of freed memory, for each thread, goes back to the system with each collection.
"""

import functools
import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from backend.context import current_lane, in_job, in_lane
from backend.lanes import Lane
from backend.overlay.patch import Patch, params
from backend.overlay.weights import pages

MANAGEMENT: Final = "comfy.model_management"
SECONDS: Final = 10.0
"""ComfyUI's own pause between two collections of one worker."""


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """The worker's collection, the emptying of device caches, and what makes both urgent."""
    gpus = {lane.device for lane in lanes if lane.device != "cpu"}
    ration = Ration()
    return [
        Patch(
            f"{MANAGEMENT}:soft_empty_cache",
            functools.partial(_soft_empty_cache, ration, Throttle(SECONDS) if len(gpus) > 1 else None),
            f"it stalls every GPU and throws their caches away: at most once in {SECONDS:.0f} s from lanes, "
            "unless a user or an out-of-memory error asks",
            params("force"),
        ),
        Patch(
            f"{MANAGEMENT}:unload_all_models",
            functools.partial(_unload_all, ration),
            "what is freed because a user or an out-of-memory error asks is given back at once",
            params(),
        ),
        Patch(
            "main:gc",
            functools.partial(_collector, ration, SECONDS if len(lanes) > 1 else 0.0),
            f"a collection stops all lanes: once in {SECONDS:.0f} s for all of them, not for each; what the C library "
            "keeps of freed memory goes back to the system with it",
            _is_gc,
            required=False,
            rebind=False,
        ),
    ]


class Throttle:
    """Lets one call through per so many seconds, whoever asks; thread-safe."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: float | None = None
        self._lock = threading.Lock()

    def allows(self, now: float) -> bool:
        """Whether the call at ``now`` (seconds of one monotonic clock) goes through."""
        with self._lock:
            if self._last is not None and now - self._last < self._seconds:
                return False
            self._last = now
            return True

    def rest(self, now: float) -> float:
        """Seconds from ``now`` until the next call is let through."""
        with self._lock:
            return 0.0 if self._last is None else max(self._last + self._seconds - now, 0.0)


class Ration:
    """Lanes that have just been told to free everything: what they do next to that end is not put off."""

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._collect: set[int] = set()
        self._empty: set[int] = set()

    def freed(self, lane: int) -> None:
        """Everything of ``lane`` was unloaded; its worker collects next, and then empties the cache."""
        self._collect.add(lane)
        self._empty.add(lane)

    def collects(self, lane: int) -> bool:
        """Whether this collection is the one that follows; true once."""
        urgent = lane in self._collect
        self._collect.discard(lane)
        return urgent

    def empties(self, lane: int) -> bool:
        """Whether this emptying is part of it, or the one that follows; that one ends it."""
        if lane in self._inside:
            return True
        urgent = lane in self._empty
        if lane not in self._collect:
            self._empty.discard(lane)
        return urgent

    def begin(self, lane: int) -> None:
        self._inside.add(lane)

    def end(self, lane: int) -> None:
        self._inside.discard(lane)


class Collector:
    """Stands for the module ``gc`` in ComfyUI's ``main``: lanes share one collection in so many ``seconds``.

    ``after`` is called after each, ``own`` in each lane's thread, whether it collects or not. A collection that is put
    off takes place all the same, when its time has come: a lane that is done may not ask again.
    """

    def __init__(
        self, ration: Ration, module: Any, later: Callable[[float, Callable[[], object]], object],
        clock: Callable[[], float] = time.monotonic, seconds: float = SECONDS,
        after: Callable[[], object] = pages.trim, own: Callable[[], object] = pages.trim_own,
    ) -> None:
        self._ration = ration
        self._module = module
        self._later = later
        self._clock = clock
        self._throttle = Throttle(seconds)
        self._after = after
        self._own = own
        self._owed = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def collect(self, *args: Any) -> int:
        """Collect now, or soon with the others; the number of objects found, 0 when it is put off."""
        lane = current_lane()
        if lane is None or self._ration.collects(lane) or self._throttle.allows(self._clock()):
            found = self._collect(*args)
        else:
            found = 0
            if self._owed.acquire(blocking=False):
                self._later(self._throttle.rest(self._clock()), self._pay)
        self._own()
        return found

    def _pay(self) -> None:
        self._owed.release()
        self._throttle.allows(self._clock())
        self._collect()

    def _collect(self, *args: Any) -> int:
        found = int(self._module.collect(*args))
        self._after()
        return found


def _in_a_while(seconds: float, call: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.name = "collection for all lanes"
    with in_lane(None), in_job(None):
        timer.start()


def _is_gc(original: Any) -> str | None:
    return None if original is gc else f"expected the module gc, found {type(original).__name__}"


def _collector(ration: Ration, seconds: float, original: Any) -> Any:
    return Collector(ration, original, _in_a_while, seconds=seconds)


def _unload_all(ration: Ration, original: Callable[[], None]) -> Any:
    @functools.wraps(original)
    def unload_all_models() -> None:
        lane = current_lane()
        if lane is None:
            original()
            return
        ration.begin(lane)
        try:
            original()
        finally:
            ration.end(lane)
            ration.freed(lane)

    return unload_all_models


def _soft_empty_cache(ration: Ration, throttle: Throttle | None, original: Callable[..., None]) -> Any:
    @functools.wraps(original)
    def soft_empty_cache(force: bool = False) -> None:
        lane = current_lane()
        free = throttle is None or force or lane is None or ration.empties(lane)
        if free or (throttle is not None and throttle.allows(time.monotonic())):
            original(force)

    return soft_empty_cache
