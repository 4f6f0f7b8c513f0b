"""What one gateway leaves to the next: the sole right to a folder, and which backend is running.

Owns a lock that the system gives back when its holder dies, and a small file beside it. A backend that watches the lock
knows whether anybody is left to serve. Must never start or end anything.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gateway.fleet.life import name_of

_PATIENCE: Final = 2.0
"""Seconds to try for the lock: a backend that looks whether it is held, holds it for that moment."""


class HeldError(Exception):
    """Another gateway has the folder; ``str()`` is a line for the user."""


@dataclass(frozen=True)
class Life:
    """One running backend."""

    pid: int
    name: str
    """``life.name_of`` its process."""
    argv: tuple[str, ...]
    booted: float = 0.0
    """When it became ready, in seconds since 1970; 0 before."""
    ready: dict[str, Any] | None = None
    """What its ready line said."""


class Estate:
    """The folder and what is in it."""

    def __init__(self, folder: Path, index: int = 0) -> None:
        """``index``: which of several backends is noted here; one of them takes the folder for all."""
        self._folder = folder.absolute()
        self._lock: int | None = None
        self._name = f"backend{index}" if index else "backend"

    @property
    def lock(self) -> Path:
        """The file that is locked while a gateway is there."""
        return self._folder / "gateway.lock"

    def output(self, name: str) -> Path:
        """Where the backend writes its ``stdout`` or ``stderr``: a pipe would break with the gateway that holds it."""
        return self._folder / f"{self._name}.{name}"

    def take(self) -> None:
        """Take the folder until this process ends or ``leave`` is called; raises ``HeldError`` or ``OSError``."""
        import fcntl  # noqa: PLC0415 (not there on every platform)

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                os.close(lock)
                raise HeldError(
                    f"another gateway uses the journal in {self._folder}; stop it, or name another folder in "
                    "[jobs] journal"
                ) from None
            self._lock = lock
            return

    def leave(self) -> None:
        """Give the folder up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, life: Life | None) -> None:
        """Note which backend runs; ``None``: none does."""
        file = self._folder / f"{self._name}.json"
        if life is None:
            file.unlink(missing_ok=True)
            return
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(life)), encoding="utf-8")
        fresh.replace(file)

    def read(self) -> Life | None:
        """The backend that was noted, if it is still alive."""
        return _read(self._folder / f"{self._name}.json")

    def strays(self, backends: int) -> list[Life]:
        """Backends alive that were noted by a gateway which had more than ``backends``; their notes are taken away."""
        known = {"backend.json", *(f"backend{index}.json" for index in range(1, backends))}
        found: list[Life] = []
        for file in self._folder.glob("backend*.json"):
            if file.name not in known:
                if (life := _read(file)) is not None:
                    found.append(life)
                file.unlink(missing_ok=True)
        return found


def _read(file: Path) -> Life | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        life = Life(**{**found, "argv": tuple(found["argv"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return life if life.name and name_of(life.pid) == life.name else None
