"""Which backend is a client's home: where everything goes that names neither a GPU nor a job.

Pure. Owns the rule (highest random weight, of the client's address and each backend): a client stays where it is while
its backend is there, and only the clients of one that goes move. Nothing is remembered. Must never know what is asked.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

from gateway.fleet.member import Member


def home(client: str, members: Sequence[Member]) -> Member:
    """The backend of a client's address: one that takes new clients, else one that is there, else any."""
    here = [member for member in members if member.up]
    taking = [member for member in here if not (member.out or member.drain)]
    return max(taking or here or members, key=lambda member: _draw(client, member.index, member.weight))


@lru_cache(maxsize=8192)
def _draw(client: str, index: int, weight: float) -> float:
    """A backend's lot for a client; with twice the weight it is the highest for twice as many."""
    digest = blake2b(f"{index} {client}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 1))
