"""Random numbers per lane: the functions of ``numpy.random`` and ``random`` that share one state per process.

Outside a lane they stay what they were. Generators that a node makes for itself are never touched. A lane's seed goes
to the process's instances, too: code that holds one of them draws, with one job at a time, what it
would in plain ComfyUI.
Knows nothing of torch or ComfyUI.
"""

import functools
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from backend.overlay.patch import Patch

WHY: Final = "two lanes seeding and drawing at once would get each other's random numbers"


class HostDraws(Protocol):
    """The states a lane draws from on the host."""

    numpy: np.random.RandomState
    python: random.Random


def patches(current: Callable[[], HostDraws | None]) -> list[Patch]:
    """Every function of the two modules that is a method of the module's hidden instance, and numpy's instance."""
    numpy_hidden, python_hidden = np.random.mtrand._rand, random._inst  # noqa: SLF001
    numpy_names = sorted(_methods_of(np.random, numpy_hidden))
    python_names = sorted(_methods_of(random, python_hidden))
    # Three of numpy's are plain functions over the same instance; the first two are other names of methods.
    plain = {"seed": "seed", "ranf": "random_sample", "sample": "random_sample"}
    names = {name: name for name in numpy_names} | {name: to for name, to in plain.items() if hasattr(np.random, name)}

    def numpy_state() -> Any:
        own = current()
        return None if own is None else own.numpy

    def python_state() -> Any:
        own = current()
        return None if own is None else own.python

    found = [Patch(f"numpy.random:{name}", _redirect(numpy_state, numpy_hidden, to), WHY) for name, to in names.items()]
    found += [Patch(f"random:{name}", _redirect(python_state, python_hidden, name), WHY) for name in python_names]
    return [*found, Patch("numpy.random.mtrand:_rand", functools.partial(_stand_in, numpy_state), WHY)]


def _stand_in(state: Callable[[], Any], original: np.random.RandomState) -> np.random.RandomState:
    """What libraries take for numpy's own instance: the lane's, or outside every lane the process's."""

    class LaneRandomState(np.random.RandomState):
        def __getattribute__(self, name: str) -> Any:
            own = state()
            return getattr(original if own is None else own, name)

    return LaneRandomState(original._bit_generator)  # noqa: SLF001 (shares its state)


def _methods_of(module: Any, hidden: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__self__", None) is hidden
    ]


def _redirect(state: Callable[[], Any], hidden: Any, name: str) -> Callable[[Any], Any]:
    seeds = name in {"seed", "set_state", "setstate"}

    def replace(original: Any) -> Any:
        @functools.wraps(original)
        def redirected(*args: Any, **kwargs: Any) -> Any:
            own = state()
            if own is None:
                return original(*args, **kwargs)
            if seeds:
                # Not through ``original``: numpy's looks its instance up, and finds the stand-in.
                getattr(hidden, name)(*args, **kwargs)
            return getattr(own, name)(*args, **kwargs)

        return redirected

    return replace
