"""Memory state of ``comfy.model_management`` that several lanes share or must not share.

Owns pinned host memory, cast buffers and the release of cached results when memory is short, which newer versions
have. How often memory is tidied up is in ``tidying``. Knows nothing of which models are loaded.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from backend.context import PerLane
from backend.lanes import Lane
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.patches import tidying

MANAGEMENT: Final = "comfy.model_management"
MEMORY: Final = "comfy.memory_management"


def only_present(patches: Sequence[Patch]) -> list[Patch]:
    """Those whose target this ComfyUI has; all of them where no ComfyUI can be imported."""
    found = []
    for patch in patches:
        try:
            _, _, original = patch.locate()
        except AttributeError:
            continue
        except ImportError as error:
            if error.name is not None and error.name != "comfy" and error.name.startswith("comfy."):
                continue
            original = None
        if repr(original) != "ABSENT":
            found.append(patch)
    return found


def patches(lanes: Sequence[Lane]) -> list[Patch]:
    """Collecting and cached memory in every version; pins, buffers and release callbacks where the version has them."""
    pins = threading.RLock()
    release = _Release()
    shared_buffers = "a lane's cast would go through a buffer another lane is reading"
    newer = [
        Patch(f"{MANAGEMENT}:{name}", functools.partial(_locked, pins), "one budget counted by several threads", shape)
        for name, shape in (("pin_memory", params("tensor")), ("unpin_memory", params("tensor")))
    ]
    newer += [
        Patch(f"{MANAGEMENT}:{name}", lambda _: LaneDict(), shared_buffers, _empty(dict))
        for name in ("STREAM_CAST_BUFFERS", "STREAM_AIMDO_CAST_BUFFERS")
    ]
    newer += [
        Patch(f"{MANAGEMENT}:DIRTY_MMAPS", lambda _: LaneSet(set), shared_buffers, _empty(set)),
        Patch(f"{MANAGEMENT}:CROSS_STEP_STATE", _weak_set, shared_buffers, _empty(weakref.WeakSet)),
        Patch(
            f"{MEMORY}:set_ram_cache_release_state",
            release.setter,
            "the end of one lane's job would switch off another's",
            params("callback", "headroom"),
        ),
        Patch(
            f"{MEMORY}:extra_ram_release",
            release.caller,
            "it would free another lane's results",
            params_start("target"),
        ),
    ]
    return tidying.patches(lanes) + only_present(newer)


class LaneDict(dict[Any, Any]):
    """A dictionary that is another one for each lane."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: PerLane[dict[Any, Any]] = PerLane(dict)


class LaneSet:
    """A set that is another one for each lane, made by ``make``; only what ComfyUI uses of one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.lanes: PerLane[Any] = PerLane(make)

    def add(self, item: Any) -> None:
        self.lanes.get().add(item)

    def discard(self, item: Any) -> None:
        self.lanes.get().discard(item)

    def clear(self) -> None:
        self.lanes.get().clear()

    def __contains__(self, item: Any) -> bool:
        return item in self.lanes.get()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.lanes.get())

    def __len__(self) -> int:
        return len(self.lanes.get())


def _dispatch(name: str) -> Callable[..., Any]:
    def method(self: LaneDict, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.lanes.get(), name)(*args, **kwargs)

    method.__name__ = name
    return method


for _name in (
    *("clear", "copy", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"),
    *("__contains__", "__delitem__", "__eq__", "__getitem__", "__iter__", "__len__", "__ne__", "__or__"),
    *("__repr__", "__reversed__", "__setitem__"),
):
    setattr(LaneDict, _name, _dispatch(_name))


class _Release:
    """Each lane's own callback that frees cached results, and the largest reserve any of them asks for."""

    def __init__(self) -> None:
        self._states: PerLane[tuple[Any, int]] = PerLane(lambda: (None, 0))
        self._lock = threading.Lock()

    def setter(self, original: Callable[..., None]) -> Any:
        @functools.wraps(original)
        def set_ram_cache_release_state(callback: Any, headroom: Any) -> None:
            with self._lock:
                self._states.set((callback, max(0, int(headroom))))
                # The version's own variable keeps what other code reads: the reserve, and no lane's callback.
                original(None, max(state[1] for _, state in self._states.items()))

        return set_ram_cache_release_state

    def caller(self, original: Callable[..., Any]) -> Any:
        @functools.wraps(original)
        def extra_ram_release(target: Any, *args: Any, **kwargs: Any) -> Any:
            callback = self._states.get()[0]
            return 0 if callback is None else callback(target, *args, **kwargs)

        return extra_ram_release


def _weak_set(original: Any) -> LaneSet:
    return LaneSet(weakref.WeakSet)


def _locked(lock: Any, original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return original(*args, **kwargs)

    return locked


def _empty(kind: type[Iterable[Any]]) -> Callable[[Any], str | None]:
    def check(original: Any) -> str | None:
        if not isinstance(original, kind):
            return f"expected a {kind.__name__}, found {type(original).__name__}"
        return "expected it to be empty" if any(True for _ in original) else None

    return check
