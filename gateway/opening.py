"""What is looked at before the gateway opens, and loaded only where it is asked for.

Owns the words in which it says that it cannot. Must never start anything.
"""

import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.config import Config

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracing  # loads the SDK


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


def tracing_of(config: Config) -> "Tracing | None":
    """Who makes spans, where ``[tracing]`` is on; raises ``StartError`` when what that needs is not installed."""
    if not config.tracing.enabled:
        return None
    try:
        from gateway.observe.tracing import Tracing, provider  # noqa: PLC0415 (the SDK loads for a third of a second)

        return Tracing(provider())
    except ImportError as error:
        raise StartError(
            f"[tracing] enabled = true needs OpenTelemetry's SDK ({error.name} is missing): "
            "pip install 'comfy-gateway[otel]', or set it to false"
        ) from error
