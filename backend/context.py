"""Which lane and which job the running code belongs to: the key under which process-wide things become per lane.

A ``ContextVar`` and not a thread-local, because thread pools and asyncio hand the context on and nothing else.
Knows nothing of queues, devices or ComfyUI.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_lane: Final[ContextVar[int | None]] = ContextVar("backend_lane", default=None)
_judged: Final[ContextVar[bool]] = ContextVar("backend_judged", default=False)
_job: Final[ContextVar[str | None]] = ContextVar("backend_job", default=None)
_handed_on: Final[ContextVar[bool]] = ContextVar("backend_handed_on", default=False)

_running: Final[dict[int, str]] = {}
"""The job each lane is at."""


def current_lane() -> int | None:
    """Index of the lane this code runs for; ``None`` for the server itself and for requests without a GPU."""
    return _lane.get()


def current_job() -> str | None:
    """``prompt_id`` of the job this code runs for, if any.

    A thread may outlive the job that started it; from then on it works for whichever job its lane runs.
    """
    job, lane = _job.get(), _lane.get()
    return job if job is None or lane is None or not _handed_on.get() else _running.get(lane, job)


def outlived() -> bool:
    """Whether the job that started this thread is over and its lane is at another."""
    return _handed_on.get() and current_job() != _job.get()


def handed_on() -> Context:
    """A copy of the running code's context for a thread that may live on when the job is over."""
    context = copy_context()
    context.run(_handed_on.set, True)
    return context


def in_sight() -> tuple[int | None, str | None]:
    """Lane and job whose state this code sees: its own, or those of the only lane that runs a job just now.

    The latter for code that was never given a lane, such as a thread that a custom node started at import.
    """
    unknown = -1
    lane = _lane.get(unknown)
    if lane != unknown:
        return lane, current_job()
    busy = list(_running.items())
    return busy[0] if len(busy) == 1 else (None, None)


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
    token, lane = _job.set(prompt_id), _lane.get()
    if lane is not None and prompt_id is not None:
        _running[lane] = prompt_id
    try:
        yield
    finally:
        _job.reset(token)
        if lane is not None and prompt_id is not None and _running.get(lane) == prompt_id:
            _running.pop(lane, None)


def work_on(prompt_id: str | None) -> None:
    """From here on this thread works on ``prompt_id``, until it says otherwise; for a worker's own thread."""
    _job.set(prompt_id)
    lane = _lane.get()
    if lane is None:
        return
    if prompt_id is None:
        _running.pop(lane, None)
    else:
        _running[lane] = prompt_id


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
