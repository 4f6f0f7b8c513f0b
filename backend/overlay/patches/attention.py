"""Attention's backends: ComfyUI asks for their order around every call; the process keeps one, so once is enough.

Owns when the asking can be left out: while the process still has what was asked for. Knows no more of
the backends than their names.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

from backend.overlay.patch import Patch, params_start
from backend.overlay.patches.memory import only_present

BACKENDS: Final = ("flash", "mem_efficient", "math", "cudnn")

_NOTHING: Final = contextlib.nullcontext()
_READ: Final = tuple(
    f"_get_{name}" for name in ("sdp_priority_order", *(f"{one}_sdp_enabled" for one in BACKENDS))
)
"""Torch's own words for it; there is no public way to read the order."""


def patches() -> list[Patch]:
    """ComfyUI's own name for torch's ``sdpa_kernel``, which it has where there is a GPU; nobody else's."""
    return only_present([
        Patch(
            "comfy.ops:sdpa_kernel",
            Once,
            "the order of attention's backends is the process's: asked for at every call it costs each lane the "
            "interpreter, and changes it under the others",
            shape=_fits,
            required=False,
            rebind=False,
        ),
    ])


def process_state() -> tuple[Any, ...]:
    """In which order the process tries attention's backends, and which of them it may use."""
    return tuple(getattr(torch._C, name)() for name in _READ)  # noqa: SLF001 (see there)


class Once:
    """Stands for ``sdpa_kernel``: what is asked for first stays, and asking for it again costs a look.

    When somebody changed it meanwhile, or something else is asked for, torch's own does as it always did.
    """

    def __init__(self, original: Callable[..., AbstractContextManager[Any]]) -> None:
        functools.update_wrapper(self, original)
        self._original = original
        self._lock = threading.Lock()
        self._asked: list[Any] = []
        self._state: tuple[Any, ...] = ()
        self._held: AbstractContextManager[Any] | None = None

    def __call__(self, backends: Any, set_priority: bool = False) -> AbstractContextManager[Any]:
        if torch.compiler.is_compiling() or not set_priority or not isinstance(backends, list):
            return self._original(backends, set_priority)
        if self._held is None:
            self._take(backends)
        return _NOTHING if backends == self._asked and self._stands() else self._original(backends, set_priority)

    def close(self) -> None:
        """Give back the order that was there before."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None:
            held.__exit__(None, None, None)

    def _take(self, backends: list[Any]) -> None:
        with self._lock:
            if self._held is None:
                # Entered and never left. Whoever forgets it leaves it.
                held = self._original(list(backends), True)
                held.__enter__()
                self._asked, self._state, self._held = list(backends), process_state(), held

    def _stands(self) -> bool:
        now = process_state()
        if now != self._state and now[1:] == self._state[1:]:
            # A block that allowed some backends only is over, and has left the order changed behind it.
            torch._C._set_sdp_priority_order(self._state[0])  # noqa: SLF001 (as above)
            return True
        return now == self._state


def _fits(original: Any) -> str | None:
    if (problem := params_start("backends", "set_priority")(original)) is not None:
        return problem
    try:
        torch._C._set_sdp_priority_order(process_state()[0])  # noqa: SLF001 (as above)
    except AttributeError as error:
        return f"this torch does not tell the order of its backends ({error})"
    return None
