"""The ComfyUI versions the overlay knows: one module per version, holding whatever is peculiar to it.

Owns the choice, by version number and by what the code has; nobody else asks for a version number.
"""

import re
from pathlib import Path

from backend.overlay.versions import v0_3_64, v0_8_0, v0_33_0
from backend.overlay.versions.version import Version

__all__ = ["Version", "choose", "known", "later", "parse", "unknown_words"]


def parse(number: str) -> tuple[int, ...]:
    """``0.3.64`` → ``(0, 3, 64)``; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in number.split("."))


def known() -> list[Version]:
    """All known versions, oldest first."""
    found = [v0_3_64.VERSION, v0_8_0.VERSION, v0_33_0.VERSION]
    return sorted(found, key=lambda version: parse(version.number))


def choose(number: str, folder: Path | None = None) -> tuple[Version, bool]:
    """The version to treat ``number`` as, and whether it is that very one.

    An untried number is treated as the nearest older version, but as a later one whose marks the code in ``folder``
    has: with an older one's arguments it would run in a configuration that nobody tried.
    """
    candidates = known()
    for version in candidates:
        if version.number == number:
            return version, True
    older = [version for version in candidates if parse(version.number) <= parse(number)]
    nearest = older[-1] if older else candidates[0]
    marked = [] if folder is None else [version for version in later(nearest) if _has_marks(folder, version)]
    return (marked[-1] if marked else nearest), False


def later(version: Version) -> list[Version]:
    """Known versions after this one, oldest first."""
    return [other for other in known() if parse(other.number) > parse(version.number)]


def unknown_words(folder: Path, version: Version) -> list[str]:
    """Which of the arguments that ``version`` is started with the ComfyUI in ``folder`` does not know."""
    known_there = _source(folder, "comfy.cli_args")
    return [word for word, _ in version.adds if not re.search(rf"""["']{word}["']""", known_there)]


def _has_marks(folder: Path, version: Version) -> bool:
    return any(
        re.search(rf"^(?:def |class )?{name}\b", _source(folder, module), re.MULTILINE)
        for module, _, name in (mark.partition(":") for mark in version.marks)
    )


def _source(folder: Path, module: str) -> str:
    """The source of a module in the checkout, read and not run; empty without one."""
    file = folder.joinpath(*module.split(".")).with_suffix(".py")
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
