"""The sections of ``config.toml`` that say who may come in and how; see ``config.py``.

Pure.
"""

from dataclasses import dataclass

from gateway.spec import Flag, Seconds, Text


@dataclass(frozen=True)
class Auth:
    """``[auth]``: who may use the gateway; without keys everybody who can connect."""

    folder: Text = "data/auth"
    """Folder of the keys that ``comfy-gateway keys`` makes, and of the secret that signs logins."""
    loopback: Flag = True
    """Whether requests from this machine need no key; false where others have accounts on it."""
    allow_open: Flag = False
    """true: listen on other addresses than loopback although there are no keys."""
    isolate: Flag = False
    """true: a key sees its own jobs, queue entries, history, events and output files only."""
    origins: tuple[Text, ...] = ()
    """Web pages elsewhere that may use the gateway (https://studio.example); others' writes and sockets are refused."""
    session: Seconds = 7 * 86_400.0
    """How long a browser stays logged in."""


@dataclass(frozen=True)
class Tls:
    """``[tls]``: HTTPS on all ports; both files are read again when they change."""

    certificate: Text = ""
    """PEM file with the certificate and its chain; empty: plain HTTP (nginx ssl_certificate)."""
    key: Text = ""
    """PEM file with its private key; empty: it is in the same file (nginx ssl_certificate_key)."""
