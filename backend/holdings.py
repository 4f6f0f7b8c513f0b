"""What one lane holds of models' weights, and what loading them cost: the same names for both bodies.

Owns the names. Knows nothing of torch or ComfyUI; a body says how its numbers are found.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Weights:
    """Bytes one lane's models point at now, and counts since the start."""

    host_shared: int = 0
    """On the host, in memory that other lanes' models may point at too."""
    host_own: int = 0
    """On the host, this lane's alone."""
    device: int = 0
    """On the lane's accelerator."""
    loads: int = 0
    """Weights files read."""
    loads_avoided: int = 0
    """Files not read, because another lane or an earlier load had them."""
    evictions: int = 0
    """Files this lane had read that were let go, because no model used them any more."""
    copies: int = 0
    """Shared weights that got memory of their own before somebody wrote them."""
    writes: int = 0
    """Times a job was found to have written shared weights in place; they were put right."""
    preloads: int = 0
    """Models loaded by ``POST /preload``."""

    def since(self, before: "Weights") -> "Weights":
        """What is held now, and the counts since ``before``."""
        names = ("loads", "loads_avoided", "evictions", "copies", "writes", "preloads")
        return replace(self, **{name: getattr(self, name) - getattr(before, name) for name in names})

    def shown(self) -> dict[str, int]:
        """As routes and the history say it."""
        return asdict(self)


class Holdings:
    """Where one lane's numbers come from; the body sets ``read``."""

    def __init__(self) -> None:
        self.read: Callable[[], Weights] = Weights
        self.models: Callable[[], Sequence[object]] = tuple
        """The models the lane has loaded now, as the body knows them."""
        self.names: Callable[[], Sequence[str] | None] = lambda: None
        """Files of the models that the lane has built, by the names that workflows use; ``None``: cannot be told."""
        self.forget: Callable[[], None] = lambda: None
        """Lets the lane drop its models and kept outputs before its next job."""
        self.kept: list[object] = []
        """What stays in host memory because it was loaded ahead of any job; until ``released``."""
        self._lock = threading.Lock()
        self._preloads = 0

    def preloaded(self, models: int) -> None:
        """So many models were loaded ahead of any job."""
        with self._lock:
            self._preloads += models

    def released(self) -> None:
        """The lane was told to free memory."""
        self.kept.clear()

    def now(self) -> Weights:
        """One look."""
        with self._lock:
            preloads = self._preloads
        return replace(self.read(), preloads=preloads)
