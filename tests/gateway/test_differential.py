"""Odd and evil requests, to the gateway and to nginx side by side: equal, or the difference has its reason written.

An outcome is what the client is told, and which requests reach the backend. The reasons are a table of
``docs/http.md``; what stands there must still differ, and what does not stand there must not.
"""

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.doubles.http_backend import Backend, Peer, scripted
from tests.doubles.http_client import raw, request
from tests.doubles.http_stack import stack
from tests.doubles.nginx import nginx, nginx_before
from tests.gateway.test_proxy_bodies import BAD_CHUNKS, CHUNKED
from tests.gateway.test_proxy_refusals import BAD

ROOT = Path(__file__).parents[2]
BEHIND = request("/smuggled", "Connection: close")

CASES: dict[str, bytes] = {name: data for name, (data, _) in BAD.items() if not name.startswith("endless")}
CASES |= {f"chunks: {name}": request("/", CHUNKED, method="POST") + body for name, body in BAD_CHUNKS.items()}
CASES |= {
    "plain": request("/a"),
    "a body": request("/a", method="POST", body=b"hello"),
    "chunks": request("/a", CHUNKED, method="POST") + b"5\r\nhello\r\n0\r\n\r\n",
    "an empty line before": b"\r\n" + request("/a"),
    "two empty lines before": b"\r\n\r\n" + request("/a"),
    "a tab before the coding": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
    "coding in capitals": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
    "an underscore in a name": request("/a", "Content_Length: 5"),
    "absolute form": b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form of another host": b"GET http://b/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "length in HTTP/1.0": b"POST /a HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "a host with a path": b"GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a length on GET": b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "a nominated length": request("/a", "Connection: Content-Length", method="POST", body=b"hello"),
    "h2c": request("/a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "a large chunk size": request("/a", CHUNKED, method="POST") + b"FFFFFFFFFFFFFFFFF\r\nhello",
    "chunks with an extension": request("/a", CHUNKED, method="POST") + b"5;xxxxxxxx=xxxxxxxx\r\nhello\r\n0\r\n\r\n",
    "a trailer that is a length": request("/a", CHUNKED, method="POST") + b"0\r\nContent-Length: 5\r\n\r\n",
}


@dataclass(frozen=True)
class Outcome:
    """Statuses of the answers, and what the backend was asked, in order."""

    statuses: tuple[int, ...]
    asked: tuple[bytes, ...]

    def __str__(self) -> str:
        told = ", ".join(map(str, self.statuses)) or "closed"
        return f"{told}; {len(self.asked)} reach the backend" if self.asked else told


async def lenient(peer: Peer) -> None:
    """A backend that takes what comes for what it looks like."""
    while True:
        await peer.request()
        await peer.reply(b"ok")


@contextlib.asynccontextmanager
async def both(folder: Path) -> AsyncIterator[list[tuple[Backend, int]]]:
    """The gateway and nginx, each before a backend of its own: backend and port."""
    async with scripted(lenient) as other, nginx_before(other.port, folder) as port, stack(lenient) as made:
        yield [(made.backend, made.port(0)), (other, port)]


async def outcome(side: tuple[Backend, int], data: bytes) -> Outcome:
    """Send it, with a request behind that must not be taken for another, and look."""
    backend, port = side
    backend.seen.clear()
    async with raw(port) as client:
        with contextlib.suppress(OSError):
            await client.send(data + BEHIND)
        answers = await client.rest()
    statuses = tuple(int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers))
    return Outcome(statuses, tuple(seen.target for seen in backend.seen))


ROW = re.compile(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def explained() -> dict[str, tuple[str, str]]:
    """The differences that the page explains: by case, our outcome and nginx's."""
    text = (ROOT / "docs/http.md").read_text(encoding="utf-8")
    table = text.partition("## Beside nginx")[2].partition("\n## ")[0]
    return {case: (ours, theirs) for case, ours, theirs, _ in ROW.findall(table)}


def test_the_page_names_no_case_that_is_not_tried():
    """A row of the table is about a case of this file."""
    assert explained()
    assert set(explained()) <= set(CASES)


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed, which is the other side of this test")
async def test_every_difference_to_nginx_is_explained(tmp_path):
    """Each case has equal outcomes on both sides, or exactly those that the page gives a reason for."""
    found = {}
    async with both(tmp_path) as sides:
        for case, data in CASES.items():
            ours, theirs = [await outcome(side, data) for side in sides]
            if ours != theirs:
                found[case] = (str(ours), str(theirs))
    assert found == explained()
