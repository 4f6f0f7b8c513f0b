"""What a service manager hands over and wants to hear: sockets that are open already, and how far we are.

The protocols are systemd's and need no library: ``sd_listen_fds(3)``, ``sd_notify(3)``. Without a service manager
nothing here does anything.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

log = logging.getLogger("gateway.systemd")

_FIRST: Final = 3
"""SD_LISTEN_FDS_START."""

Address = tuple[str, int]


def given_sockets(env: Mapping[str, str]) -> dict[Address, socket.socket]:
    """Listening sockets that were opened for us, by host and port; whoever restarts us keeps them open meanwhile."""
    if env.get("LISTEN_PID") != str(os.getpid()) or not env.get("LISTEN_FDS", "").isdigit():
        return {}
    found: dict[Address, socket.socket] = {}
    for fd in range(_FIRST, _FIRST + int(env["LISTEN_FDS"])):
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            host, port = sock.getsockname()[:2]
            found[host, port] = sock
        else:
            log.warning("a socket that was handed over is no TCP socket; it is left alone")
    return found


def notify(env: Mapping[str, str], *lines: str) -> None:
    """Tell the service manager, if there is one; that it does not hear is no reason to stop."""
    path = env.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())
    except OSError as error:
        log.warning("the service manager does not hear: %s", error)


def reloading() -> tuple[str, str]:
    """What is said when settings are read again (``Type=notify-reload``)."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
