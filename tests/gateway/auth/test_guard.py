"""The guard: keys on disk, noticed when they change; logins; and who may listen to whom."""

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.auth import command
from gateway.auth.gate import ANYBODY
from gateway.auth.guard import Guard, login_page, next_of, open_without_keys
from gateway.auth.keys import KeyFile, KeyFileError, Quota, Ring, Scope
from gateway.config import Config
from gateway.config_auth import Auth
from gateway.errors import GatewayError
from gateway.request import Kind
from gateway.wire.head import RequestHead, RequestReader
from tests.doubles.http_stack import stack


def config(folder: Path, *hosts: str, **auth: object) -> Config:
    made = Config(auth=Auth(folder=str(folder), **auth))  # type: ignore[arg-type]  # values of several types
    return replace(made, listen=replace(made.listen, host=hosts or ("127.0.0.1",)))


def test_others_are_not_let_in_without_a_key(tmp_path: Path):
    """Listening elsewhere needs a key or an explicit word; loopback does not."""
    with pytest.raises(KeyFileError, match=r"192\.0\.2\.1 can be reached .*comfy-gateway keys add NAME"):
        Guard(config(tmp_path, "127.0.0.1", "192.0.2.1"))
    Guard(config(tmp_path))
    Guard(config(tmp_path, "192.0.2.1", allow_open=True))
    assert list(tmp_path.iterdir()) == []
    command.add(tmp_path, "anna", Scope.READ, Quota())
    Guard(config(tmp_path, "192.0.2.1"))
    assert open_without_keys(config(tmp_path, "192.0.2.1"), Ring()) is not None


def test_new_and_revoked_keys_are_noticed(tmp_path: Path):
    """Within one look; a damaged file changes nothing; and with the last key nobody else comes in."""
    guard = Guard(config(tmp_path))
    assert not guard.gate.ring
    anna, _ = command.add(tmp_path, "anna", Scope.READ, Quota())
    guard.look()
    assert guard.gate.ring.find(anna)
    ben, _ = command.add(tmp_path, "ben", Scope.READ, Quota())
    command.revoke(tmp_path, "anna")
    guard.look()
    assert guard.gate.ring.find(anna) is None
    assert guard.gate.ring.find(ben)
    KeyFile(tmp_path).path.write_text("{")
    guard.look()
    assert guard.gate.ring.find(ben)
    KeyFile(tmp_path).path.unlink()
    guard.look()
    assert guard.gate.ring, "the gate stays closed"
    assert guard.gate.ring.find(ben) is None


def test_a_reload_after_the_last_key_opens_nothing(tmp_path: Path):
    """Other settings are taken over, and others stay out; a new key lets its holder in again."""
    command.add(tmp_path, "anna", Scope.READ, Quota())
    first = config(tmp_path, "192.0.2.1")
    guard = Guard(first)
    command.revoke(tmp_path, "anna")
    for session in (60.0, 61.0):  # before the revocation is noticed, and after it
        guard.apply(replace(first, auth=replace(first.auth, session=session)))
        with pytest.raises(GatewayError) as caught:
            guard.gate.passes(asked(), b"/queue", "203.0.113.9", Kind.READ, 0.0)
        assert caught.value.kind.status == 401
        assert guard.gate.passes(asked(), b"/queue", "127.0.0.1", Kind.READ, 0.0) is ANYBODY
        guard.look()
    ben, _ = command.add(tmp_path, "ben", Scope.READ, Quota())
    guard.look()
    assert guard.gate.passes(asked(f"X-API-Key: {ben}"), b"/queue", "203.0.113.9", Kind.READ, 0.0).name == "ben"


@pytest.mark.parametrize(
    ("line", "trusted", "status"),
    [
        ("X-A: 1", (), 200),
        ("X-Forwarded-For: unknown", (), 200),
        ("X-A: 1", ("127.0.0.0/8",), 401),
        ("Forwarded: for=203.0.113.9", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: unknown", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: unix:", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: 203.0.113.9, _hidden", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For:", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: 127.0.0.1, unknown, 127.0.0.1", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: 203.0.113.9", ("127.0.0.0/8",), 401),
        ("X-Forwarded-For: 127.0.0.1", ("127.0.0.0/8",), 200),
    ],
)
async def test_a_proxy_on_this_machine_does_not_lend_its_address(tmp_path, line, trusted, status):
    """Whoever comes through a trusted proxy needs a key unless it says that they are on this machine."""
    command.add(tmp_path, "anna", Scope.READ, Quota())
    async with stack(forwarded={"trusted_proxies": trusted}) as made, made.client() as client:
        made.proxy.guard = Guard(config(tmp_path))
        assert (await client.get("/queue", line)).status == status


async def test_without_keys_a_proxy_need_not_name_anybody(tmp_path):
    """Keys are what makes the difference between here and elsewhere."""
    async with stack(forwarded={"trusted_proxies": ("127.0.0.0/8",)}) as made, made.client() as client:
        made.proxy.guard = Guard(config(tmp_path))
        assert (await client.get("/queue", "X-Forwarded-For: unknown")).status == 200


def asked(*lines: str) -> RequestHead:
    text = "\r\n".join(["GET /queue HTTP/1.1", "Host: a", *lines, "", ""]).encode()
    return RequestReader(max_line=9999, max_fields=50).read(text, len(text))


@pytest.mark.parametrize(
    ("query", "leads"),
    [
        (b"next=/gpu1/%3Fa%3D1", "/gpu1/?a=1"),
        (b"", "/"),
        (b"next=https://evil.example/", "/"),
        (b"next=//evil.example/", "/"),
        (b"next=/%5Cevil.example", "/"),
        (b"next=%2F%2Fevil.example", "/"),
        (b"next=javascript:alert(1)", "/"),
    ],
)
def test_a_login_leads_back_to_this_host_only(query: bytes, leads: str):
    """An open redirect would lend our name to others."""
    assert next_of(query) == leads


def test_the_page_quotes_what_it_shows():
    """A path cannot become markup."""
    assert '"><script' not in login_page('/"><script>alert(1)</script>')
