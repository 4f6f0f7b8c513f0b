"""Deadlines of all connections, looked at a few times a second: a timer per request would cost more than the request.

Owns one coarse clock and one timer. Must never know what a deadline means; whoever registers acts on it.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

NEVER: Final = float("inf")


class Timed(Protocol):
    """Something with a deadline, in seconds of ``Deadlines.now``."""

    deadline: float

    def expired(self, now: float) -> None:
        """The deadline has passed; set a new one, or it is called again at the next look."""


class Deadlines:
    """The set of things to look at. ``step`` is the time between two looks in seconds: the precision of all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, step: float) -> None:
        self.now = loop.time()
        """Time of the last look; an attribute, for reading a clock on each packet adds up."""
        self.step = step
        """Seconds between two looks; a new value holds from the next look on."""
        self._loop = loop
        self._items: set[Timed] = set()
        self._looks: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = loop.call_later(step, self._look)

    def add(self, item: Timed) -> None:
        """Look at this from now on."""
        self._items.add(item)

    def discard(self, item: Timed) -> None:
        """Forget it."""
        self._items.discard(item)

    def every_look(self, call: Callable[[], None]) -> None:
        """Call this at each look, too."""
        self._looks.append(call)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(self.step, self._look)
        now = self.now = self._loop.time()
        for item in [item for item in self._items if item.deadline <= now]:
            item.expired(now)
        for call in self._looks:
            call()
