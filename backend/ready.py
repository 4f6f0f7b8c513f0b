"""How a backend says that it can take jobs."""

import sys

from backend.contract import Ready


def announce(ready: Ready) -> None:
    """Print the ready line and flush it; whoever started this process waits for it."""
    sys.stdout.write(ready.line() + "\n")
    sys.stdout.flush()
