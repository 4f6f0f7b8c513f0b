"""What is said to whoever started the process, and when: the ready line, once the port answers.

Owns the line's moment. Knows nothing of what answers.
"""

import contextlib
import socket
import sys
import time
from typing import Final

from backend.contract import Ready
from backend.options import Options

KNOCK_SECONDS: Final = 0.1
"""Pause between two tries to connect."""


def url(options: Options) -> str:
    """Where the backend can be reached."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"


def say(ready: Ready) -> None:
    """Print the ready line."""
    sys.stdout.write(ready.line() + "\n")
    sys.stdout.flush()


def say_when_open(ready: Ready, host: str, port: int) -> None:
    """Print it when the port takes connections; blocks until then.

    Of a plain ComfyUI nothing is touched, so the only way to know is to knock.
    """
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            break
        time.sleep(KNOCK_SECONDS)
    say(ready)
