"""The last lines that a backend has written, for those who look after it from afar.

Pure. Owns how many lines are kept, how long one may be, and that no credential is among them.
"""

import re
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

KEPT: Final = 500
"""Lines of each backend."""
LONGEST: Final = 2000
"""Characters of one line."""

# Keys of ours, and what is commonly a credential in other programs' lines: they tell more than they should.
_SECRETS: Final = (
    (re.compile(r"\bcgw_[A-Za-z0-9_-]+"), "cgw_***"),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1 ***"),
    (
        re.compile(
            r"\b((?:[a-z0-9]+[-_]){0,4}(?:api[-_]?key|token|secret|password|passwd)(?:[-_][a-z0-9]+){0,3}[\"']?\s*[=:]\s*[\"']?)"
            r"[^\s\"'&,;]{4,}",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(://[^/\s:@]+:)[^/\s@]+@"), r"\1***@"),
    (re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}"), "***"),
)


class Line(NamedTuple):
    """One line."""

    number: int
    """Counted from 1, over all lives of the backend."""
    text: str


class Tail:
    """The last lines of one backend."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._number = 0

    @property
    def newest(self) -> int:
        """The number of the last line; 0 before the first."""
        return self._number

    def add(self, text: str) -> None:
        """Keep a line."""
        self._number += 1
        self._lines.append(Line(self._number, masked(text[:LONGEST])))

    def after(self, number: int) -> list[Line]:
        """The lines that are kept and came after that one, oldest first."""
        if number >= self._number:
            return []
        return [line for line in self._lines if line.number > number]


def passed(line: Callable[[str], None], tail: Tail, name: str) -> Callable[[str], None]:
    """What takes a backend's lines: keeps them, and passes them on behind ``name``."""

    def take(text: str) -> None:
        tail.add(text)
        line(name + text)

    return take


def masked(text: str) -> str:
    """The line without what looks like a credential."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
