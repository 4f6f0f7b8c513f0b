"""The certificate: loaded, read for its end, loaded again when it changes, and never lost to a bad file."""

import shutil
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.auth.certificate import Certificate, CertificateError, ends, not_after
from gateway.config_auth import Tls

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
pytestmark = needs_openssl


def made(folder: Path, name: str, days: int) -> Tls:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", str(days), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return Tls(str(certificate), str(key))


@pytest.mark.parametrize("days", [30, 365 * 40])
def test_its_end_is_what_openssl_says(tmp_path: Path, days: int):
    """Both forms of time: two-digit years before 2050, four digits after."""
    tls = made(tmp_path, "a", days)
    said = subprocess.run(
        ["openssl", "x509", "-in", tls.certificate, "-noout", "-enddate"], check=True, capture_output=True, text=True
    ).stdout
    expected = datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert ends(Path(tls.certificate)) == expected.timestamp()


def test_a_changed_certificate_is_served_and_a_broken_one_is_not(tmp_path: Path):
    """New handshakes get the new one; a half-written file leaves the old one in place."""
    tls = made(tmp_path, "a", 10)
    certificate = Certificate(tls)
    context, first = certificate.context, certificate.not_after
    certificate.look()
    assert certificate.not_after == first
    longer = made(tmp_path, "b", 20)
    Path(tls.certificate).write_text("-----BEGIN CERTIFICATE-----\nhalf")
    certificate.look()
    assert certificate.not_after == first
    shutil.copy(longer.key, tls.key)
    shutil.copy(longer.certificate, tls.certificate)
    certificate.look()
    assert certificate.not_after > first
    assert certificate.context is context
    assert served(certificate.context) == ssl.PEM_cert_to_DER_cert(Path(longer.certificate).read_text())


def served(context: ssl.SSLContext) -> bytes:
    """What a client gets from a handshake with this context, in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs, ours = client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    for _ in range(10):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = theirs.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_what_is_wrong_is_said(tmp_path: Path):
    """Missing files, a key of another certificate, an encrypted key, no PEM."""
    tls, other = made(tmp_path, "a", 10), made(tmp_path, "b", 10)
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", tls.key, "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for wrong, says in [
        (Tls(str(tmp_path / "none.pem")), "none.pem"),
        (Tls(tls.certificate, other.key), "MISMATCH"),
        (Tls(tls.certificate, str(locked)), "encrypted"),
        (Tls(str(empty)), "empty.pem"),
    ]:
        with pytest.raises(CertificateError, match=says):
            Certificate(wrong)


def test_garbage_is_no_certificate():
    """Bytes that are none raise, and nothing else."""
    for der in (b"", b"\x30", b"\x30\x82\xff\xff" * 3, bytes(40)):
        with pytest.raises((ValueError, IndexError)):
            not_after(der)
