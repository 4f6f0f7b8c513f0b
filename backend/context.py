"""Which lane and which job the running code belongs to: the key under which process-wide things become per lane.

A ``ContextVar`` and not a thread-local, because thread pools and asyncio hand the context on and nothing else.
Knows nothing of queues, devices or ComfyUI.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_lane: Final[ContextVar[int | None]] = ContextVar("backend_lane", default=None)
_judged: Final[ContextVar[bool]] = ContextVar("backend_judged", default=False)
_job: Final[ContextVar[str | None]] = ContextVar("backend_job", default=None)


def current_lane() -> int | None:
    """Index of the lane this code runs for; ``None`` for the server itself and for requests without a GPU."""
    return _lane.get()


def current_job() -> str | None:
    """``prompt_id`` of the job this code runs for, if any."""
    return _job.get()


@contextmanager
def in_lane(lane: int | None) -> Iterator[None]:
    """Run the block for ``lane``; ``None`` says: for no lane."""
    token = _lane.set(lane)
    try:
        yield
    finally:
        _lane.reset(token)


@contextmanager
def only_judged() -> Iterator[None]:
    """What the block submits is judged and not queued."""
    token = _judged.set(True)
    try:
        yield
    finally:
        _judged.reset(token)


def judging() -> bool:
    """Whether submissions are only judged here."""
    return _judged.get()


@contextmanager
def in_job(prompt_id: str | None) -> Iterator[None]:
    """Run the block for the job ``prompt_id``."""
    token = _job.set(prompt_id)
    try:
        yield
    finally:
        _job.reset(token)


def work_on(prompt_id: str | None) -> None:
    """From here on this thread works on ``prompt_id``, until it says otherwise; for a worker's own thread."""
    _job.set(prompt_id)


class PerLane(Generic[T]):
    """One value per lane, and one for code that runs outside every lane; made on first use by ``make``."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int | None, T] = {}

    def get(self) -> T:
        """The value of the current lane."""
        return self.of(_lane.get())

    def of(self, lane: int | None) -> T:
        """The value of ``lane``."""
        try:
            return self._values[lane]
        except KeyError:
            # setdefault is one step under the interpreter lock: two first users get the same value.
            return self._values.setdefault(lane, self._make())

    def set(self, value: T) -> None:
        """Replace the value of the current lane."""
        self._values[_lane.get()] = value

    def put(self, lane: int | None, value: T) -> None:
        """Replace the value of ``lane``."""
        self._values[lane] = value

    def items(self) -> list[tuple[int | None, T]]:
        """A snapshot of the values made so far."""
        return list(self._values.items())
