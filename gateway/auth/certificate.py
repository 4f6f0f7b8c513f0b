"""The certificate of the listening side: loaded, loaded again when its files change, and when it ends.

Owns the SSL context. New handshakes get the new certificate; open connections keep theirs.
"""

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gateway.config_auth import Tls

log = logging.getLogger("gateway.tls")

_UTC_TIME: Final = 0x17


class CertificateError(Exception):
    """The certificate or its key cannot be used; ``str()`` is one line for the user."""


class Certificate:
    """One certificate for all ports."""

    def __init__(self, tls: Tls) -> None:
        """Load it; raises ``CertificateError``."""
        self._tls = tls
        self._files = [Path(tls.certificate)] + ([Path(tls.key)] if tls.key else [])
        self._seen = self._stamp()
        self.context = load(tls)
        self.not_after = ends(self._files[0])
        """When it ends, in seconds since 1970."""

    def look(self) -> None:
        """Load it again if a file has changed; what cannot be used changes nothing."""
        seen = self._stamp()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            # First elsewhere: a half-replaced pair must not break the one in use.
            load(self._tls)
            self.not_after = ends(self._files[0])
            self.context.load_cert_chain(self._tls.certificate, self._tls.key or None)
        except (CertificateError, OSError) as error:
            log.warning("%s; the certificate stays as it was", error)
            return
        log.info("the certificate was loaded again; it ends on %s", datetime.fromtimestamp(self.not_after, UTC).date())

    def _stamp(self) -> list[tuple[int, int]]:
        try:
            return [(file.stat().st_mtime_ns, file.stat().st_ino) for file in self._files]
        except OSError:
            return []


def load(tls: Tls) -> ssl.SSLContext:
    """A context with the certificate; raises ``CertificateError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key or None, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise CertificateError(f"[tls] {tls.certificate}, {tls.key or 'key in the same file'}: {reason}") from error
    return context


def ends(file: Path) -> float:
    """When the first certificate of a PEM file ends, in seconds since 1970; raises ``CertificateError``."""
    try:
        text = file.read_text(encoding="ascii")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        return not_after(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except (OSError, ValueError, IndexError) as error:
        raise CertificateError(f"[tls] certificate {file}: {error}") from error


def not_after(der: bytes) -> float:
    """``notAfter`` of a certificate (RFC 5280 §4.1.2.5); ``ValueError`` or ``IndexError`` for what is none."""
    _, body, _ = _element(der, 0)
    _, body, _ = _element(der, body)
    # TBSCertificate: [version], serial, signature, issuer, validity
    tag, _, after = _element(der, body)
    if tag == 0xA0:
        _, _, after = _element(der, after)
    for _ in range(2):
        _, _, after = _element(der, after)
    _, start, _ = _element(der, after)
    _, _, second = _element(der, start)
    tag, start, end = _element(der, second)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element at ``at`` (X.690 §8.1)."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        more = length & 0x7F
        length = int.from_bytes(der[start : start + more])
        start += more
    return der[at], start, start + length


def _no_password() -> str:
    raise ValueError("the private key is encrypted; write it without a password, readable by the service only")
