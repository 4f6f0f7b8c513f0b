"""One value of ``config.toml`` against its ``Spec``: right type, right form, within bounds.

Pure. Every reader returns the value as the ``Config`` holds it, or raises ``ValueError`` with what is wrong, without
naming the key or the line: the caller knows those.
"""

import difflib
import math
import re
from collections.abc import Callable
from datetime import date, time
from ipaddress import ip_address
from urllib.parse import urlsplit

from gateway.forwarded import parse_network
from gateway.settings.units import parse_rate, parse_seconds, parse_size, show_seconds, show_size
from gateway.spec import Spec

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*", re.ASCII)


def read_value(spec: Spec, value: object) -> object:
    """Return ``value`` as its setting holds it; ``ValueError`` says why it cannot be."""
    return _READERS[spec.form](spec, value)


def nearest(word: str, known: list[str] | tuple[str, ...], likeness: float = 0.6) -> str | None:
    """The known word that ``word`` was probably meant to be: ``likeness`` from 0 (anything) to 1 (the same)."""
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=likeness)
    return close[0] if close else None


def type_name(value: object) -> str:
    """What TOML calls a value's type, with its article."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a fraction"
        case str():
            return "a string"
        case list():
            return "an array"
        case date() | time():
            return "a date or time"
    return "a table"


def _flag(_spec: Spec, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {type_name(value)}")  # noqa: TRY004 (one kind for the caller)
    return value


def _text(_spec: Spec, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {type_name(value)}")  # noqa: TRY004 (one kind for the caller)
    if "\0" in value:
        raise ValueError("must not contain a NUL")
    return value


def _count(spec: Spec, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {type_name(value)}")  # noqa: TRY004 (one kind for the caller)
    return int(_bounded(spec, value, str))


def _size(spec: Spec, value: object) -> int:
    return int(_bounded(spec, _number(value, parse_size, whole=True), lambda size: show_size(int(size))))


def _seconds(spec: Spec, value: object) -> float:
    return float(_bounded(spec, _number(value, parse_seconds), show_seconds))


def _rate(spec: Spec, value: object) -> float:
    return float(_bounded(spec, _number(value, parse_rate), lambda rate: f"{rate:g} requests a second"))


def _number(value: object, parse: Callable[[str], float], *, whole: bool = False) -> float:
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and not isinstance(value, int)):
        raise ValueError(f"must be a {'whole ' * whole}number or a string with a unit, not {type_name(value)}")
    return value


def _bounded(spec: Spec, value: float, show: Callable[[float], str]) -> float:
    if not (math.isfinite(value) if isinstance(value, float) else True) or not spec.low <= value <= spec.high:
        shown = show(value) if abs(value) < 1e18 else "that"
        raise ValueError(f"must be {show(spec.low)} to {show(spec.high)}, not {shown}")
    return value


def _choice(spec: Spec, value: object) -> str:
    text = _text(spec, value)
    if text not in spec.choices:
        near = nearest(text, spec.choices)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"must be {' or '.join(spec.choices)}, not {_quote(text)}{hint}")
    return text


def _host(spec: Spec, value: object) -> str:
    text = _text(spec, value)
    try:
        ip_address(text)
    except ValueError:
        if not _HOSTNAME.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
            hint = 'an address or a host name, such as "127.0.0.1", "::1" or "0.0.0.0" for all'
            raise ValueError(f"{_quote(text)} is not {hint}") from None
    return text


def _url(spec: Spec, value: object) -> str:
    text = _text(spec, value)
    wanted = "must be http://HOST:PORT or unix:/PATH"
    if text.startswith("unix:"):
        if not text.startswith("unix:/") or text.endswith("/"):
            raise ValueError(f"{wanted}, not {_quote(text)}")
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{wanted}, not {_quote(text)}") from None
    if parts.scheme == "https":
        raise ValueError(f"{wanted}: the backend is spoken to in plain HTTP, over loopback or a private network")
    if not re.fullmatch(r"[!-~]+", text) or parts.scheme != "http" or not parts.hostname or not port:
        raise ValueError(f"{wanted}, not {_quote(text)}")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or text[-1:] in "/?#":
        raise ValueError(f"{wanted} with nothing after it: paths are passed on as they come, not {_quote(text)}")
    return text


def _network(spec: Spec, value: object) -> str:
    text = _text(spec, value)
    try:
        parse_network(text)
    except ValueError as error:
        raise ValueError(f"must be an address or a network such as 10.0.0.0/8: {error}") from None
    return text


def _quote(text: str) -> str:
    """A value in a message: one line, of bounded length."""
    shown = text if len(text) <= 60 else text[:57] + "…"
    return '"' + "".join(c if c.isprintable() else "�" for c in shown) + '"'


_READERS: dict[str, Callable[[Spec, object], object]] = {
    "flag": _flag,
    "text": _text,
    "count": _count,
    "size": _size,
    "seconds": _seconds,
    "rate": _rate,
    "choice": _choice,
    "host": _host,
    "url": _url,
    "network": _network,
}
