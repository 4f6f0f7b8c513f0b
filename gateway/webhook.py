"""``[webhooks]``, as ``config.py`` has it, and what is decided about a webhook: signature, next attempt, address.

Pure. Signatures are those of the Standard Webhooks specification, for which there are libraries in every language. Must
never know a job, a socket or the time.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from gateway.spec import Count, Network, Seconds, Text

_PREFIX: Final = "whsec_"
_NAT64: Final = ip_network("64:ff9b::/96")
_LONGEST: Final = 3600.0
"""Seconds between two attempts at most."""


@dataclass(frozen=True)
class Webhooks:
    """``[webhooks]``: who is told of the end of jobs; a job may name an address of its own."""

    url: Text = ""
    """Told of every job that names no other; empty: nobody."""
    secret: Text = ""
    """Key of the signature (HMAC-SHA256), as text or whsec_ and base64; empty: unsigned, unless a job gives its own."""
    allow: tuple[Network, ...] = ()
    """Private addresses or networks (CIDR) that webhooks may reach; all others but public ones are refused."""
    attempts: Count = 10
    """How often it is tried before it is given up."""
    first_wait: Seconds = 5.0
    """Seconds after the first failure; doubled each time, an hour at most."""
    timeout: Seconds = 10.0
    """Seconds for one attempt in all."""
    at_once: Count = 8
    """Attempts under way at one time."""


def signature(secret: str, message: str, at: int, body: bytes) -> str:
    """``webhook-signature`` of a message with this id, sent ``at`` seconds since 1970."""
    signed = b"%b.%d.%b" % (message.encode(), at, body)
    digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def key_of(secret: str) -> bytes:
    """The key that a secret means."""
    if secret.startswith(_PREFIX):
        try:
            return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            pass  # it only looks like one
    return secret.encode()


def wait_after(tries: int, first: float) -> float:
    """Seconds until the next attempt, after so many that failed."""
    return min(_LONGEST, first * 2.0 ** min(tries - 1, 30))


def may_reach(address: str, allowed: Iterable[str]) -> bool:
    """Whether a webhook may connect to this address: a public one, or one that the settings allow.

    Addresses that stand for an IPv4 address (mapped, 6to4, NAT64) are judged by that one, too.
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    meant = [found, *_within(found)]
    if any(each in ip_network(network) for each in meant for network in allowed):
        return True
    return all(each.is_global and not each.is_multicast for each in meant)


def _within(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
