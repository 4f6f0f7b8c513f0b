"""Who counts under a prefix meanwhile: savers that are told each number share it, any other has it alone.

Owns the waiting line of lanes. Waiting cannot lock up: a lane that others wait for, however indirectly, does not wait
for them. Knows nothing of numbers, files or node classes.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

LOOK: Final = 0.2
"""Seconds between two looks at whether the waiting job was interrupted."""
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

    def __init__(self, lock: Any, limit: float = LIMIT) -> None:
        self.limit = limit
        self._changed = threading.Condition(lock)
        self._held: set[_Claim] = set()
        self._line: list[_Claim] = []

    def __len__(self) -> int:
        return len(self._held)

    def enter(
        self, place: Place, owner: Owner, alone: bool, look: Callable[[], None] = lambda: None
    ) -> tuple[bool, bool]:
        """The owner claims the place, until ``leave``: whether it had to wait, and whether it is in nobody's way now.

        It may be in the way where waiting would lock up or takes longer than the limit. ``look`` is called now and
        then while it waits; what it raises ends the waiting, with nothing claimed. The lock is not held meanwhile.
        """
        claim = _Claim(place, owner, alone)
        waited = False
        deadline = time.monotonic() + self.limit
        with self._changed:
            if claim in self._held:
                return False, not any(held.bars(claim) for held in self._held)
            self._line.append(claim)
            try:
                while barring := self._barring(claim):
                    if time.monotonic() >= deadline or self._locks_up(claim.lane, barring):
                        break
                    waited = True
                    look()
                    self._changed.wait(LOOK)
            finally:
                self._line.remove(claim)
                self._changed.notify_all()
            self._held.add(claim)
            return waited, not any(held.bars(claim) for held in self._held)

    def free(self, place: Place, lane: int | None = None) -> bool:
        """Whether no other lane has the place alone."""
        with self._changed:
            return not any(held.place == place and held.alone and held.lane != lane for held in self._held)

    def leave(self, ended: Callable[[Owner], bool]) -> None:
        """These node calls are over."""
        with self._changed:
            self._held = {claim for claim in self._held if not ended(claim.owner)}
            self._changed.notify_all()

    def _barring(self, claim: _Claim) -> set[int]:
        """Lanes that have to leave, or to come first, before this claim's turn."""
        found = {held.lane for held in self._held if held.bars(claim)}
        if not any(held.place == claim.place and held.lane == claim.lane for held in self._held):
            earlier = self._line[: self._line.index(claim)]
            found |= {other.lane for other in earlier if other.bars(claim)}
        return found

    def _locks_up(self, lane: int, barring: set[int]) -> bool:
        """Whether one of those waits for ``lane``, directly or through others."""
        seen: set[int] = set()
        following = set(barring)
        while following:
            one = following.pop()
            if one == lane:
                return True
            if one not in seen:
                seen.add(one)
                for waiting in self._line:
                    if waiting.lane == one:
                        following |= self._barring(waiting)
        return False
