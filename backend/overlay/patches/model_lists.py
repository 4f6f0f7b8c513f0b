"""Which models each lane has loaded: one list that is another one per lane, kept free of dead entries.

Owns that list, its upkeep and the refusal of another lane's models. Knows ComfyUI's ``LoadedModel`` by four
attributes (``model``, ``real_model``, ``load_device`` of the model's patcher) and nothing else of it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from backend.context import PerLane, current_lane
from backend.lanes import Lane

_PLAIN: Final = (
    *("append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse"),
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__", "__iter__", "__le__"),
    *("__len__", "__lt__", "__mul__", "__ne__", "__repr__", "__reversed__", "__rmul__", "__setitem__"),
)


class WrongLaneError(RuntimeError):
    """A node brought a model that belongs to another lane."""


class LaneList(list[Any]):
    """A list that is another one for each lane; only a lane's own code touches its list, so none needs a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: PerLane[list[Any]] = PerLane(list)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        self.lanes.get().sort(key=key, reverse=reverse)

    def __iadd__(self, more: Iterable[Any]) -> "LaneList":  # type: ignore[misc]  # list's own says so
        self.lanes.get().extend(more)
        return self

    def __reduce__(self) -> Any:
        return list, (list(self.lanes.get()),)


def _dispatch(name: str) -> Callable[..., Any]:
    def method(self: LaneList, *args: Any) -> Any:
        return getattr(self.lanes.get(), name)(*args)

    method.__name__ = name
    return method


for _name in _PLAIN:
    setattr(LaneList, _name, _dispatch(_name))


class LoadedModels:
    """The lists of one start, and the counts of loads and unloads per lane."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.entries = LaneList()
        self._lanes = {lane.index: lane for lane in lanes}
        self._inside = threading.local()

    @property
    def lane(self) -> Lane | None:
        """The lane of the running code."""
        index = current_lane()
        return None if index is None else self._lanes.get(index)

    def purge(self) -> None:
        """Drop the current lane's entries whose model no longer exists."""
        own = self.entries.lanes.get()
        # In place and by identity: ``LoadedModel`` compares by its patcher, and two that are gone would be equal.
        alive = [entry for entry in own if _model(entry) is not None]
        for _ in range(len(own) - len(alive)):
            self.count_unload()
        own[:] = alive

    @contextmanager
    def outermost(self) -> Iterator[bool]:
        """True for the first of nested blocks of one thread."""
        first = not getattr(self._inside, "entered", False)
        self._inside.entered = True
        try:
            yield first
        finally:
            if first:
                self._inside.entered = False

    def hold(self) -> list[Any]:
        """References under which every entry stays as it is.

        A model dies when its last user drops it, in whatever thread the garbage collector runs, and ComfyUI's loops
        look at each entry more than once.
        """
        return [(entry.model, _model(entry)) for entry in self.entries.lanes.get()]

    def refuse_strangers(self, patchers: Iterable[Any]) -> None:
        """Raises ``WrongLaneError`` for a model that is bound to another GPU or loaded by another lane."""
        lane = self.lane
        if lane is None:
            return
        own = torch.device(lane.device)
        for patcher in patchers:
            model = getattr(patcher, "model", None)
            device = getattr(patcher, "load_device", None)
            if _elsewhere(device, own):
                raise _stranger(model, f"it is bound to {device}", lane)
            holder = self._holder(model, lane.index)
            if holder is not None:
                raise _stranger(model, f"GPU {holder} has it loaded", lane)

    def count_load(self) -> None:
        if self.lane is not None:
            self.lane.stats.model_loaded()

    def count_unload(self) -> None:
        if self.lane is not None:
            self.lane.stats.model_unloaded()

    def _holder(self, model: Any, lane: int) -> int | None:
        if model is None:
            return None
        for other, entries in self.entries.lanes.items():
            if other is not None and other != lane and any(_model(entry) is model for entry in list(entries)):
                return other
        return None


def _model(entry: Any) -> Any:
    """The model of a ``LoadedModel``; ``None`` when it is gone, or when unloading it broke off half-way."""
    reference = entry.real_model
    return None if reference is None else reference()


def _elsewhere(device: Any, own: torch.device) -> bool:
    if not isinstance(device, torch.device) or device.type != own.type or device.type == "cpu":
        return False
    return device.index is not None and device.index != own.index


def _stranger(model: Any, reason: str, lane: Lane) -> WrongLaneError:
    return WrongLaneError(
        f"{type(model).__name__} cannot be used by GPU {lane.index} ({lane.device}): {reason}. A custom node keeps "
        f"the model where all GPUs share it; docs/custom-nodes.md says what to do."
    )
