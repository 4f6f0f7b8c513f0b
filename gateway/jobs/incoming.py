"""A client's request that concerns jobs, whole, and how an answer of the backend goes back to it.

Pure. Owns which fields of either are taken off. Must never know what is done with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.fleet.ask import Reply
from gateway.fleet.member import Member, Reservation
from gateway.request import Request
from gateway.wire.answer import Answer
from gateway.wire.fields import GPU_HEADER, HOP_BY_HOP

# The body is framed anew, and the gateway reads these answers itself, so they must come as they are.
_PLAIN: Final = (b"content-length:", b"transfer-encoding:", b"expect:", b"connection:", b"accept-encoding:")
_OWN: Final = HOP_BY_HOP | {b"content-length", b"x-request-id"}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request with its body. ``request.target`` is as the backend sees it: raw, without ``/gpuN``."""

    request: Request
    body: bytes
    lines: bytes
    """Its field lines as they go to the backend."""
    port: str
    """``gpu0`` … or ``front``: where it came in."""
    place: Reservation | None = None
    """Its place on the lane; whoever takes the request settles it."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """What its record is to hold beyond what the request says."""
    trace: str = ""
    """``traceparent`` of what happens for it; empty where nothing is traced."""

    def field(self, name: bytes) -> str:
        """The value of a field that is there once; ``name`` in lower case."""
        found = [value for key, value in self.request.headers if key.lower() == name]
        return found[0].strip(b" \t").decode("latin-1") if len(found) == 1 else ""

    @property
    def plain_lines(self) -> bytes:
        """The lines without those that frame the body or ask for a compressed answer."""
        lines = [line for line in self.lines.split(b"\r\n") if line]
        return b"".join(b"%b\r\n" % line for line in lines if not line.lower().startswith(_PLAIN))


    def lines_for(self, member: Member) -> bytes:
        """The plain lines for this backend: with the GPU as it counts them, and without when that is not its own."""
        gpu = self.request.gpu
        if gpu is None:
            return self.plain_lines
        kept = [line for line in self.plain_lines.split(b"\r\n") if line and not line.startswith(GPU_HEADER)]
        if member.has(gpu):
            kept.append(b"%b: %d" % (GPU_HEADER, gpu - member.first))
        return b"".join(b"%b\r\n" % line for line in kept)


def globally(reply: Reply, first: int) -> Reply:
    """An answer of a backend whose first GPU users know as ``first``, with ``gpu_id`` as they count."""
    if not first or reply.status != 200 or b'"gpu_id"' not in reply.body:
        return reply
    try:
        found = json.loads(reply.body)
    except ValueError:
        return reply
    if not isinstance(found, dict) or not isinstance(found.get("gpu_id"), int):
        return reply
    found["gpu_id"] += first
    return replace(reply, body=json.dumps(found).encode())


def relayed(reply: Reply) -> Answer:
    """The backend's answer for the client."""
    return Answer(reply.status, tuple(pair for pair in reply.pairs if pair[0].lower() not in _OWN), reply.body)
