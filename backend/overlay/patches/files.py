"""Output names: lanes that save under one prefix never get the same number.

ComfyUI's own savers count by adding to the number they get, which then is one that nobody else has. Custom nodes count
in every way: from the moment they ask until their node call ends, no other lane saves under their prefix.
Owns which numbers are given out but perhaps not on the disk yet. Names are plain ComfyUI's as long as one node saves
alone. Knows nothing of pictures, and of the outputs' folder only what ``get_save_image_path`` says.
"""

import collections
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backend.context import current_job, current_lane
from backend.lanes import Lane
from backend.overlay.claims import Claims
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.turns import Owner, Place, Turns

log = logging.getLogger("backend.overlay.files")

MAX_STEP: Final = 10_000
"""``counter + k`` beyond this is arithmetic, not the number of a k-th picture."""

ROOM: Final = 1_000
"""Numbers left to a node that counts by itself, where another cannot wait for its end."""
OWN: Final = frozenset({"nodes.py", "comfy_api", "comfy_api_nodes", "comfy_extras"})
"""Where ComfyUI's own savers are: they count with ``+`` and ``+=`` alone."""


@dataclass
class _Numbers:
    """The numbers of one place since it was last quiet."""

    given: dict[int, Owner] = field(default_factory=dict)
    active: dict[Owner, int] = field(default_factory=dict)
    """Node calls that may still count on, and the lowest number each has."""


class Reservations:
    """Numbers given out. A number stays taken until nobody who could run into it is active; thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.turns = Turns(self.lock, lambda: self.claims)
        self.claims = Claims(None)
        """What keeps the numbers of other processes apart from ours."""
        self._places: dict[Place, _Numbers] = {}

    def take(self, place: Place, owner: Owner, lowest: int) -> int:
        """The first number from ``lowest`` on that no other node call has; it is the owner's from now on."""
        with self.lock:
            numbers = self._places.setdefault(place, _Numbers())
            number = lowest
            while not self._free(place, numbers, number, owner):
                number += 1
            numbers.given[number] = owner
            numbers.active[owner] = min(number, numbers.active.get(owner, number))
            return number

    def free_from(self, place: Place, lowest: int) -> int:
        """The first number from ``lowest`` on that nobody has."""
        with self.lock:
            numbers = self._places.get(place)
            while numbers is not None and lowest in numbers.given:
                lowest += 1
            return lowest

    def release(self, ended: Callable[[Owner], bool]) -> None:
        """These node calls are over: what they saved is on the disk, what they did not save is free again."""
        with self.lock:
            self.turns.leave(ended)
            for place, numbers in list(self._places.items()):
                for owner in [owner for owner in numbers.active if ended(owner)]:
                    del numbers.active[owner]
                if not numbers.active:
                    for number in numbers.given:
                        self.claims.release(place, number)
                    del self._places[place]
                    continue
                # A call that still counts upwards cannot reach what lies below its own lowest number.
                floor = min(numbers.active.values())
                for number in [number for number in numbers.given if number < floor]:
                    del numbers.given[number]
                    self.claims.release(place, number)

    def beyond(self, place: Place, lowest: int) -> int:
        """A number that nobody will reach who counts by himself from one that was given."""
        with self.lock:
            numbers = self._places.get(place)
            return max(lowest, *(() if numbers is None else numbers.given), 0) + ROOM

    def _free(self, place: Place, numbers: _Numbers, number: int, owner: Owner) -> bool:
        """Whether the owner may have it; then no other process gets it either."""
        if number in numbers.given:
            return numbers.given[number] == owner
        return self.claims.claim(place, number)

    def __len__(self) -> int:
        with self.lock:
            return sum(len(numbers.given) for numbers in self._places.values())


class Counter(int):
    """A file number that counts on by itself: ``+ k`` is the k-th number after it that is free.

    Everything else about it is an ``int``'s; stored or sent, it is a plain one.
    """

    _next: "Callable[[int], Counter] | None" = None
    _after: "Counter | None" = None

    @classmethod
    def of(cls, number: int, following: "Callable[[int], Counter]") -> "Counter":
        """``number``, with ``following(n)`` giving the first free number from ``n`` on."""
        made = cls(number)
        made._next = following
        return made

    def __add__(self, steps: int) -> int:
        if type(steps) is not int or not 0 <= steps <= MAX_STEP or self._next is None:
            return int.__add__(self, steps)
        found = self
        for _ in range(steps):
            # Remembered, so that a caller who adds to the same number twice gets the same answer twice.
            if found._after is None:
                found._after = self._next(int(found) + 1)
            found = found._after
        return found

    __radd__ = __add__

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


_taken: Final = Reservations()
_ended: Final[collections.deque[Hashable]] = collections.deque(maxlen=256)
"""The latest node calls that are over: a thread that one of them left behind holds nothing any more."""


def apart_from_others(folder: Path) -> None:
    """Other processes write into this output folder, too: numbers are taken from them as well."""
    _taken.claims = Claims(folder)


def job_ended(lane: int) -> None:
    """Forget what node calls of this lane still hold: its job is over."""
    _taken.release(lambda owner: owner[0] == lane)


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """The one function that gives out file numbers, and the ends of a node call and of a job."""
    return [
        Patch(
            "folder_paths:get_save_image_path",
            _save_path,
            "lanes saving under one prefix would overwrite each other's files",
            params_start("filename_prefix", "output_dir", "image_width", "image_height"),
        ),
        Patch(
            "comfy_execution.utils:CurrentNodeContext.__exit__",
            _node_ended,
            "reserved file numbers, and the prefix that a custom node holds, end with the node call",
            params("self", "exc_type", "exc_val", "exc_tb"),
            required=False,
        ),
        Patch(
            "execution:PromptExecutor.execute",
            _job_ended,
            "no reserved file number outlives its job",
            params("self", "prompt", "prompt_id", "extra_data", "execute_outputs"),
        ),
    ]


def _job_ended(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            if (lane := current_lane()) is not None:
                job_ended(lane)

    return execute


def _save_path(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def get_save_image_path(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_code.co_filename  # noqa: SLF001 (who asks, without a frame that keeps itself alive)
        alone = not _comfyuis_own(caller, getattr(sys.modules.get("folder_paths"), "__file__", None))
        owner = _owner()
        # The folder is read under the lock: whoever gave a number back before has its file in there.
        with _taken.lock:
            while True:
                folder, filename, counter, *rest = original(*args, **kwargs)
                place = (os.path.normcase(Path(folder).resolve()), os.path.normcase(filename))
                stale, free = _enter(place, owner, alone)
                if not stale:
                    break
            lowest = counter if free else _taken.beyond(place, counter)
            given = _taken.free_from(place, lowest) if owner is None else _counter(place, owner, lowest)
        return (folder, filename, given, *rest)

    return get_save_image_path


def _enter(place: Place, owner: Owner | None, alone: bool) -> tuple[bool, bool]:
    """Wait for the place where that must be: whether to count anew then, and whether nobody else counts there."""
    if owner is None or not _running(owner):
        return False, _taken.turns.free(place, None if owner is None else owner[0])
    stale, free = _taken.turns.enter(place, owner, alone, _stop_if_interrupted)
    if not (stale or free):
        log.warning("%s: another GPU's node has this prefix for long: file numbers go on %d further", place[1], ROOM)
    return stale, free


def _running(owner: Owner) -> bool:
    """Whether this is a node call of a job that will end: the server's own code and left threads never wait."""
    _, job, call = owner
    return job is not None and call is not None and not any(call is ended for ended in tuple(_ended))


def _stop_if_interrupted() -> None:
    management = sys.modules.get("comfy.model_management")
    if management is not None:
        management.throw_exception_if_processing_interrupted()


@functools.cache
def _comfyuis_own(file: str, folder_paths: str | None) -> bool:
    """Whether this file is ComfyUI's own; custom nodes lie in another folder of the checkout or elsewhere."""
    if folder_paths is None:
        return False
    path, home = Path(file).resolve(), Path(folder_paths).resolve().parent
    return path.is_relative_to(home) and path.relative_to(home).parts[0] in OWN


def _counter(place: Place, owner: Owner, lowest: int) -> Counter:
    def following(number: int) -> Counter:
        return Counter.of(_taken.take(place, owner, number), following)

    return following(lowest)


def _owner() -> Owner | None:
    """The running node call; ``None`` outside every lane."""
    lane = current_lane()
    if lane is None:
        return None
    return lane, current_job(), _executing()


def _executing() -> Hashable:
    """Which node call of a job this is, as ComfyUI tells; imported late, since ComfyUI is there by then."""
    from comfy_execution.utils import get_executing_context  # type: ignore[import-not-found]  # noqa: PLC0415

    context: Hashable = get_executing_context()
    return context


def _node_ended(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def leave(self: Any, exc_type: Any, exc_val: Any, exc_tb: Any) -> Any:
        owner = _owner()
        if owner is not None:
            _ended.append(owner[2])
            if len(_taken) or len(_taken.turns):
                _taken.release(lambda each: each == owner)
        return original(self, exc_type, exc_val, exc_tb)

    leave.__name__ = "__exit__"
    return leave
