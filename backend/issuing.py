"""What a lane's thread spends on issuing a model's step (h) of what the step takes (T), measured around model calls.

Owns the sums of one lane, over all time and of late; times come in as parameters, seconds of one monotonic clock.
Knows nothing of models, devices or what follows from the ratio.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

FADE: Final = 0.98
"""What an earlier step counts beside the one after it: about the last fifty make the ratio."""
ENOUGH: Final = 10
"""Steps before there is a ratio."""
LONGEST_PAUSE: Final = 1.0
"""Seconds between a call's end and the next one's start that are still the same step, whatever the call took."""


@dataclass(frozen=True)
class Call:
    """One model call, in seconds."""

    run: Hashable
    """What it belongs to; only calls of one run follow each other as its steps."""
    began: float
    wall: float
    host: float
    """CPU time of the calling thread, which is what it needs the interpreter for at most."""
    locked: float = 0.0
    """Waited for the issue lock, before ``began``."""


@dataclass(frozen=True)
class IssueView:
    """One consistent look. ``ratio``, ``waited`` and ``ahead`` are of late, the others since the start, in seconds."""

    calls: int = 0
    host_seconds: float = 0.0
    step_seconds: float = 0.0
    waited_seconds: float = 0.0
    locked_seconds: float = 0.0
    ratio: float | None = None
    """h/T, with T as it would be if nobody had been waited for; ``None`` until enough steps were seen."""
    waited: float | None = None
    """Share of the step that the thread stood still inside the call: for the interpreter, or for its device."""
    ahead: float | None = None
    """Share of the calls looked at whose device was still at work when the host was done; ``None``: not asked."""
    last: float | None = None
    """When the last call ended."""


class Issuing:
    """Counters of one lane's model calls; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: Call | None = None
        self._calls = 0
        self._steps = 0
        self._host = self._step = self._waited = self._locked = 0.0
        self._late_host = self._late_step = self._late_waited = self._late_net = 0.0
        self._ahead: float | None = None

    def called(self, call: Call) -> None:
        """A model call is over. Its step lasts until the next call of the run begins."""
        with self._lock:
            before, self._before = self._before, call
            self._calls += 1
            self._host += call.host
            self._waited += _waited(call)
            self._locked += call.locked
            if before is not None and _follows(before, call):
                self._stepped(before, call.began - before.began, call.locked)

    def device_was(self, ahead: bool) -> None:
        """``ahead``: a call's device was found still at work, well after the host had issued everything."""
        with self._lock:
            value = float(ahead)
            self._ahead = value if self._ahead is None else 0.8 * self._ahead + 0.2 * value

    def view(self) -> IssueView:
        with self._lock:
            known = self._steps >= ENOUGH and self._late_net > 0.0
            return IssueView(
                calls=self._calls,
                host_seconds=self._host,
                step_seconds=self._step,
                waited_seconds=self._waited,
                locked_seconds=self._locked,
                ratio=min(self._late_host / self._late_net, 1.0) if known else None,
                waited=min(self._late_waited / self._late_step, 1.0) if known else None,
                ahead=self._ahead,
                last=None if self._before is None else self._before.began + self._before.wall,
            )

    def _stepped(self, call: Call, seconds: float, locked: float) -> None:
        waited = _waited(call)
        self._steps += 1
        self._step += seconds
        # What was waited for others is theirs: without it the ratio is the same with one lane busy and with all.
        net = max(seconds - waited - locked, call.host)
        self._late_host = FADE * self._late_host + call.host
        self._late_step = FADE * self._late_step + seconds
        self._late_waited = FADE * self._late_waited + waited
        self._late_net = FADE * self._late_net + net


def _waited(call: Call) -> float:
    return max(call.wall - call.host, 0.0)


def _follows(before: Call, call: Call) -> bool:
    pause = call.began - before.began - before.wall - call.locked
    return before.run == call.run and 0.0 <= pause <= max(LONGEST_PAUSE, 4.0 * before.wall)
