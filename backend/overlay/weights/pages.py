"""Memory mappings of this process: make and find them, make them read-only, see which pages were written.

Owns every call into the C library and ``/proc``. Linux only; elsewhere each function says that it did nothing.
Knows nothing of tensors' meaning.
"""

import ctypes
import mmap
import os
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy

PAGE: Final = mmap.PAGESIZE
_READ: Final = 1
_READ_WRITE: Final = 3
_WILLNEED: Final = 3
_DONTNEED: Final = 4
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LOW: Final = 64 * 1024
_HIGH: Final = 32 * 1024 * 1024
_BLOCK: Final = 1024 * 1024
_MAPS: Final = Path("/proc/self/maps")
_SMAPS: Final = Path("/proc/self/smaps")
_PAGEMAP: Final = Path("/proc/self/pagemap")
_ENTRIES: Final = 64 * 1024
"""Pages asked for in one read."""
_STRETCH: Final = 16 * 1024 * 1024
"""Bytes that are compared at once."""


@dataclass(frozen=True)
class Region:
    """One private mapping of a file: addresses in bytes, the end not included."""

    start: int
    end: int
    path: str

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


def region(address: int) -> Region | None:
    """The private file mapping that holds ``address``; ``None`` for other memory, or where it cannot be known."""
    if sys.platform != "linux":
        return None
    for line in _MAPS.read_text(errors="replace").splitlines():
        head, _, rest = line.partition(" ")
        start, _, end = head.partition("-")
        if int(start, 16) <= address < int(end, 16):
            # permissions, offset, device, inode, path
            fields = rest.split(None, 4)
            private_file = fields[0].endswith("p") and len(fields) == 5 and fields[4].startswith("/")
            return Region(int(start, 16), int(end, 16), fields[4]) if private_file else None
    return None


def written(where: Region) -> int | None:
    """Bytes of the private mapping that somebody wrote; ``None`` where it cannot be known.

    A written page of a private mapping is no longer a page of the file, and the kernel counts it as anonymous.
    """
    if sys.platform != "linux":
        return None
    total, inside = 0, False
    for line in _SMAPS.read_text(errors="replace").splitlines():
        head = line.split(None, 1)[0]
        if not head.endswith(":"):
            start, _, end = head.partition("-")
            inside = where.start < int(end, 16) and int(start, 16) < where.end
        elif inside and head == "Anonymous:":
            total += int(line.split()[1]) * 1024
    return total


def protect(where: Region, writable: bool) -> bool:
    """Whether the mapping now lets itself be written, or not, as asked."""
    return _call("mprotect", where.start, where.end - where.start, _READ_WRITE if writable else _READ)


def read_ahead(where: Region) -> bool:
    """Ask for the file's pages; the reading goes on beside the caller."""
    return _call("madvise", where.start, where.end - where.start, _WILLNEED)


def give_back(address: int, size: int) -> bool:
    """Let go of the whole pages inside: a file mapping nobody wrote, which comes back on the next read."""
    start = -(-address // PAGE) * PAGE
    end = (address + size) // PAGE * PAGE
    return end > start and _call("madvise", start, end - start, _DONTNEED)


def map_private(file: int, size: int, writable: bool) -> int:
    """The address of a new private mapping of an open file; raises ``OSError``."""
    library = _library()
    library.mmap.restype = ctypes.c_void_p
    kind = _READ_WRITE if writable else _READ
    address = library.mmap(
        None, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_int(mmap.MAP_PRIVATE), ctypes.c_int(file),
        ctypes.c_long(0),
    )
    if address in {None, ctypes.c_void_p(-1).value}:
        number = ctypes.get_errno()
        raise OSError(number, f"{size} bytes cannot be mapped: {os.strerror(number)}")
    return int(address)


def unmap(address: int, size: int) -> None:
    """Take a mapping of ``map_private`` away."""
    _library().munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def visible() -> bool:
    """Whether this system says which pages were written."""
    return sys.platform == "linux" and os.access(_PAGEMAP, os.R_OK)


def own(start: int, end: int) -> list[tuple[int, int]]:
    """The parts, whole pages, of a private mapping that are no longer the file's: somebody wrote there.

    Source: ``/proc/self/pagemap``, 8 bytes a page: bit 63 present, 62 swapped, 61 page of a file or shared memory.
    """
    found: list[tuple[int, int]] = []
    first, last = start // PAGE, -(-end // PAGE)
    with _PAGEMAP.open("rb", buffering=0) as file:
        for at in range(first, last, _ENTRIES):
            count = min(_ENTRIES, last - at)
            entries = numpy.frombuffer(os.pread(file.fileno(), count * 8, at * 8), dtype=numpy.uint64)
            there = (entries >> numpy.uint64(62)) != 0
            files = (entries >> numpy.uint64(61)) & numpy.uint64(1) != 0
            for index in numpy.flatnonzero(there & ~files).tolist():
                page = (at + index) * PAGE
                if found and found[-1][1] == page and page - found[-1][0] < _STRETCH:
                    found[-1] = (found[-1][0], page + PAGE)
                else:
                    found.append((page, page + PAGE))
    return found


def undo(start: int, end: int) -> tuple[int, int] | None:
    """Bring the file's bytes back in these whole pages; the bytes that were others, from the first to the last."""
    before = numpy.frombuffer(ctypes.string_at(start, end - start), dtype=numpy.uint8)
    give_back(start, end - start)
    now = numpy.frombuffer(ctypes.string_at(start, end - start), dtype=numpy.uint8)
    other = numpy.flatnonzero(before != now)
    return None if other.size == 0 else (start + int(other[0]), start + int(other[-1]) + 1)


class Passing:
    """A time in which what is allocated is mostly given back soon: parameters that make room for masters.

    glibc takes blocks below a threshold out of a heap for each thread, and the threshold grows to 32 MiB by itself.
    Heaps keep the holes, later work wanders through them and makes them resident one by one: measured, up to 240 MiB
    for each lane. With a low threshold such blocks are mappings of their own, and are gone when they are freed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and _has_thresholds():
                _threshold(_LOW)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and _has_thresholds():
                _threshold(_HIGH)
                trim()


def trim() -> None:
    """Give the system the holes in glibc's heaps; there is one heap for each thread, and each is locked in turn."""
    _allocator("malloc_trim", ctypes.c_size_t(0))


def trim_own() -> None:
    """Give the system the free end of the calling thread's heap, which ``trim`` leaves where it is.

    glibc looks at it when a large block is freed in that thread, and keeps up to a threshold: measured, 30 MiB after a
    picture.
    """
    if not _has_thresholds():
        return
    library = _library()
    library.malloc.restype = ctypes.c_void_p
    _allocator("mallopt", ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(_LOW))
    library.free(ctypes.c_void_p(library.malloc(ctypes.c_size_t(_BLOCK))))
    _allocator("mallopt", ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(2 * _HIGH))


@cache
def _has_thresholds() -> bool:
    """Whether this is glibc; from here on its thresholds are those that it grows to by itself."""
    found = sys.platform == "linux" and hasattr(_library(), "mallopt") and hasattr(_library(), "malloc_trim")
    if found:
        _threshold(_HIGH)
    return found


def _threshold(size: int) -> None:
    # Setting one stops both from adapting, so the other is set to what it would have become: twice as much.
    _allocator("mallopt", ctypes.c_int(_MMAP_THRESHOLD), ctypes.c_int(size))
    _allocator("mallopt", ctypes.c_int(_TRIM_THRESHOLD), ctypes.c_int(2 * _HIGH))


def _allocator(name: str, *arguments: Any) -> None:
    """One call of glibc's allocator; nothing where another one is in use."""
    function = getattr(_library(), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, address: int, size: int, argument: int) -> bool:
    if sys.platform != "linux":
        return False
    function = getattr(_library(), name)
    return bool(function(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(argument)) == 0)
