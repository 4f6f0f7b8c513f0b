"""Host memory of our own whose writes can be seen and undone: private mappings of nameless files.

A private mapping of a file shows the file's bytes until somebody writes; the kernel then gives that page a copy of
its own, says so in ``/proc/self/pagemap``, and brings the file's bytes back when the copy is given back. So what a
model file on disk can do, memory that was computed can do too. Linux only; elsewhere it is ordinary memory.
"""

import ctypes
import logging
import mmap
import os
import sys
import threading
import weakref
from typing import Any, Final

import torch

from backend.overlay.weights import pages

ALIGNMENT: Final = 64
SMALL: Final = 64 * 1024
"""Bytes; what is smaller shares a mapping with others, for the kernel allows a process some 65,000 of them."""
CHUNK: Final = 1024 * 1024
SEALED: Final = "_weights_sealed"
"""Attribute of a tensor in such memory: giving its pages back brings its bytes back, which elsewhere loses them."""

log = logging.getLogger("backend.overlay")


class Memory:
    """Makes such memory; ``protect`` maps it read-only, so that a write ends the process at that instruction."""

    def __init__(self, protect: bool) -> None:
        self.protect = protect
        self.can = True
        """Whether this process gets such memory; where it does not, it is ordinary memory."""
        self._lock = threading.Lock()
        self._chunk: _Chunk | None = None

    def copy(self, source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``source`` in ``dtype``, stored row by row."""
        size = source.numel() * dtype.itemsize
        if sys.platform == "linux" and size and self.can:
            try:
                made = _large(source, dtype, self.protect) if size >= SMALL else self._small(source, dtype, size)
            except OSError as error:
                # A system without such files, or a process that may have no more mappings.
                self.can = False
                log.warning("weights: a custom node that writes them in place goes unnoticed: %s", error)
            else:
                setattr(made, SEALED, True)
                return made
        return source.to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)

    def _small(self, source: torch.Tensor, dtype: torch.dtype, size: int) -> torch.Tensor:
        data = bytes(content(source.to(dtype)))
        with self._lock:
            if self._chunk is None or not self._chunk.fits(size):
                self._chunk = _Chunk(self.protect)
            return self._chunk.put(data, dtype).view(source.shape)

    def adopt(self, values: dict[str, Any]) -> list[torch.Tensor]:
        """Move the tensors in ``values``, in place, into such memory; returns one tensor for each storage.

        Tensors that share a storage share it afterwards, each at its own place in it.
        """
        moved: dict[int, torch.Tensor] = {}
        self._adopt(values, moved)
        return list(moved.values())

    def _adopt(self, values: dict[str, Any], moved: dict[int, torch.Tensor]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                self._adopt(value, moved)
            elif _movable(value):
                storage = value.untyped_storage()
                place = storage.data_ptr()
                if place not in moved:
                    moved[place] = self.copy(torch.empty(0, dtype=torch.uint8).set_(storage), torch.uint8)
                whole = moved[place]
                # A view by bytes would need sizes that divide; the storage itself can be looked at as any type.
                own = torch.empty(0, dtype=value.dtype).set_(
                    whole.untyped_storage(), value.storage_offset(), value.shape, value.stride()
                )
                parameter = type(value) is torch.nn.Parameter
                values[name] = torch.nn.Parameter(own, requires_grad=value.requires_grad) if parameter else own


def content(tensor: torch.Tensor) -> memoryview:
    """The bytes of a host tensor, row by row."""
    bytes_only: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(bytes_only)


def _movable(value: Any) -> bool:
    return (
        type(value) in {torch.Tensor, torch.nn.Parameter}
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.is_quantized
        and value.numel() > 0
    )


def _large(source: torch.Tensor, dtype: torch.dtype, protect: bool) -> torch.Tensor:
    size = source.numel() * dtype.itemsize
    file = os.memfd_create("weights", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, size)
        with mmap.mmap(file, size) as window:
            copy = torch.frombuffer(window, dtype=dtype).view(source.shape)
            copy.copy_(source)
            del copy
        view = _mapped(file, size, protect)
    finally:
        os.close(file)
    return torch.frombuffer(view, dtype=dtype).view(source.shape)


class _Chunk:
    """One mapping for many small tensors; it goes with the last of them."""

    def __init__(self, protect: bool) -> None:
        self._file = os.memfd_create("weights", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, CHUNK)
        self._view = _mapped(self._file, CHUNK, protect)
        self._used = 0

    def fits(self, size: int) -> bool:
        return self._used + size <= CHUNK

    def put(self, data: bytes, dtype: torch.dtype) -> torch.Tensor:
        at = self._used
        # Written to the file behind the mapping: nobody has looked at these bytes, so its page is still the file's.
        os.pwrite(self._file, data, at)
        self._used = -(-(at + len(data)) // ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(self._view, dtype=dtype, count=len(data) // dtype.itemsize, offset=at)


def _mapped(file: int, size: int, protect: bool) -> Any:
    """A private mapping as a buffer, unmapped when nobody holds it. (Python's own keeps a file open for each.)"""
    address = pages.map_private(file, size, writable=not protect)
    view = (ctypes.c_char * size).from_address(address)
    weakref.finalize(view, pages.unmap, address, size).atexit = False
    return view
