"""Around every call of a model: what it took of its thread is counted, and where that helps one lane at a time issues.

Owns the issue lock and its windows; what is decided at the end of one is in ``backend.issue_lock``. Never waits long
for the lock: a call that does not get it goes on without.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from backend.issue_lock import WINDOW, Decision, Mode, Window, after
from backend.issuing import Call
from backend.lanes import Lane

log = logging.getLogger("backend.model_calls")

PATIENCE: Final = 1.0
"""Seconds to wait for the lock. Issuing a step takes far less; whoever holds it longer is not issuing."""


class Device(Protocol):
    """Can be asked whether a lane's device was behind its host."""

    def begin(self) -> Any:
        """A call begins; what is given is handed to ``end``."""

    def end(self, began: Any, wall: float) -> None:
        """Everything was issued, in ``wall`` seconds."""


class ModelCalls:
    """The model calls of all lanes of one process; thread-safe."""

    def __init__(
        self, lanes: Sequence[Lane], mode: Mode = "off", clock: Callable[[], float] = time.monotonic,
        thread_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._lanes = {lane.index: lane for lane in lanes}
        self._mode = mode
        self._clock = clock
        self._thread_clock = thread_clock
        self._issue = threading.Lock()
        self._inside = threading.local()
        self._windows = threading.Lock()
        self._began = clock()
        self._counted: dict[int, dict[Hashable, int]] = {}
        self.decision = Decision("on" if mode == "on" else "off", self._began)

    @contextmanager
    def around(
        self, lane: int, run: Hashable, what: Hashable, resident: bool = False, device: Device | None = None
    ) -> Iterator[None]:
        """Run the block as a model call of ``lane``: a step of ``run`` that calls ``what``.

        ``resident``: the model is wholly on the lane's device, so that the call issues and does nothing else. A call
        inside another one belongs to that.
        """
        if getattr(self._inside, "call", False):
            yield
            return
        self._inside.call = True
        lockable = resident and (self._mode == "on" or self._lanes[lane].device != "cpu")
        wanted = self._clock()
        locked = lockable and self.decision.held and self._issue.acquire(timeout=PATIENCE)
        mark = None if device is None else device.begin()
        began, host = self._clock(), self._thread_clock()
        try:
            yield
        finally:
            wall, host = self._clock() - began, self._thread_clock() - host
            if locked:
                self._issue.release()
            if device is not None:
                device.end(mark, wall)
            self._inside.call = False
            self._lanes[lane].issuing.called(Call(run, began, wall, host, began - wanted))
            if self._mode == "auto" and lockable:
                self._count(lane, what, began + wall)

    def _count(self, lane: int, what: Hashable, now: float) -> None:
        with self._windows:
            counts = self._counted.setdefault(lane, {})
            counts[what] = counts.get(what, 0) + 1
            seconds = now - self._began
            if seconds < WINDOW:
                return
            counted, self._counted, self._began = self._counted, {}, now
            if seconds > 2 * WINDOW:
                return  # nobody called for a while: a rate over that says nothing
            before = self.decision
            self.decision = after(before, self._window(counted, seconds), now)
            if before.phase != self.decision.phase:
                log.info("issue lock: %s, was %s", self.decision.phase, before.phase)

    def _window(self, counted: dict[int, dict[Hashable, int]], seconds: float) -> Window:
        same = {lane: next(iter(each.items())) for lane, each in counted.items() if len(each) == 1}
        views = [view for lane in same if (view := self._lanes[lane].issuing.view()).ratio is not None]
        demand = sum(view.ratio or 0.0 for view in views if (view.ahead or 0.0) < 0.5)
        waited = sum(view.waited or 0.0 for view in views) / len(views) if views else 0.0
        return Window(seconds, same, demand, waited)
