"""Which build of the gateway this is: plain Python, or with its data path compiled (``setup.py``).

Owns how that is found out and said. Nothing may behave differently because of it.
"""

from functools import cache
from importlib.util import find_spec

from gateway import __version__


@cache
def compiled() -> bool:
    """Whether the data path runs as machine code."""
    spec = find_spec("gateway.wire.head")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")


def version() -> str:
    """The version as users see it."""
    return f"{__version__} (compiled)" if compiled() else __version__
