"""Who the client is when trusted proxies stand between it and us.

Pure. Owns the reading of ``X-Forwarded-For`` and the text form of addresses; knows nothing of limits,
nor of the headers that are sent on.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_CHAIN = 64
"""Entries of ``X-Forwarded-For`` read at most, from the right."""


class TrustedNetworks:
    """The proxies whose ``X-Forwarded-For`` is believed. False when there are none."""

    __slots__ = ("_holds", "networks")

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Take addresses and networks in CIDR notation; raise ``ValueError`` for anything else."""
        self.networks = tuple(parse_network(text) for text in networks)
        self._holds = lru_cache(maxsize=1024)(self._search)

    def __bool__(self) -> bool:
        """Whether any proxy is trusted at all."""
        return bool(self.networks)

    def __contains__(self, address: str) -> bool:
        """Whether ``address`` (without port) belongs to a trusted proxy."""
        return self._holds(address)

    def _search(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self.networks)


def client_address(peer: str, xff_values: list[bytes], trusted: TrustedNetworks) -> tuple[str, bool]:
    """First untrusted address from the right of ``X-Forwarded-For`` and the peer; the limits' key starts from it.

    ``xff_values`` are all values of the field in the order received, ``peer`` the socket's address without port.
    An entry that is no address ends the search: what stands left of it cannot be vouched for. The second result is
    whether the address is the client's: false when it is a proxy's, because the chain is missing, unreadable or cut.
    """
    if not trusted or peer not in trusted:
        return peer, True
    client = peer
    entries = [entry for value in xff_values for entry in value.split(b",")]
    for entry in entries[: -_CHAIN - 1 : -1]:
        parsed = parse_address(_without_port(entry.strip().decode("latin-1")))
        if parsed is None:
            return client, False
        client = str(parsed)
        if client not in trusted:
            return client, True
    return client, 0 < len(entries) <= _CHAIN


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost counts as reachable."""
    address = parse_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address; an IPv4-mapped one as IPv4, a zone (``%eth0``) dropped; ``None`` when it is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read an address or a network; raise ``ValueError`` when it is none or has bits set beyond its mask."""
    return ip_network(text.strip())


def _without_port(entry: str) -> str:
    """``[2001:db8::1]:4711`` and ``192.0.2.1:4711`` without port and brackets (as RFC 7239 writes them)."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
