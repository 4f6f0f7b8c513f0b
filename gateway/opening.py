"""What is looked at before the gateway opens.

Owns the words in which it says that it cannot. Must never start anything.
"""

import socket
from urllib.parse import urlsplit


class StartError(Exception):
    """The gateway cannot start or go on; ``str()`` is one line for the user."""


def check_free(url: str) -> None:
    """See whether the backend will be able to listen; raises ``StartError`` naming the port when it will not."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartError(
            f"port {port} on {host}, where the backend is to listen, cannot be had ({error.strerror or error}); stop "
            f"what listens there, set [backend] url, or use that one with --no-backend"
        ) from error
