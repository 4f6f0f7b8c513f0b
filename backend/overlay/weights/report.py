"""What one lane holds: bytes on the host, shared and its own, and on its device.

Owns the sum over the lane's models. It is kept until something of the lane's moves, or for a few seconds: adding up
some thousand parameters takes a few milliseconds under the interpreter lock.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from backend.holdings import Weights
from backend.lanes import Lane
from backend.overlay.weights.store import Store

KEPT_SECONDS: Final = 5.0


class Report:
    """``store`` is ``None`` where every lane keeps copies of its own."""

    def __init__(self, store: Store | None, lane: Lane, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._lane = lane
        self._clock = clock
        self._sums = Weights()
        self._at: tuple[int, float] | None = None

    def now(self) -> Weights:
        """One look; counts are never older than the call."""
        if self._store is None:
            self._refresh(0)
            return self._sums
        book = self._store.ledgers.of(self._lane.index)
        self._refresh(book.moves)
        return Weights(
            self._sums.host_shared, self._sums.host_own, self._sums.device,
            loads=book.loads, loads_avoided=book.avoided, evictions=book.evictions, copies=book.copies,
            writes=book.writes,
        )

    def _refresh(self, moves: int) -> None:
        now = self._clock()
        if self._at is None or self._at[0] != moves or now - self._at[1] >= KEPT_SECONDS:
            self._sums = self._summed()
            self._at = (moves, now)

    def _summed(self) -> Weights:
        shared: dict[tuple[int, int], int] = {}
        own = device = 0
        seen: set[int] = set()
        for parameter in self._parameters():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if parameter.device.type != "cpu":
                device += parameter.nbytes
            elif self._store is not None and self._store.is_master(parameter):
                # Two trees of a lane over one file point at the same bytes.
                shared[parameter.data_ptr(), parameter.nbytes] = parameter.nbytes
            else:
                own += parameter.nbytes
        return Weights(sum(shared.values()), own, device)

    def _parameters(self) -> Iterator[torch.Tensor]:
        if self._store is not None:
            for module, name in self._store.places(self._lane.index):
                parameter = module._parameters.get(name)  # noqa: SLF001 (torch's own way around __getattr__)
                if parameter is not None:
                    yield parameter
        for model in self._lane.weights.models():
            root: Any = model
            if isinstance(root, torch.nn.Module):
                yield from list(root.parameters())
