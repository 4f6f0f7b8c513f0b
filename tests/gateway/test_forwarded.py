"""The client's address behind proxies: the first from the right that nobody trusted vouches for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.forwarded import TrustedNetworks, client_address

NOBODY = TrustedNetworks()
PROXIES = TrustedNetworks(["10.0.0.0/8", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("peer", "values", "client", "named"),
    [
        ("198.51.100.7", [b"6.6.6.6"], "198.51.100.7", True),
        ("10.0.0.1", [], "10.0.0.1", False),
        ("10.0.0.1", [b"198.51.100.7"], "198.51.100.7", True),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.7"], "198.51.100.7", True),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.7, 10.0.0.2"], "198.51.100.7", True),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3", True),
        ("10.0.0.1", [b"6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2", False),
        ("10.0.0.1", [b"198.51.100.7:4711"], "198.51.100.7", True),
        ("::ffff:10.0.0.1", [b"::ffff:198.51.100.7"], "198.51.100.7", True),
        ("2001:db8::1", [b"[2001:db9::5]:4711"], "2001:db9::5", True),
        ("10.0.0.1", [b"\xff\xfe,"], "10.0.0.1", False),
        ("10.0.0.1", [b"unix:"], "10.0.0.1", False),
        ("10.0.0.1", [b"198.51.100.7, _hidden"], "10.0.0.1", False),
        ("10.0.0.1", [b""], "10.0.0.1", False),
    ],
)
def test_first_untrusted_from_the_right(peer: str, values: list[bytes], client: str, named: bool) -> None:
    """Only what trusted proxies wrote is believed, the nearest stranger is the client."""
    assert client_address(peer, values, PROXIES) == (client, named)


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_strangers_cannot_choose_their_address(values: list[bytes]) -> None:
    """From an untrusted peer, no header changes the address; with no proxies trusted, from nobody."""
    assert client_address("198.51.100.7", values, PROXIES) == ("198.51.100.7", True)
    assert client_address("10.0.0.1", values, NOBODY) == ("10.0.0.1", True)


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_no_header_breaks_it(values: list[bytes]) -> None:
    """Whatever a trusted proxy passes on, an address comes out."""
    assert client_address("10.0.0.1", values, PROXIES)[0]


def test_long_chains_are_read_in_part() -> None:
    """Work per request is bounded: of ten thousand trusted entries only the last are looked at."""
    chain = b",".join([b"198.51.100.7"] + [b"10.0.0.2"] * 10_000)
    assert client_address("10.0.0.1", [chain], PROXIES) == ("10.0.0.2", False)
