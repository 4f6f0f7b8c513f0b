"""The ComfyUI versions the overlay knows: one module per version, holding whatever is peculiar to it.

Owns the choice by version number; nobody else asks for a version number.
"""

from backend.overlay.versions import v0_3_64, v0_8_0, v0_33_0
from backend.overlay.versions.version import Version

__all__ = ["Version", "choose", "known", "parse"]


def parse(number: str) -> tuple[int, ...]:
    """``0.3.64`` → ``(0, 3, 64)``; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in number.split("."))


def known() -> list[Version]:
    """All known versions, oldest first."""
    found = [v0_3_64.VERSION, v0_8_0.VERSION, v0_33_0.VERSION]
    return sorted(found, key=lambda version: parse(version.number))


def choose(number: str) -> tuple[Version, bool]:
    """The version to treat ``number`` as, and whether it is that very one."""
    candidates = known()
    for version in candidates:
        if version.number == number:
            return version, True
    older = [version for version in candidates if parse(version.number) <= parse(number)]
    return (older[-1] if older else candidates[0]), False
