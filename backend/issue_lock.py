"""When one lane at a time issues its model call, and when all do as they like.

Pure. Owns the decision, which is an experiment: with several lanes waiting for Python's lock it tries the issue lock
for a window, keeps it while it makes the same lanes faster, and looks again now and then. The lock itself is in
``backend.model_calls``.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

Mode = Literal["auto", "on", "off"]
MODES: Final = ("auto", "on", "off")
Phase = Literal["off", "trial", "on", "check"]
"""``trial``: held for one window, to compare; ``check``: left off for one window, to compare again."""

WINDOW: Final = 5.0
"""Seconds counted together."""
FEWEST: Final = 8
"""Calls of a lane in a window below which its rate says nothing."""
DEMAND: Final = 0.4
"""Sum of the busy lanes' h/T from which a trial is worth its window."""
DEMAND_LOW: Final = 0.25
"""And below which a lock that is in use is given up without one."""
WAITED: Final = 0.1
"""Share of their steps that the busy lanes must have stood still for."""
GAIN: Final = 1.05
"""How much faster the lanes must be with the lock in its trial."""
KEEP: Final = 1.0
"""How much faster they must stay without it, at a check, for the lock to go."""
CHECK_AFTER: Final = 300.0
PAUSE: Final = 600.0
"""Seconds without a trial after one that brought nothing; doubled each time, up to ``LONGEST_PAUSE``."""
SHORT_PAUSE: Final = 30.0
"""After one that could not be judged because the lanes' work changed."""
LONGEST_PAUSE: Final = 3600.0


@dataclass(frozen=True)
class Window:
    """What the lanes did in so many seconds; only fully resident models on devices of their own count."""

    seconds: float
    calls: Mapping[int, tuple[Hashable, int]]
    """Per lane: what it called, one model at one size, and how often. A lane that called several things is left out."""
    demand: float = 0.0
    """Sum of these lanes' h/T."""
    waited: float = 0.0
    """Mean share of their steps that they stood still for."""


@dataclass(frozen=True)
class Decision:
    """Where the experiment stands."""

    phase: Phase = "off"
    since: float = 0.0
    compare: Window | None = None
    """The window before this phase."""
    not_before: float = 0.0
    failures: int = 0

    @property
    def held(self) -> bool:
        """Whether calls take the lock now."""
        return self.phase in {"trial", "on"}


def after(before: Decision, window: Window, now: float) -> Decision:
    """The decision once ``window`` has ended."""
    match before.phase:
        case "off":
            return _off(before, window, now)
        case "trial":
            return _tried(before, window, now)
        case "on":
            return _on(before, window, now)
        case "check":
            return _checked(before, window, now)


def gain(now: Window, then: Window) -> float | None:
    """How many times faster the lanes were ``now``; ``None`` when they did not do the same in both windows."""
    if now.calls.keys() != then.calls.keys() or not now.calls:
        return None
    logs = []
    for lane, (what, count) in now.calls.items():
        what_then, count_then = then.calls[lane]
        if what != what_then or min(count, count_then) < FEWEST:
            return None
        logs.append(math.log((count / now.seconds) / (count_then / then.seconds)))
    return math.exp(sum(logs) / len(logs))


def _off(before: Decision, window: Window, now: float) -> Decision:
    busy = [count for _, count in window.calls.values() if count >= FEWEST]
    if now < before.not_before or len(busy) < 2 or window.demand < DEMAND or window.waited < WAITED:
        return before
    return replace(before, phase="trial", since=now, compare=window)


def _tried(before: Decision, window: Window, now: float) -> Decision:
    faster = None if before.compare is None else gain(window, before.compare)
    if faster is None:
        return replace(before, phase="off", since=now, compare=None, not_before=now + SHORT_PAUSE)
    if faster < GAIN:
        return _given_up(before, now)
    return Decision("on", now)


def _on(before: Decision, window: Window, now: float) -> Decision:
    if len(window.calls) < 2 or window.demand < DEMAND_LOW:
        return Decision("off", now)
    if now - before.since < CHECK_AFTER:
        return before
    return replace(before, phase="check", since=now, compare=window)


def _checked(before: Decision, window: Window, now: float) -> Decision:
    faster = None if before.compare is None else gain(window, before.compare)
    if faster is not None and faster >= KEEP:
        return _given_up(before, now)
    return Decision("on", now)


def _given_up(before: Decision, now: float) -> Decision:
    pause = min(PAUSE * 2**before.failures, LONGEST_PAUSE)
    return Decision("off", now, not_before=now + pause, failures=before.failures + 1)
