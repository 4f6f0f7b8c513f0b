"""How the log is written: for people, or one JSON object a line for programs.

Owns both forms. Must never know what happened; a ``Line`` carries its words and its fields.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

TEXT: Final = "text"
JSON: Final = "json"
RAW: Final = "gateway.access"
"""The logger whose records are whole lines already, one or many."""

# The backend's number where there are several, then how a backend begins the lines of a job (its contract).
_OF_A_JOB: Final = re.compile(r"((?:\d+ \| )?)\[(?:lane (\d+) )?job ([^\s\]]+)\] ")


class Line:
    """One thing that happened: as words, and as fields for programs."""

    __slots__ = ("fields", "text")

    def __init__(self, text: str, **fields: Any) -> None:
        self.text = text
        self.fields = fields

    def __str__(self) -> str:
        return self.text


class TextLines(logging.Formatter):
    """Every line of a record, not only its first, says whose it is."""

    def __init__(self) -> None:
        super().__init__("gateway | %(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        return super().format(record).replace("\n", "\ngateway | ")


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (seconds since 1970), ``level``, ``logger``, ``message``, and a ``Line``'s fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        if record.name == RAW:
            return record.getMessage()
        told: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.msg, Line):
            told |= record.msg.fields
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return dumped(told)


def backend_text(line: str) -> str:
    """A line of a backend, for people."""
    return f"backend | {line}"


def backend_json(line: str) -> str:
    """A line of a backend, for programs; a job's has its ``prompt_id``, and the ``lane`` it ran on."""
    told: dict[str, Any] = {"time": round(time.time(), 3), "level": "info", "logger": "backend", "message": line}
    if (mark := _OF_A_JOB.match(line)) is not None:
        told |= {"message": mark[1] + line[mark.end() :], "prompt_id": unquote(mark[3])}
        if mark[2] is not None:
            told["lane"] = int(mark[2])
    return dumped(told)


def dumped(told: Mapping[str, Any]) -> str:
    """One object on one line, in ASCII so that no reader can take a part of it for a line's end."""
    return json.dumps(told, separators=(",", ":"))
