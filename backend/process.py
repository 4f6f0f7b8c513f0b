"""The process itself: its listening socket, its tie to its parent, its log. Knows neither body."""

import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

log = logging.getLogger("backend.process")

PR_SET_PDEATHSIG: Final = 1


class PortInUseError(OSError):
    """Somebody else listens on the port."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ``PortInUseError`` with the line to show, or ``OSError`` for a bad address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(1024)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use by another process: stop it, or choose another with --port"
            ) from error
        raise
    return found


def url(bound: socket.socket) -> str:
    """``http://host:port`` of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def exit_with_parent() -> None:
    """Have this process told to stop (SIGTERM) when its parent is gone.

    On Linux the kernel does it; elsewhere end of file on stdin does, so the parent must hold a pipe to it.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0:
            # The parent may have died before the kernel was asked.
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
            return
    threading.Thread(target=_watch_stdin, name="parent-watch", daemon=True).start()


def exit_without_gateway(lock: Path, seconds: float) -> None:
    """Have this process told to stop (SIGTERM) when nobody has held ``lock`` for ``seconds`` in a row.

    A gateway holds it as long as it lives, however it dies; the next one finds this process at work.
    """
    watch = threading.Thread(target=_watch_lock, args=(lock, seconds), name="gateway-watch", daemon=True)
    watch.start()


def _watch_lock(lock: Path, seconds: float) -> None:
    pace = min(1.0, seconds / 4)
    alone_since = None
    while alone_since is None or time.monotonic() - alone_since < seconds:
        time.sleep(pace)
        if _held(lock):
            alone_since = None
        elif alone_since is None:
            alone_since = time.monotonic()
    log.warning("no gateway for %g s: stopping", seconds)
    os.kill(os.getpid(), signal.SIGTERM)


def _held(lock: Path) -> bool:
    """Whether any process holds the lock."""
    import fcntl  # noqa: PLC0415 (not there on every platform)

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _watch_stdin() -> None:
    try:
        while sys.stdin.buffer.read(4096):
            pass
    except (OSError, ValueError):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def log_to_stderr() -> None:
    """One line per record on stderr; stdout is for the ready line."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
