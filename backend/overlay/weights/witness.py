"""A test's eye on the masters: their bytes hashed when they are made, and again when asked.

Holds what it has hashed, so that nothing is let go unseen: with it, memory only grows. ``COMFY_WEIGHTS_DIGESTS=1``
switches it on.
"""

import hashlib
import threading
from typing import Any, Final

import torch

from backend.overlay.weights.files import File
from backend.overlay.weights.sealed import content

SWITCH: Final = "COMFY_WEIGHTS_DIGESTS"


class Witness:
    """Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: list[tuple[File, str]] = []
        self._made: list[tuple[torch.Tensor, str, Any]] = []

    def read(self, file: File) -> None:
        """A file was read, and nobody has its tensors yet."""
        digest = file.digest()
        with self._lock:
            self._files.append((file, digest))

    def made(self, master: torch.Tensor, origin: Any) -> None:
        """A master was converted or computed."""
        digest = _digest(master)
        with self._lock:
            self._made.append((master, digest, origin))

    def __len__(self) -> int:
        """Files and masters that were hashed."""
        with self._lock:
            return len(self._files) + len(self._made)

    def changed(self) -> list[str]:
        """What has other bytes now."""
        with self._lock:
            files, made = list(self._files), list(self._made)
        found = [file.key.path for file, digest in files if file.digest() != digest]
        return found + [str(origin) for master, digest, origin in made if _digest(master) != digest]


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(content(tensor), digest_size=16).hexdigest()
