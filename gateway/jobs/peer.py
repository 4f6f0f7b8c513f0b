"""What the jobs' side asks of a backend: take this prompt, what waits and runs, what became of that one.

Owns the routes and how their answers are read. Clients' own requests go the way of bytes; only what concerns a promise
comes this way. Must never decide anything.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from gateway.fleet.ask import LIMIT, AskError, Reply, exchange
from gateway.fleet.member import Member
from gateway.wire.fields import GPU_HEADER

_QUIET: Final = 10.0
"""Seconds for a question about queues or history."""
_ESCAPED: Final = 3
"""How many times longer a text may be as JSON with escapes than in UTF-8."""

log = logging.getLogger("gateway.jobs")


@dataclass(frozen=True)
class Seen:
    """Ids in the backend's queues at one moment."""

    running: frozenset[str]
    pending: frozenset[str]
    whole: bool = True
    """Whether these are all; else nobody knows what is in the queues and what is not."""

    def __contains__(self, job: str) -> bool:
        return job in self.running or job in self.pending


class Peer:
    """The backend at ``url``, which is this ``member``.

    ``patience``: how long a submission may take, in seconds; ``largest``: bytes of one.
    """

    def __init__(self, url: str, member: Member, patience: float, largest: int) -> None:
        self.member: Final = member
        self._url = url
        self.patience = patience
        self.largest = largest
        self._overlong = False

    async def send(self, method: bytes, target: bytes, lines: bytes, body: bytes) -> Reply:
        """One exchange with a client's own header lines; raises ``AskError``."""
        try:
            return await exchange(self._url, method, target, lines, body, timeout=self.patience)
        except AskError as error:
            if error.refused:
                self.member.failed()
            raise

    async def submit(self, body: bytes, gpu: int | None, trace: str = "") -> Reply:
        """Submit a prompt on the gateway's own account, within that trace; raises ``AskError``."""
        lines = b"Content-Type: application/json\r\n"
        if trace:
            lines += b"traceparent: %b\r\n" % trace.encode()
        if gpu is not None:
            lines += self.line(gpu)
        return await self.send(b"POST", b"/prompt", lines, body)

    async def check(self, lines: bytes, body: bytes) -> Reply:
        """What the backend would answer to this submission, which it does not take; raises ``AskError``."""
        return await self.send(b"POST", b"/prompt/check", lines, body)

    async def count(self, waiting: Mapping[str, int]) -> Reply:
        """Tell how many jobs of these clients wait with us; raises ``AskError``."""
        lines = b"Content-Type: application/json\r\n"
        body = json.dumps({"waiting": waiting}).encode()
        return await exchange(self._url, b"POST", b"/queue/waiting", lines, body, timeout=_QUIET)

    async def stop(self, job: str, gpu: int | None) -> None:
        """Take a job out of the queue, or interrupt it, whichever it is; who does not answer has not heard it."""
        lines = b"Content-Type: application/json\r\n" + (self.line(gpu) if gpu is not None else b"")
        with contextlib.suppress(AskError):
            await self.send(b"POST", b"/queue", lines, json.dumps({"delete": [job]}).encode())
            await self.send(b"POST", b"/interrupt", lines, json.dumps({"prompt_id": job}).encode())

    def line(self, gpu: int) -> bytes:
        """The field line that names a GPU to this backend, by its own number."""
        return b"%b: %d\r\n" % (GPU_HEADER, gpu - self.member.first)

    async def queues(self) -> Seen:
        """What waits and what runs, on all lanes; raises ``AskError``."""
        try:
            # Without their graphs: a backend that does not know the query shows these as well.
            reply = await self._ask(b"/queue/all?ids=1")
            if reply.status == 200 and (seen := read_queues(reply.body)) is not None:
                return seen
            # Plain ComfyUI has one queue and no such route.
            reply = await self._ask(b"/queue")
        except AskError as error:
            if not error.answered:
                raise
            self._say(error)
            return Seen(frozenset(), frozenset(), whole=False)
        if reply.status == 200 and (seen := read_queues(reply.body)) is not None:
            return seen
        raise AskError("The backend shows no queues.", answered=True)

    def _say(self, error: AskError) -> None:
        if not self._overlong:
            self._overlong = True
            log.warning("the queues of GPU %d and further cannot be read whole: %s", self.member.first, error)

    async def status(self, target: bytes) -> int:
        """The status of a GET, whose body is not read; raises ``AskError``."""
        return (await exchange(self._url, b"GET", target, b"", b"", timeout=_QUIET, headless=True)).status

    async def entry(self, job: str) -> dict[str, Any] | None:
        """The job's entry in the backend's history, if it has one; raises ``AskError``."""
        # It holds the graph, and JSON may write one character of that as twelve bytes where the client sent four.
        reply = await self._ask(b"/history/" + quote(job, safe="").encode(), _ESCAPED * self.largest)
        if reply.status == 404:
            # Its router takes some ids, such as those with braces, for no id at all.
            reply = await self._ask(b"/history")
        if reply.status != 200:
            raise AskError(f"GET /history/… was answered with {reply.status}.", answered=True)
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError):
            raise AskError("The backend's history is no JSON.", answered=True) from None
        entry = found.get(job) if isinstance(found, dict) else None
        return entry if isinstance(entry, dict) else None

    async def _ask(self, target: bytes, more: int = 0) -> Reply:
        return await exchange(self._url, b"GET", target, b"", b"", timeout=_QUIET, limit=LIMIT + more)


class Peers:
    """All backends, in the fleet's order."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = tuple(peers)
        self._of = [peer for peer in self._peers for _ in range(peer.member.gpus)]

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers)

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, gpu: int | None) -> Peer:
        """The backend that a GPU belongs to; of one that no longer exists, or of none, the first."""
        return self._of[gpu] if gpu is not None and gpu < len(self._of) else self._peers[0]

    @property
    def there(self) -> list[Peer]:
        """Those that take requests now."""
        return [peer for peer in self._peers if peer.member.up]


def read_queues(body: bytes) -> Seen | None:
    """The ids in an answer of ``/queue/all`` or ``/queue``; ``None`` when it is neither."""
    try:
        found = json.loads(body)
        queues = found.get("queues", [found])
        running = frozenset(str(item[1]) for queue in queues for item in queue["queue_running"])
        pending = frozenset(str(item[1]) for queue in queues for item in queue["queue_pending"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return Seen(running, pending)
