"""``torch.default_generator`` as an object: in a lane its seed and state are the lane's, elsewhere the process's.

Owns the stand-in. What draws through it is in ``randomness``; C-level operators never ask it and keep drawing from
the process-wide generator.
"""

from collections.abc import Callable
from typing import Any

import torch

from backend.overlay.patches.draws import Draws


class DefaultGenerator(torch.Generator):
    """A real ``torch.Generator``, as functions that take one expect; ``real()`` is what it stands for just now."""

    _original: torch.Generator
    _current: Callable[[], Draws | None]

    @classmethod
    def over(cls, current: Callable[[], Draws | None], original: torch.Generator) -> "DefaultGenerator":
        """The stand-in for ``original``."""
        made = cls()
        made._original, made._current = original, current
        super(cls, made).set_state(original.get_state())
        return made

    def real(self) -> torch.Generator:
        """The generator of the running code's lane, or the process's."""
        own = self._current()
        return self._original if own is None else own.cpu

    def manual_seed(self, seed: int) -> torch.Generator:
        super().manual_seed(seed)  # for operators that read the object itself
        own = self._current()
        return self._original.manual_seed(seed) if own is None else own.seed_cpu(seed)

    def seed(self) -> int:
        value = super().seed()
        self.manual_seed(value)
        return value

    def initial_seed(self) -> int:
        return self.real().initial_seed()

    def get_state(self) -> torch.Tensor:
        return self.real().get_state()

    def set_state(self, new_state: torch.Tensor) -> Any:
        super().set_state(new_state)
        own = self._current()
        if own is None:
            self._original.set_state(new_state)
        else:
            own.set_cpu_state(new_state)
        return self
