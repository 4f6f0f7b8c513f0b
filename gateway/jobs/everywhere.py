"""A client's request that goes to more than one backend, and what their answers come to.

Owns that all are asked at once, and that one which is away keeps nobody from the others. Must never know what is asked.
"""

import asyncio
from collections.abc import Iterable, Sequence

from gateway.errors import BACKEND_UNAVAILABLE, GatewayError
from gateway.fleet.ask import AskError, Reply
from gateway.jobs.answers import unanswered
from gateway.jobs.incoming import Incoming
from gateway.jobs.peer import Peer


async def tell(peers: Iterable[Peer], incoming: Incoming, target: bytes = b"") -> list[Reply]:
    """The answers of those backends that are there and answer, in the fleet's order; ``target``: another than asked.

    Raises ``GatewayError`` when there is none.
    """
    return [reply for _, reply in await told(peers, incoming, target)]


async def told(peers: Iterable[Peer], incoming: Incoming, target: bytes = b"") -> list[tuple[int, Reply]]:
    """The same, each with the number of its backend's first GPU."""
    every = list(peers)
    there = [peer for peer in every if peer.member.up]
    if not there:
        member = min((peer.member for peer in every), key=lambda each: each.retry_after)
        text = "The backend is not available."
        raise GatewayError(BACKEND_UNAVAILABLE, text, member.reason, retry_after=max(1, member.retry_after))
    request = incoming.request
    asked = [
        peer.send(request.method, target or request.target, incoming.lines_for(peer.member), incoming.body)
        for peer in there
    ]
    found = await asyncio.gather(*asked, return_exceptions=True)
    replies = [
        (peer.member.first, reply) for peer, reply in zip(there, found, strict=True) if isinstance(reply, Reply)
    ]
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, AskError):
            raise each
        if isinstance(each, AskError) and not replies:
            raise unanswered(each) from each
    return replies


def agreed(replies: Sequence[Reply]) -> Reply:
    """One answer for all: the first that is a success, else the first."""
    return next((reply for reply in replies if 200 <= reply.status < 300), replies[0])
