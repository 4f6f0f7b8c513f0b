"""One line per request, written many at a time.

Owns the line's form and when lines are handed to ``logging``. Must never know sockets; it is told finished requests.
A logging call per request costs more than proxying it, so lines wait for up to one look of the deadlines and go out
as one record whose message has one line per request. Lines: logger ``gateway.access``, level INFO.
"""

import logging
import re
import time
from typing import Final

from gateway.observe.lines import RAW as LOGGER
from gateway.observe.lines import dumped

# ASCII without spaces, control characters, quotes and backslashes.
_HARMLESS: Final = re.compile(r"[!#-\[\]-~]*")

_MOST: Final = 512
"""Lines held back at most."""

# Whatever a client sends stays on its line and in its field.
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x21), 0x22, 0x5C, *range(0x7F, 0x100))}


class AccessLog:
    """Collects lines; ``flush`` writes them."""

    def __init__(self, *, enabled: bool, as_json: bool = False) -> None:
        self._as_json = as_json
        self._log = logging.getLogger(LOGGER)
        self._wanted = enabled
        self.enabled = enabled and self._log.isEnabledFor(logging.INFO)
        """Whether lines are wanted at all; read before a line is made."""
        self._lines: list[str] = []

    def want(self, *, wanted: bool) -> None:
        """Whether lines are written from now on."""
        self._wanted = wanted
        self.flush()

    def line(
        self,
        *,
        client: str,
        method: bytes,
        target: bytes,
        status: int,
        gpu: str,
        kind: str,
        request_id: bytes,
        received: int = 0,
        sent: int = 0,
        seconds: float = 0.0,
        backend_seconds: float = 0.0,
        note: str = "",
    ) -> None:
        """One finished request; seconds in all and at the backend, bytes of bodies, ``note`` what else there is."""
        if self._as_json:
            told = {
                "time": round(time.time(), 3),
                "level": "info",
                "logger": LOGGER,
                "client": client,
                "method": method.decode("latin-1"),
                "path": target.decode("latin-1"),
                "status": status,
                "received": received,
                "sent": sent,
                "seconds": round(seconds, 6),
                "backend_seconds": round(backend_seconds, 6),
                "gpu": gpu,
                "kind": kind,
                "request_id": request_id.decode("latin-1"),
                "note": note,
            }
            self._add(dumped(told))
            return
        path = target.decode("latin-1")
        if not _HARMLESS.fullmatch(path):
            path = path.translate(_ESCAPES)
        self._add(
            f'{client} "{method.decode("latin-1")} {path}" {status} in={received} out={sent} '
            f"time={seconds:.4f} backend={backend_seconds:.4f} gpu={gpu} kind={kind} "
            f"id={request_id.decode('latin-1')}{' ' + note if note else ''}"
        )
    def _add(self, line: str) -> None:
        self._lines.append(line)
        if len(self._lines) >= _MOST:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected; and look again whether lines are wanted."""
        self.enabled = self._wanted and self._log.isEnabledFor(logging.INFO)
        if self._lines:
            lines, self._lines = self._lines, []
            self._log.info("%s", "\n".join(lines))
