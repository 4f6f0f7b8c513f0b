"""Random numbers per lane: the functions of ``numpy.random`` and ``random`` that share one state per process.

Outside a lane they stay what they were. Generators that a node makes for itself are never touched.
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
    """Every function of the two modules that is a method of the module's hidden instance."""
    numpy_names = sorted(_methods_of(np.random, np.random.mtrand._rand))  # noqa: SLF001
    python_names = sorted(_methods_of(random, random._inst))  # noqa: SLF001
    # Three of numpy's are plain functions over the same instance; the first two are other names of methods.
    plain = {"seed": "seed", "ranf": "random_sample", "sample": "random_sample"}
    names = {name: name for name in numpy_names} | {name: to for name, to in plain.items() if hasattr(np.random, name)}

    def numpy_state() -> Any:
        own = current()
        return None if own is None else own.numpy

    def python_state() -> Any:
        own = current()
        return None if own is None else own.python

    found = [Patch(f"numpy.random:{name}", _redirect(numpy_state, to), WHY) for name, to in names.items()]
    return found + [Patch(f"random:{name}", _redirect(python_state, name), WHY) for name in python_names]


def _methods_of(module: Any, hidden: Any) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__self__", None) is hidden
    ]


def _redirect(state: Callable[[], Any], name: str) -> Callable[[Any], Any]:
    def replace(original: Any) -> Any:
        @functools.wraps(original)
        def redirected(*args: Any, **kwargs: Any) -> Any:
            own = state()
            return (original if own is None else getattr(own, name))(*args, **kwargs)

        return redirected

    return replace
