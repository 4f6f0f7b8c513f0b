"""Whose line a line is: what a job's code prints or logs begins with the lane and the job it was written for.

Owns that mark and the streams that set it. Knows neither body, nor who reads the lines.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final, TextIO, cast
from urllib.parse import quote

from backend.context import current_job, current_lane

MOST: Final = 256
"""Characters of an id in a mark; clients choose their ids, and every line would carry it."""

_BEGINNING: Final = re.compile(r"(?<=[\r\n])(?=[^\r\n])")


class MarkedLines:
    """A text stream in which each line that a job writes says so; everything else passes as it is.

    Carriage returns begin lines, too: progress bars are drawn with them. Whoever asks for more than ``write`` gets the
    stream itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open = threading.local()

    def write(self, text: str) -> int:
        """Write it; a job's lines get their mark where they begin."""
        job = current_job()
        self._stream.write(text if job is None else self._marked(text, job))
        if text:
            self._open.by = None if text[-1] in "\r\n" else (job,)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them all."""
        for line in lines:
            self.write(line)

    def _marked(self, text: str, job: str) -> str:
        mark = mark_of(job, current_lane())
        goes_on = getattr(self._open, "by", None) == (job,) or text[:1] in {"", "\r", "\n"}
        return ("" if goes_on else mark) + _BEGINNING.sub(lambda _: mark, text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mark_of(job: str, lane: int | None) -> str:
    """How a line of this job begins. The id is percent-encoded, so that a mark ends where it seems to."""
    where = "" if lane is None else f"lane {lane} "
    return f"[{where}job {quote(job[:MOST], safe='')}] "


def install() -> None:
    """Have everything that is printed and logged from now on marked; loggers that hold a stream of ours are told."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        marked = cast("TextIO", MarkedLines(stream))
        setattr(sys, name, marked)
        for handler in _handlers():
            if handler.stream is stream:
                handler.setStream(marked)


def _handlers() -> "Iterator[logging.StreamHandler[TextIO]]":
    """Every handler that writes to a stream, of the root and of all loggers."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
