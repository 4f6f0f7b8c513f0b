"""The store: which files are read, which masters exist, and how often a load was avoided.

Owns the tables, their locks and the counters. Everything in them is held weakly: what no module uses is gone.
Knows nothing of modules or of ComfyUI.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import torch

from backend.context import PerLane, current_lane
from backend.overlay.weights import pages
from backend.overlay.weights.files import File, FileKey
from backend.overlay.weights.ledger import Ledger
from backend.overlay.weights.sealed import SEALED, Memory
from backend.overlay.weights.witness import Witness

T = TypeVar("T")

_HISTORY: Final = "_weights_history"
"""Attribute of a converted master: what it was made from, so that converting it again can be recognised too."""

UNKNOWN: Final = "weights that a loader computed"
"""Stands where a written master is of no single file."""

Read = Callable[[], tuple[Any, Any]]
"""Reads a file: its dictionary and its metadata."""


class Holding:
    """What one module tree points at: alive as long as one of its modules is."""

    def __init__(self, files: Sequence[File], ledger: Ledger) -> None:
        self.files = tuple(files)
        self.lane = current_lane()
        self.ledger = ledger
        self.places: list[tuple[weakref.ref[torch.nn.Module], str]] = []
        """Every parameter that was a master once: its module and its name there."""
        self.mapped = 0
        self.anonymous = 0


@dataclass(frozen=True)
class Held:
    """Bytes of masters that one lane's modules point at; other lanes may point at the same."""

    trees: int = 0
    mapped: int = 0
    anonymous: int = 0


@dataclass(frozen=True)
class Snapshot:
    """One look at the store: bytes are each counted once, whoever points at them."""

    files: int
    mapped: int
    """Pages of files: the system takes them back when it is short of memory."""
    anonymous: int
    """Conversions, and files that cannot be mapped."""
    loads: int
    avoided: int
    conversions: int
    by_lane: dict[int | None, Held]
    loads_by_lane: dict[int | None, tuple[int, int]]
    """Files read, and reads avoided."""


class Store:
    """All masters of this process; every method may be called from any thread.

    Finalizers run in whatever thread the collector does, so none of them takes a lock: they only drop entries of
    the weak tables, which is one step each.
    """

    def __init__(self, protect: bool = True, witness: Witness | None = None) -> None:
        self.protect = protect
        self.witness = witness
        self.memory = Memory(protect)
        self.ledgers: PerLane[Ledger] = PerLane(Ledger)
        self._files: WeakValueDictionary[FileKey, File] = WeakValueDictionary()
        self._by_storage: WeakValueDictionary[int, File] = WeakValueDictionary()
        self._masters: WeakValueDictionary[tuple[Any, ...], torch.Tensor] = WeakValueDictionary()
        self._made: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()
        self._holdings: WeakValueDictionary[int, Holding] = WeakValueDictionary()
        self._numbers = itertools.count()
        self._opening: dict[str, threading.Lock] = {}
        self._making = threading.RLock()
        self._counting = threading.Lock()
        self._inspecting = threading.Lock()
        self.conversions = 0

    def load(self, path: str, read: Read) -> tuple[Any, Any, File | None]:
        """The tensors at ``path`` in a dictionary of the caller's own, the metadata, and the file if it is shared.

        The first who asks reads it. Raises what ``read`` raises, and ``OSError`` when there is no such file.
        """
        key = FileKey.of(path)
        with self._opening.setdefault(key.path, threading.Lock()):
            found = self._files.get(key)
            ledger = self.ledgers.get()
            ledger.loaded(avoided=found is not None)
            if found is not None:
                found.asked.add(str(path))
                return found.values(), found.metadata, found
            # Tensors made in inference mode could not be used outside of it.
            with torch.inference_mode(mode=False), torch.no_grad():
                values, metadata = read()
                if not isinstance(values, dict) or FileKey.of(path) != key:
                    return values, metadata, None
                found = File(key, values, metadata, self.memory)
                found.asked.add(str(path))
            if self.witness is not None:
                self.witness.read(found)
            weakref.finalize(found, ledger.evicted).atexit = False
            for tensor in found.sealed:
                self._made[tensor.untyped_storage().data_ptr()] = tensor
            for address in found.storages:
                self._by_storage[address] = found
            self._files[key] = found
            return found.values(), metadata, found

    def file_of(self, tensor: torch.Tensor) -> File | None:
        """The file whose memory ``tensor`` looks at."""
        if tensor.device.type != "cpu":
            return None
        return self._by_storage.get(tensor.untyped_storage().data_ptr())

    def is_master(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` looks at memory that others may look at too."""
        return tensor.device.type == "cpu" and (
            self.file_of(tensor) is not None or tensor.untyped_storage().data_ptr() in self._made
        )

    def master(self, source: torch.Tensor, dtype: torch.dtype, origin: tuple[Any, ...] = ()) -> torch.Tensor:
        """The one host tensor that stands for ``source`` in ``dtype``, stored row by row and never to be written.

        ``origin`` says where a tensor comes from that a loader computed: two of those are one master when their
        origin and their contents are the same.
        """
        file = self.file_of(source)
        # A mapped file is the same bytes wherever it is mapped; all else may lie where another tensor lay before.
        certain = file is not None and file.mapped
        if (before := getattr(source, _HISTORY, None)) is not None:
            key: tuple[Any, ...] = (*before, dtype)
        elif file is None:
            key = ("computed", origin, tuple(source.shape), dtype)
        elif source.dtype == dtype and source.is_contiguous() and source.data_ptr() % dtype.itemsize == 0:
            return source
        else:
            place = source.untyped_storage().data_ptr() - (file.region.start if file.region else 0)
            key = (file.key, place, source.storage_offset(), tuple(source.shape), source.stride(), source.dtype, dtype)
        with torch.inference_mode(mode=False), torch.no_grad(), self._making if file is None else file.making:
            found = self._masters.get(key)
            if found is not None and (certain or torch.equal(found, source.to(dtype))):
                return found
            made = self.memory.copy(source, dtype)
            setattr(made, _HISTORY, key)
            self._masters[key] = made
            self._made[made.untyped_storage().data_ptr()] = made
        if self.witness is not None:
            self.witness.made(made, key)
        with self._counting:
            self.conversions += 1
        if certain:
            # Read once for the conversion and not needed since.
            pages.give_back(source.untyped_storage().data_ptr(), source.untyped_storage().nbytes())
        return made

    def held(self, files: Sequence[File]) -> Holding:
        """A new entry for one module tree of the current lane."""
        made = Holding(files, self.ledgers.get())
        self._holdings[next(self._numbers)] = made
        return made

    def places(self, lane: int) -> list[tuple[torch.nn.Module, str]]:
        """Every parameter of the lane's living models that was a master once."""
        return [
            (module, name)
            for holding in _alive(self._holdings)
            if holding.lane == lane
            for reference, name in list(holding.places)
            if (module := reference()) is not None
        ]

    def files(self) -> list[File]:
        """Those some module uses."""
        return _alive(self._files)

    def written(self) -> list[str]:
        """Look for masters that somebody wrote, and put them right; the paths of the files they are of.

        A page that was written with what stood there before is put back without a word. Nothing is found where
        masters are read-only, or where the system does not say what was written.
        """
        if self.protect or not pages.visible():
            return []
        with self._inspecting:
            files, made = self.files(), _alive(self._made)
            found = [changed for start, end in _stretches(files, made) for own in pages.own(start, end)
                     if (changed := pages.undo(*own)) is not None]
            return sorted({path for changed in found for path in _paths(changed, files, made) or [UNKNOWN]})

    def lanes_over(self, paths: Sequence[str]) -> set[int]:
        """Lanes with living models over one of these files."""
        return {
            holding.lane for holding in _alive(self._holdings)
            if holding.lane is not None
            and (UNKNOWN in paths or any(file.key.path in paths for file in holding.files))
        }

    def paths_of(self, lane: int) -> set[str]:
        """Paths, as they were asked for, of the files that the lane's living models were made of."""
        mine = [holding for holding in _alive(self._holdings) if holding.lane == lane]
        return {path for holding in mine for file in holding.files for path in tuple(file.asked)}

    def describe(self) -> list[dict[str, Any]]:
        """Every file some module uses: its name, bytes, whether it is mapped, and the lanes with models over it."""
        return [
            {"file": Path(file.key.path).name, "bytes": file.nbytes, "mapped": file.mapped,
             "gpus": sorted(self.lanes_over([file.key.path]))}
            for file in self.files()
        ]

    def snapshot(self) -> Snapshot:
        """What there is now."""
        files = self.files()
        by_lane: dict[int | None, Held] = {}
        for holding in _alive(self._holdings):
            old = by_lane.get(holding.lane, Held())
            by_lane[holding.lane] = Held(
                old.trees + 1, old.mapped + holding.mapped, old.anonymous + holding.anonymous
            )
        counts = {lane: (book.loads, book.avoided) for lane, book in self.ledgers.items() if book.loads + book.avoided}
        return Snapshot(
            files=len(files),
            mapped=sum(file.nbytes for file in files if file.mapped),
            anonymous=sum(file.nbytes for file in files if not file.mapped)
            + sum(tensor.nbytes for tensor in _alive(self._masters)),
            loads=sum(loads for loads, _ in counts.values()),
            avoided=sum(avoided for _, avoided in counts.values()),
            conversions=self.conversions,
            by_lane=by_lane,
            loads_by_lane=counts,
        )


def _alive(table: WeakValueDictionary[Any, T]) -> list[T]:
    # One step under the interpreter lock: other threads add entries, finalizers drop them.
    return [value for reference in table.valuerefs() if (value := reference()) is not None]


def _stretches(files: Sequence[File], made: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Addresses of whole pages that hold masters, those that touch as one."""
    parts = [(file.region.start, file.region.end) for file in files if file.region is not None]
    for tensor in made:
        if not getattr(tensor, SEALED, False):
            continue
        start, end = _bytes(tensor)
        parts.append((start // pages.PAGE * pages.PAGE, -(-end // pages.PAGE) * pages.PAGE))
    found: list[tuple[int, int]] = []
    for start, end in sorted(parts):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def _paths(changed: tuple[int, int], files: Sequence[File], made: Sequence[torch.Tensor]) -> list[str]:
    """The files whose masters lie in these bytes."""
    start, end = changed
    found = [file.key.path for file in files
             if any(start < address + size and address < end for address, size in file.storages.items())]
    for tensor in made:
        history = getattr(tensor, _HISTORY, ())
        at, to = _bytes(tensor)
        if history and start < to and at < end:
            found += [key.path for key in _keys(history)]
    return found


def _keys(history: tuple[Any, ...]) -> list[FileKey]:
    """The files a converted or computed master was made from."""
    return [
        key for part in history
        for key in (_keys(part) if isinstance(part, tuple) else [part] if isinstance(part, FileKey) else [])
    ]
