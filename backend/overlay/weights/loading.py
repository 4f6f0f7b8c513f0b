"""Whether the running code is inside one of ComfyUI's loaders, and which files that loader has opened so far.

Owns the context variable that says so. Only inside a loading are masters handed out, because only there it is known
what becomes of them.
"""

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from backend.overlay.weights import pages
from backend.overlay.weights.files import File


class Loading:
    """One call of a loader; keeps its files alive until modules do."""

    def __init__(self) -> None:
        self.files: list[File] = []


_current: Final[ContextVar[Loading | None]] = ContextVar("backend_loading", default=None)

_apart: Final[ContextVar[bool]] = ContextVar("backend_apart", default=False)

_passing: Final = pages.Passing()


class Growing:
    """A time in which much is made and nothing thrown away: the collector would only look through it, again and again.

    Collections that somebody asks for take place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._was_on = gc.isenabled()
                gc.disable()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._was_on:
                gc.enable()


_growing: Final = Growing()


def current() -> Loading | None:
    """The loading this code belongs to."""
    return _current.get()


@contextmanager
def loading() -> Iterator[Loading]:
    """Run the block as a loader; one inside another belongs to the outer one."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    inside = Loading()
    if _apart.get():
        yield inside
        return
    token = _current.set(inside)
    try:
        with _passing, _growing:
            yield inside
    finally:
        _current.reset(token)


@contextmanager
def apart() -> Iterator[None]:
    """Run the block without masters: its loaders make copies of their own, as in plain ComfyUI."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def as_loading(original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, run as a loader."""

    @functools.wraps(original)
    def loader(*args: Any, **kwargs: Any) -> Any:
        with loading():
            return original(*args, **kwargs)

    return loader
