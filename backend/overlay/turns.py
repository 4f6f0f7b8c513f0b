"""Who counts under a prefix meanwhile: savers that are told each number share it, any other has it alone.

Owns the waiting line of lanes. Waiting cannot lock up: a lane that others wait for, however indirectly, does not wait
for them, and one that has a place already does not wait for another process. Knows nothing of numbers, files or node
classes.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

from backend.overlay.claims import Claims

LOOK: Final = 0.05
"""Seconds between two looks at whether the waiting job was interrupted, or another process has left."""
LIMIT: Final = 60.0
"""Seconds that a lane waits at most: what holds a prefix for longer does more than saving."""

Place = tuple[str, str]
Owner = tuple[int, Hashable, Hashable]
"""One node call: its lane first."""


@dataclass(frozen=True)
class _Claim:
    place: Place
    owner: Owner
    alone: bool

    @property
    def lane(self) -> int:
        return self.owner[0]

    def bars(self, other: "_Claim") -> bool:
        """Whether the other cannot be in the same place meanwhile; calls of one lane meet as in plain ComfyUI."""
        return self.place == other.place and self.lane != other.lane and (self.alone or other.alone)


class Turns:
    """The claims of all lanes on all places, under the caller's ``lock``; thread-safe."""

    def __init__(self, lock: Any, others: Callable[[], Claims] = lambda: Claims(None)) -> None:
        """``others`` has what keeps this process apart from others."""
        self.limit = LIMIT
        self._others = others
        self._changed = threading.Condition(lock)
        self._held: set[_Claim] = set()
        self._line: list[_Claim] = []

    def __len__(self) -> int:
        return len(self._held)

    def enter(
        self, place: Place, owner: Owner, alone: bool, look: Callable[[], None] = lambda: None
    ) -> tuple[bool, bool]:
        """The owner claims the place, until ``leave``: whether to count anew, and whether it is in nobody's way now.

        What was counted before is out of date after waiting. It may be in the way where waiting would lock up or takes
        longer than the limit. ``look`` is called now and then while it waits; what it raises ends the waiting, with
        nothing claimed. The lock is not held meanwhile.
        """
        claim = _Claim(place, owner, alone)
        stale = alone and self._others().shared
        deadline = time.monotonic() + self.limit
        with self._changed:
            if claim in self._held:
                return False, self._clear(claim)
            self._line.append(claim)
            try:
                while (barring := self._barring(claim)) or not self._ask_outside(claim):
                    if time.monotonic() >= deadline or self._locks_up(claim, barring):
                        break
                    stale = True
                    look()
                    self._changed.wait(LOOK)
            finally:
                self._line.remove(claim)
                self._changed.notify_all()
            self._held.add(claim)
            return stale, self._clear(claim)

    def free(self, place: Place, lane: int | None = None) -> bool:
        """Whether no other lane has the place alone."""
        with self._changed:
            return not any(held.place == place and held.alone and held.lane != lane for held in self._held)

    def leave(self, ended: Callable[[Owner], bool]) -> None:
        """These node calls are over."""
        with self._changed:
            left = {claim.place for claim in self._held}
            self._held = {claim for claim in self._held if not ended(claim.owner)}
            for place in left:
                self._others().hold(place, self._mode(place))
            self._changed.notify_all()

    def _mode(self, place: Place) -> bool | None:
        """How this process has the place: alone, shared, or not at all."""
        return max((claim.alone for claim in self._held if claim.place == place), default=None)

    def _ask_outside(self, claim: _Claim) -> bool:
        return self._others().hold(claim.place, claim.alone or bool(self._mode(claim.place)))

    def _clear(self, claim: _Claim) -> bool:
        """Whether nobody who would count in its way is in the claim's place."""
        return self._ask_outside(claim) and not any(held.bars(claim) for held in self._held)

    def _barring(self, claim: _Claim) -> set[int]:
        """Lanes that have to leave, or to come first, before this claim's turn."""
        found = {held.lane for held in self._held if held.bars(claim)}
        if not any(held.place == claim.place and held.lane == claim.lane for held in self._held):
            earlier = self._line[: self._line.index(claim)]
            found |= {other.lane for other in earlier if other.bars(claim)}
        return found

    def _locks_up(self, claim: _Claim, barring: set[int]) -> bool:
        """Whether one of those waits for this lane, directly or through others; another process may."""
        if not barring:
            return any(held.lane == claim.lane for held in self._held)
        seen: set[int] = set()
        following = set(barring)
        while following:
            one = following.pop()
            if one == claim.lane:
                return True
            if one not in seen:
                seen.add(one)
                for waiting in self._line:
                    if waiting.lane == one:
                        following |= self._barring(waiting)
        return False
