"""Output numbers between processes that write into one folder: a number that one process holds, no other can get.

Owns one small file in the output folder, of which a process locks one byte for each number, and one for each place that
it counts in: the system gives the locks back when the process dies, so nothing is left behind.
Knows nothing of pictures, nor of lanes, which share a process.
"""

import os
import zlib
from pathlib import Path
from typing import Final

FILE: Final = ".comfy-gateway-numbers"
_NUMBERS: Final = 1 << 24
"""Room for each place; two places that meet in it only pass over a number."""

Place = tuple[str, str]


class Claims:
    """Numbers that this process holds. Without a ``folder``, or where the system has no such locks, all are free."""

    def __init__(self, folder: Path | None) -> None:
        self._file = -1 if folder is None else _open(folder)

    @property
    def shared(self) -> bool:
        """Whether other processes may write into the folder."""
        return self._file >= 0

    def claim(self, place: Place, number: int) -> bool:
        """Whether the number is this process's now, if no file has it yet."""
        return self._file < 0 or (_lock(self._file, _byte(place, number)) and not self._used(place, number))

    def release(self, place: Place, number: int) -> None:
        """Give a number back: its file is on the disk, or will never be."""
        if self._file >= 0:
            _unlock(self._file, _byte(place, number))

    def hold(self, place: Place, alone: bool | None) -> bool:
        """Whether this process has the place now: alone, or with others that share it; ``None`` leaves it."""
        if self._file < 0:
            return True
        import fcntl  # noqa: PLC0415 (not there on every platform)

        if alone is None:
            _unlock(self._file, _byte(place, 0))
            return True
        return _lock(self._file, _byte(place, 0), fcntl.LOCK_EX if alone else fcntl.LOCK_SH)

    def _used(self, place: Place, number: int) -> bool:
        """Whether another process has written a file with this number since the folder was last read."""
        folder, prefix = place
        for name in os.listdir(folder):  # noqa: PTH208 (names are all that is needed)
            rest = os.path.normcase(name)
            if rest.startswith(f"{prefix}_"):
                digits = rest[len(prefix) + 1 :].partition("_")[0]
                if digits.isdigit() and int(digits) == number:
                    _unlock(self._file, _byte(place, number))
                    return True
        return False


def _byte(place: Place, number: int) -> int:
    return zlib.crc32("\0".join(place).encode("utf-8", "surrogatepass")) * _NUMBERS + number % _NUMBERS


def _open(folder: Path) -> int:
    try:
        import fcntl  # noqa: F401, PLC0415 (not there on every platform)
    except ImportError:
        return -1
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _lock(file: int, byte: int, kind: int | None = None) -> bool:
    import fcntl  # noqa: PLC0415 (not there on every platform)

    try:
        fcntl.lockf(file, (kind or fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, byte, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(file: int, byte: int) -> None:
    import fcntl  # noqa: PLC0415 (not there on every platform)

    fcntl.lockf(file, fcntl.LOCK_UN, 1, byte, os.SEEK_SET)
