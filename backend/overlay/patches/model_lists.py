"""Which models each lane has loaded: one list that is another one per lane, kept free of dead entries.

Owns that list, its upkeep and what becomes of another lane's models: they are refused, or change hands where nobody
can be using them. Knows ComfyUI's ``LoadedModel`` by four attributes (``model``, ``real_model``, ``load_device`` of the
model's patcher) and nothing else of it.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from backend.context import PerLane, current_lane
from backend.lanes import Lane
from backend.overlay.serialize import held

_PLAIN: Final = (
    *("append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse"),
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__", "__iter__", "__le__"),
    *("__len__", "__lt__", "__mul__", "__ne__", "__repr__", "__reversed__", "__rmul__", "__setitem__"),
)


BUSY_SECONDS: Final = 60.0
"""How long a lane waits until another is done with loading or freeing, before it takes a model from its list."""


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


class _Gate:
    """A lane's own code passes as it likes, also from several threads; a stranger when none of it is inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    @contextmanager
    def own(self) -> Iterator[None]:
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def stranger(self, timeout: float) -> Iterator[bool]:
        """Keeps the lane's own code out for the block, which must be short; false: it did not come out in time."""
        with self._changed:
            yield self._changed.wait_for(lambda: self._inside == 0, timeout)


class LoadedModels:
    """The lists of one start, and the counts of loads and unloads per lane."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.entries = LaneList()
        self._lanes = {lane.index: lane for lane in lanes}
        self._inside = threading.local()
        self._gates = {lane.index: _Gate() for lane in lanes}
        self._used: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()
        """The serialized packs of the job that used a model last: that job has ended when another job holds one."""

    @property
    def lane(self) -> Lane | None:
        """The lane of the running code."""
        index = current_lane()
        return None if index is None else self._lanes.get(index)

    def purge(self) -> None:
        """Drop the current lane's entries whose model no longer exists."""
        with self.steady():
            self._purge()

    def _purge(self) -> None:
        own = self.entries.lanes.get()
        # In place and by identity: ``LoadedModel`` compares by its patcher, and two that are gone would be equal.
        alive = [entry for entry in own if _model(entry) is not None]
        for _ in range(len(own) - len(alive)):
            self.count_unload()
        own[:] = alive

    @contextmanager
    def steady(self) -> Iterator[None]:
        """No other lane takes anything from the current lane's list meanwhile."""
        lane = self.lane
        with contextlib.nullcontext() if lane is None else self._gates[lane.index].own():
            yield

    @contextmanager
    def outermost(self) -> Iterator[bool]:
        """True for the first of nested blocks of one thread."""
        first = not getattr(self._inside, "entered", False)
        self._inside.entered = True
        try:
            with self.steady():
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

    @contextmanager
    def claimed(self, patchers: Sequence[Any]) -> Iterator[None]:
        """The models of ``patchers`` are the current lane's, and stay so for the block.

        Raises ``WrongLaneError`` for a model that is bound to another GPU, or that another lane of the same GPU has
        loaded. The latter changes hands when the job that used it last and the current one share a serialized pack:
        then that job is over.
        """
        lane = self.lane
        if lane is None:
            yield
            return
        own = torch.device(lane.device)
        models = [getattr(patcher, "model", None) for patcher in patchers]
        for patcher, model in zip(patchers, models, strict=True):
            device = getattr(patcher, "load_device", None)
            if _elsewhere(device, own):
                raise _stranger(model, f"it is bound to {device}", lane)
            self._take_over(model, lane)
        with self.steady():
            for model in models:
                holder = self._holder(model, lane.index)
                if holder is not None:
                    raise _stranger(model, f"GPU {holder} has it loaded", lane)
                self._note_use(model)
            yield

    def _take_over(self, model: Any, lane: Lane) -> None:
        """Move a model from the list of the lane that has it to ``lane``'s, if that lane's jobs are done with it."""
        holder = self._holder(model, lane.index)
        if holder is None or not held() or self._lanes[holder].device != lane.device:
            return
        # Bounded: two lanes that take from each other while both load would wait for ever.
        with self._gates[holder].stranger(BUSY_SECONDS) as alone:
            theirs = self.entries.lanes.of(holder)
            entry = next((entry for entry in theirs if _model(entry) is model), None)
            if alone and entry is not None and self._used.get(model, frozenset()) & held():
                theirs[:] = [other for other in theirs if other is not entry]
                self.entries.lanes.get().append(entry)
                self._note_use(model)

    def _note_use(self, model: Any) -> None:
        with contextlib.suppress(TypeError):  # no weak reference, or no hash: it never changes hands
            self._used[model] = held()

    def of(self, lane: int) -> list[Any]:
        """The models that ``lane`` has loaded."""
        return [model for entry in list(self.entries.lanes.of(lane)) if (model := _model(entry)) is not None]

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
