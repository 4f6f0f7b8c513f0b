"""``[cache]`` of the configuration; ``config.py`` has all other tables, and says what they are for.

Pure.
"""

from dataclasses import dataclass

from gateway.spec import MB, Flag, Seconds, Size


@dataclass(frozen=True)
class Cache:
    """``[cache]``: web files and listings (/object_info) that are made once and given to many."""

    enabled: Flag = True
    """false: every request goes to the backend, and nothing is compressed."""
    size: Size = 128 * MB
    """Bytes of memory for all kept answers and their compressed forms (nginx proxy_cache_path max_size)."""
    entry: Size = 32 * MB
    """Bytes of the largest answer that is kept; larger ones pass untouched."""
    fresh: Seconds = 60.0
    """Seconds a file may be given out unasked, where the backend allows any; a browser's hard reload always asks."""
