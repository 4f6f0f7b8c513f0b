"""Webhooks: signatures that others can check, waits that grow, addresses that may be reached."""

import base64
import hashlib
import hmac

import pytest

from gateway.webhook import key_of, may_reach, signature, wait_after


def test_a_signature_is_the_standard_one():
    """The example of the Standard Webhooks specification's libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_may_be_any_text():
    """What is no base64 behind whsec_ is taken as it stands."""
    assert key_of("plain") == b"plain"
    assert key_of("whsec_not base64!") == b"whsec_not base64!"
    expected = hmac.new(b"plain", b"id.5.x", hashlib.sha256).digest()
    assert signature("plain", "id", 5, b"x") == "v1," + base64.b64encode(expected).decode()


def test_waits_double_up_to_an_hour():
    """Ten attempts take some forty minutes."""
    assert [wait_after(tries, 5.0) for tries in (1, 2, 3, 10, 11, 1000)] == [5, 10, 20, 2560, 3600, 3600]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "no address",
        "",
    ],
)
def test_what_is_not_public_is_not_reached(address: str):
    """Nor what only stands for it."""
    assert not may_reach(address, ())


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are(address: str):
    """IPv4 and IPv6."""
    assert may_reach(address, ())


def test_what_is_allowed_is_reached():
    """And nothing beside it."""
    allowed = ("10.0.0.0/8", "fd00::/8", "127.0.0.1")
    assert [may_reach(each, allowed) for each in ("10.9.9.9", "fd12::1", "127.0.0.1", "::ffff:10.0.0.1")] == [True] * 4
    assert [may_reach(each, allowed) for each in ("127.0.0.2", "192.168.0.1", "::1")] == [False] * 3
