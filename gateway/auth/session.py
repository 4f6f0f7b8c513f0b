"""The cookie that a browser carries instead of a key: which key it stands for and until when, signed.

Pure but for the file of the secret. A cookie names a key and holds nothing of it; revoking the key ends it.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from gateway.auth.keys import KeyFileError

COOKIE: Final = "comfy_gateway"
_BYTES: Final = 32


class Sessions:
    """Makes cookies and reads them back."""

    def __init__(self, secret: bytes, lasting: float) -> None:
        """``lasting``: seconds for which a login is good."""
        self._secret = secret
        self.lasting = lasting

    def make(self, key_id: str, now: float) -> str:
        """The value of a cookie for that key."""
        claim = f"{key_id}.{int(now + self.lasting)}"
        return f"{claim}.{self._sign(claim)}"

    def key_id(self, value: str, now: float) -> str | None:
        """Whose cookie this is; ``None`` when we never made it or its time is over."""
        claim, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(claim).encode()):
            return None
        key_id, _, until = claim.partition(".")
        return key_id if int(until) > now else None

    def _sign(self, claim: str) -> str:
        return hmac.new(self._secret, claim.encode(), hashlib.sha256).hexdigest()


def secret_in(folder: Path) -> bytes:
    """The secret that signs cookies; made when there is none. Raises ``KeyFileError``."""
    path = folder / "session.key"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            found = path.read_bytes()
            if len(found) == _BYTES:
                return found
            raise KeyFileError(f"{path} is damaged; remove it, and everybody has to log in again") from None
        made = secrets.token_bytes(_BYTES)
        with os.fdopen(handle, "wb") as file:
            file.write(made)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be made: {error.strerror or error}") from error
    return made


def cookie_in(values: list[bytes]) -> str | None:
    """Our cookie among those of a request (RFC 6265 §5.4)."""
    for value in values:
        for pair in value.split(b";"):
            name, _, content = pair.strip().partition(b"=")
            if name == COOKIE.encode():
                return content.decode("latin-1")
    return None
