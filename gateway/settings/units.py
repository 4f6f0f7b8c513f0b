"""Sizes, durations and rates as people write them, both ways.

Pure. Units are nginx's: sizes count by 1024 (``100m``, ``100MB`` and ``100MiB`` are one thing), bare numbers are
bytes, seconds and requests a second. Every reader raises ``ValueError`` with what it would have accepted.
"""

import math
import re

_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SIZE = re.compile(r"(\d{1,16}(?:\.\d{1,6})?) ?([KMGT]?)I?(B?)", re.ASCII)
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d{1,9}) ?r/([sm])", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of ``"100MB"``, ``"64KiB"``, ``"1.5g"``, ``"4096"``."""
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise ValueError('a size is a number of bytes, or such as "64KB", "100MB", "1GB"')
    size = float(match[1]) * _SIZES[match[2]]
    if size != int(size):
        raise ValueError("a size is a whole number of bytes")
    return int(size)


def parse_seconds(text: str) -> float:
    """Seconds of ``"600s"``, ``"10m"``, ``"500ms"``, ``"1h 30m"``, ``"600"``."""
    compact = text.replace(" ", "").lower()
    if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", compact, re.ASCII):
        return float(compact)
    parts = list(_DURATION.finditer(compact))
    if not parts or "".join(part[0] for part in parts) != compact:
        raise ValueError('a duration is a number of seconds, or such as "500ms", "600s", "10m", "1h30m"')
    return math.fsum(float(part[1]) * _SECONDS[part[2]] for part in parts)


def parse_rate(text: str) -> float:
    """Requests a second of ``"10r/s"`` or ``"600r/m"``, to the thousandth below as nginx keeps them."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError('a rate is a number of requests a second, or such as "10r/s", "600r/m"')
    return int(match[1]) * 1000 // (60 if match[2] == "m" else 1) / 1000


def show_size(size: int) -> str:
    """The shortest exact spelling that ``parse_size`` reads back."""
    for unit in "TGMK":
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}B"
    return str(size)


def show_seconds(seconds: float) -> str:
    """A short spelling that ``parse_seconds`` reads back: seconds, but milliseconds below one and days above two."""
    if 0 < seconds < 1 and seconds * 1000 == int(seconds * 1000):
        return f"{int(seconds * 1000)}ms"
    if seconds >= 2 * 86_400 and seconds % 86_400 == 0:
        return f"{int(seconds // 86_400)}d"
    return f"{seconds!r}s".replace(".0s", "s")


def show_rate(rate: float) -> str:
    """The spelling in requests a second or a minute that ``parse_rate`` reads back, else the bare number."""
    text = f"{int(rate)}r/s" if rate == int(rate) else f"{math.ceil(rate * 60)}r/m"
    return text if parse_rate(text) == rate else repr(rate)
