"""On which line a key of a TOML document stands, for messages; the values themselves are ``tomllib``'s business.

Pure. Expects text that ``tomllib`` has accepted; on any other it may miss keys, but ends and does not raise.
"""

import re
import tomllib
from bisect import bisect_right

Path = tuple[str, ...]

_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
_SPACE = re.compile(r"[ \t]+")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|\#[^\n]*)+")
_VALUE_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[][{}]|\n|[^]["'#{}\n]+|.''',
    re.DOTALL,
)


def locate(text: str) -> dict[Path, int]:
    """Line (from 1) of every table and key by its path; keys inside an inline table stand at its key.

    The second table of an array ``[[name]]`` has the path ``name, 2``, the first just ``name``.
    """
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    found: dict[Path, int] = {}
    times: dict[Path, int] = {}
    table: Path = ()
    at = 0
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        header = text[at] == "["
        repeats = text.startswith("[[", at)
        path, after = _read_path(text, at + 1 + repeats if header else at)
        if not path:
            at = _skip_line(text, at)
            continue
        if repeats and path:
            times[path] = times.get(path, 0) + 1
            path = (*path, str(times[path])) if times[path] > 1 else path
        table = path if header else table
        whole = path if header else table + path
        line = bisect_right(starts, at)
        for depth in range(1, len(whole) + 1):
            found.setdefault(whole[:depth], line)
        at = _skip_line(text, after) if header else _skip_value(text, after)
    return found


def line_of(found: dict[Path, int], path: Path) -> int:
    """Line of a path, else of the nearest thing around it; 0 when nothing of it is in the document."""
    while path and path not in found:
        path = path[:-1]
    return found.get(path, 0)


def _read_path(text: str, at: int) -> tuple[Path, int]:
    """A dotted key from ``at``, and where it ends."""
    parts: list[str] = []
    if space := _SPACE.match(text, at):
        at = space.end()
    while match := _KEY.match(text, at):
        parts.append(_plain(match[0]))
        at = match.end()
        dot = _DOT.match(text, at)
        if dot is None:
            break
        at = dot.end()
    return tuple(parts), at


def _plain(key: str) -> str:
    if key[0] not in "\"'":
        return key
    try:
        return str(tomllib.loads(f"key = {key}")["key"])
    except tomllib.TOMLDecodeError:
        return key


def _skip_line(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def _skip_value(text: str, at: int) -> int:
    """The end of the value that starts before or at the equals sign at ``at``: a line end outside all brackets."""
    depth = 0
    while at < len(text):
        match = _VALUE_TOKEN.match(text, at)
        if match is None:
            return len(text)
        at = match.end()
        piece = match[0]
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        elif piece == "\n" and depth <= 0:
            return at
    return at
