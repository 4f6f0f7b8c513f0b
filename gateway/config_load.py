"""From the text of ``config.toml`` to a ``Config``, or to everything that is wrong with it, each with its line.

Owns the walk over tables and keys. The file is read in one function, ``read``; the rest is pure. Never raises but
``ConfigError``, whatever the file holds.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path as File
from typing import Any, get_args, get_origin, get_type_hints

from gateway.config import Backend, Config, Rate
from gateway.settings.lines import Path, line_of, locate
from gateway.settings.rules import findings
from gateway.settings.tables import SECTIONS
from gateway.settings.values import nearest, read_value, type_name
from gateway.spec import Spec

LARGEST_FILE = 1 << 20
"""Bytes; a configuration is a page or two."""

FROM_NGINX = {
    "client_body_timeout": "[timeouts] client_body",
    "client_header_timeout": "[timeouts] client_head",
    "client_max_body_size": "[limits] body",
    "keepalive": "[limits] idle_connections",
    "keepalive_timeout": "[timeouts] client_idle",
    "large_client_header_buffers": "[limits] head",
    "limit_req": "[rate.all] burst and nodelay",
    "limit_req_dry_run": "[rate] dry_run",
    "limit_req_zone": "[rate] key and [rate.all] rate",
    "proxy_connect_timeout": "[timeouts] connect",
    "proxy_pass": "[backend] url",
    "proxy_read_timeout": "[timeouts] read",
    "proxy_send_timeout": "[timeouts] send",
    "send_timeout": "[timeouts] client_write",
    "set_real_ip_from": "[forwarded] trusted_proxies",
    "worker_connections": "[listen] max_connections",
}
"""nginx's directives and the key that does the same here, for those who come from there."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file: ``line`` counts from 1, 0 is the file as a whole; ``key`` is as ``[table] key``."""

    file: str
    line: int
    key: str
    message: str
    warning: bool = False

    def __str__(self) -> str:
        """As compilers write it: ``config.toml:12: [listen] gpu_prots: unknown key; did you mean gpu_ports?``."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, "warning" * self.warning, self.key, self.message) if part)


class ConfigError(Exception):
    """A configuration cannot be used; ``problems`` says all that is wrong, warnings included."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


Change = Callable[[Config], Config]
"""What comes on top of a file (environment, command line); raises ``ValueError`` with a line for the user."""


def unchanged(config: Config) -> Config:
    """Nothing comes on top of the file."""
    return config


def load(path: str | File, change: Change = unchanged) -> tuple[Config, list[Problem]]:
    """Read a file; return its config and the warnings about it, or raise ``ConfigError`` with every problem.

    What is returned, and judged, is the config after ``change``, whose ``ValueError`` passes through.
    """
    config, problems = read(path, change)
    if config is None:
        raise ConfigError(problems)
    return config, problems


def read(path: str | File, change: Change = unchanged) -> tuple[Config | None, list[Problem]]:
    """Read a file; return its config, ``None`` when it has errors, and everything to say about it by line.

    ``change`` as for ``load``.
    """
    name = str(path)
    try:
        with File(path).open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return None, [Problem(name, 0, "", f"cannot be read: {reason}")]
    if len(data) > LARGEST_FILE:
        return None, [Problem(name, 0, "", f"is larger than {LARGEST_FILE} bytes: this is no configuration")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return None, [Problem(name, line, "", "is not UTF-8 from here on")]
    return parse(text, name, change)


def parse(
    text: str, name: str = "config.toml", change: Change = unchanged
) -> tuple[Config | None, list[Problem]]:
    """The same for text that is already here; ``name`` stands in the messages."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return None, [_syntax_problem(text, name, str(error))]
    except (ValueError, RecursionError) as error:
        # tomllib's own limits, which it does not report as errors of the text.
        what = "nests brackets too deep" if isinstance(error, RecursionError) else "holds a number that is too long"
        return None, [Problem(name, 0, "", what)]
    walk = _Walk()
    config = _changed(walk.root(document), change, sound=not walk.wrong)
    lines = locate(text)
    problems = [
        Problem(name, line_of(lines, path), _shown(path, document), message) for path, message in walk.wrong.items()
    ]
    problems += [
        Problem(name, line_of(lines, found.paths[0]), _shown(found.paths[0], document), found.message, found.warning)
        for found in findings(config)
        if not any(_touches(path, walk.wrong) for path in found.paths)
    ]
    problems.sort(key=lambda problem: problem.line)
    return (None if any(not problem.warning for problem in problems) else config), problems


def _changed(config: Config, change: Change, *, sound: bool) -> Config:
    try:
        return change(config)
    except ValueError:
        if sound:
            raise
        return config  # defaults stand where the file could not be read, and the change may not fit those


class _Walk:
    """Tables and keys one by one; what cannot be read is noted in ``wrong`` and its default stands in."""

    def __init__(self) -> None:
        self.wrong: dict[Path, str] = {}

    def root(self, document: dict[str, Any]) -> Config:
        """The whole file. Where ``[[backend]]`` stands more than once, the first is ``backend``."""
        tables = document.get("backend")
        if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
            return self.config(document)
        first, *others = tables
        further = [
            self.table(Backend, Backend(), each, ("backend", str(number))) for number, each in enumerate(others, 2)
        ]
        return replace(self.config({**document, "backend": first}), further=tuple(further))

    def config(self, document: dict[str, Any]) -> Config:
        """The tables that a file may have."""
        known = {key: value for key, value in document.items() if key in SECTIONS}
        for key in document.keys() - known.keys():
            self.wrong[key,] = _unknown(key, document[key], list(SECTIONS), ())
        config: Config = self.table(Config, Config(), known, ())
        return config

    def table(self, kind: type, default: Any, data: dict[str, Any], path: Path) -> Any:
        """One dataclass from one table; ``default`` has its type and is what absent keys keep."""
        hints = get_type_hints(kind, include_extras=True)
        changes = {}
        for key, value in data.items():
            if key not in hints:
                self.wrong[*path, key] = _unknown(key, value, list(hints), path)
            else:
                changes[key] = self.value(hints[key], getattr(default, key), value, (*path, key))
        return replace(default, **changes)

    def value(self, hint: Any, default: Any, value: Any, path: Path) -> Any:
        """One key: a table, an array, or a single value by its ``Spec``."""
        if is_dataclass(hint):
            if not isinstance(value, dict):
                self.wrong[path] = f"must be a table, not {type_name(value)}"
                return default
            return self.bucket(default, value, path) if hint is Rate else self.table(hint, default, value, path)  # type: ignore[arg-type]  # hint is the class
        try:
            if get_origin(hint) is tuple:
                return _read_array(_spec(get_args(hint)[0]), value)
            return read_value(_spec(hint), value)
        except ValueError as error:
            self.wrong[path] = str(error)
            return default

    def bucket(self, default: Rate, data: dict[str, Any], path: Path) -> Rate:
        """A rate's table, where ``nodelay = true`` spells ``delay = None`` and ``false`` is nginx without the word."""
        nodelay = data.get("nodelay")
        rest = {key: value for key, value in data.items() if key != "nodelay"}
        for key in rest.keys() - {field.name for field in fields(Rate)}:
            self.wrong[*path, key] = _unknown(
                key, rest[key], [*(field.name for field in fields(Rate)), "nodelay"], path
            )
            del rest[key]
        if nodelay is not None and not isinstance(nodelay, bool):
            self.wrong[*path, "nodelay"] = f"must be true or false, not {type_name(nodelay)}"
        elif nodelay and "delay" in rest:
            self.wrong[*path, "delay"] = "contradicts nodelay = true; keep one of the two"
            del rest["delay"]
        elif nodelay is not None:
            default = replace(default, delay=None if nodelay else 0)
        rate: Rate = self.table(Rate, default, rest, path)
        return rate


def _spec(hint: Any) -> Spec:
    spec: Spec = get_args(hint)[1]
    return spec


def _read_array(spec: Spec, value: object) -> tuple[object, ...]:
    """An array of single values; one string alone is an array of one."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"must be an array, not {type_name(value)}")  # noqa: TRY004 (one kind for the caller)
    items = []
    for number, item in enumerate(value, 1):
        try:
            items.append(read_value(spec, item))
        except ValueError as error:
            raise ValueError(f"item {number} {error}") from None
    return tuple(items)


_ELSEWHERE = 0.8  # How like a key of another table has to be: further off, it is more likely a guess than a slip.


def _unknown(key: str, value: object, known: list[str], path: Path) -> str:
    """The message for a key that is not there: the nearest one here, one elsewhere, or all that are."""
    what = "unknown table" if isinstance(value, dict) else "unknown key"
    if near := nearest(key, known):
        return f"{what}; did you mean {near if path else f'[{near}]'}?"
    if key in FROM_NGINX:
        return f"{what}; nginx's {key} is {FROM_NGINX[key]} here"
    for section in SECTIONS:
        names = [field.name for field in fields(get_type_hints(Config)[section])]
        if (section,) != path and (near := nearest(key, names, _ELSEWHERE)):
            return f"{what}; did you mean [{section}] {near}?"
    return f"{what}; known here: {', '.join(known)}"


def _shown(path: Path, document: dict[str, Any]) -> str:
    """``[rate.submit] burst`` for a path; a table itself as ``[rate.submit]``."""
    value: Any = document
    for part in path:
        if isinstance(value, list) and part.isdigit():
            value = value[int(part) - 1]
            continue
        table = value[0] if isinstance(value, list) and value else value
        value = table.get(part) if isinstance(table, dict) else None
    shown = ["".join(c if c.isprintable() else "�" for c in part) for part in path]
    if isinstance(value, dict):
        return f"[{'.'.join(shown)}]"
    return f"[{'.'.join(shown[:-1])}] {shown[-1]}" if len(shown) > 1 else shown[0]


def _touches(path: Path, wrong: dict[Path, str]) -> bool:
    """Whether a setting, or a table around it, could not be read, so that its value is only the default."""
    return any(path[:depth] in wrong for depth in range(1, len(path) + 1))


def _syntax_problem(text: str, name: str, error: str) -> Problem:
    """``tomllib`` says where only inside its message."""
    message, _, place = error.partition(" (at ")
    match = re.match(r"line (\d+), column (\d+)", place)
    line = int(match[1]) if match else text.count("\n") + 1
    column = f" at column {match[2]}" if match else " at the end of the file"
    return Problem(name, line, "", f"syntax: {message[:1].lower()}{message[1:]}{column}")
