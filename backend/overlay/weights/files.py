"""One weights file that was read once: its identity on disk, its tensors, and their protection.

Owns the masters of one file. They live as long as this object does, and a module that uses one holds it. Knows
nothing of who reads files or of modules.
"""

import contextlib
import copy
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backend.overlay.weights import pages
from backend.overlay.weights.sealed import Memory, content


@dataclass(frozen=True)
class FileKey:
    """What makes two paths the same contents: where they lead, when it was changed (ns), and its size (bytes)."""

    path: str
    changed: int
    size: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "FileKey":
        """Raises ``OSError`` when there is no such file."""
        real = Path(path).resolve()
        status = real.stat()
        return cls(str(real), status.st_mtime_ns, status.st_size)


def tensors(values: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every plain host tensor with its name; old files keep them in dictionaries inside each other."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            if type(value) in {torch.Tensor, torch.nn.Parameter} and value.device.type == "cpu" and _dense(value):
                yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in tensors(value))


def _dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


class File:
    """The masters of one file, with its own metadata.

    A file that is mapped stays as it is; what was read into ordinary memory moves into ``memory``. Where that
    protects, both are read-only.
    """

    def __init__(self, key: FileKey, values: dict[str, Any], metadata: Any, memory: Memory) -> None:
        self.key = key
        self.asked: set[str] = set()
        """Paths by which it was asked for; ``key`` has where they lead."""
        self.metadata = metadata
        self.region = _region(_storages(values), key)
        self.sealed = [] if self.region is not None else memory.adopt(values)
        """Masters in memory of our own, one for each storage."""
        self._values = values
        self.storages = _storages(values)
        self.nbytes = sum(self.storages.values())
        self.protected = False
        self.making = threading.RLock()
        if self.region is not None:
            pages.read_ahead(self.region)
            self.protected = memory.protect and pages.protect(self.region, writable=False)
        if self.protected and self.region is not None:
            # Tensors of the file may outlive this object in somebody's hands, who may then write them as ever.
            weakref.finalize(self, pages.protect, self.region, writable=True).atexit = False

    @property
    def mapped(self) -> bool:
        """The masters are pages of the file itself: memory the system can take back."""
        return self.region is not None

    def values(self) -> Any:
        """A dictionary of the caller's own with the same tensors."""
        return _dictionary(self._values)

    def written(self) -> int | None:
        """Bytes of the mapping that were written since; ``None`` where it cannot be known."""
        return None if self.region is None else pages.written(self.region)

    def digest(self) -> str:
        """A hash over the names and bytes of all masters."""
        total = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(tensors(self._values)):
            total.update(name.encode())
            total.update(content(tensor))
        return total.hexdigest()


def _dictionary(values: Mapping[str, Any]) -> Any:
    own = copy.copy(values)
    for name, value in values.items():
        if isinstance(value, dict):
            own[name] = _dictionary(value)  # type: ignore[index]  # a copy of a dictionary is one
    return own


def _storages(values: Mapping[str, Any]) -> dict[int, int]:
    """Address and size in bytes of every storage."""
    found: dict[int, int] = {}
    for _, tensor in tensors(values):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def _region(storages: Mapping[int, int], key: FileKey) -> pages.Region | None:
    """The one mapping all storages lie in, if it is of this very file."""
    if not storages:
        return None
    found = pages.region(next(iter(storages)))
    if found is None or any(address not in found for address in storages):
        return None
    with contextlib.suppress(OSError):
        if Path(found.path).samefile(key.path):
            return found
    return None
