"""The rows of the table: what is asked, on which stand, and how it is measured.

Every row gives, by peer, CPU (user and system time of the peer's process) per request or message in microseconds, how
many a second, and how late they were; and the gateway's CPU over nginx's as its ratio. Peers take turns.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import load
from bench.frontend import lay_out
from bench.load import Ask, Seen
from bench.stand import JOURNALED, PEERS, Peer, Stand

Figures = dict[str, dict[str, float]]
"""By peer: ``cpu`` µs each, ``rate`` a second, ``p50`` and ``p99`` ms, and what a row has of its own."""

RECORD: Final = Path(__file__).resolve().parents[1] / "tests" / "data" / "pageload_cold.json"
HUNDRED_MB: Final = 100_000_000

PROMPT: Final = json.dumps({
    "prompt": {
        str(node): {"class_type": "KSampler", "inputs": {"seed": node, "text": "x" * 80, "model": ["4", 0]}}
        for node in range(130)
    },
    "client_id": "bench",
}).encode()
"""20 KB, as a large workflow has."""


@dataclass(frozen=True)
class Span:
    """How long everything takes."""

    rounds: int = 3
    seconds: float = 1.0
    """Length of one turn."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``unit`` is what is counted."""

    name: str
    origin: str
    measure: "Callable[[Stand, Span], Figures]"
    peers: tuple[str, ...] = PEERS
    unit: str = "request"
    note: str = ""
    own: tuple[str, ...] = field(default=())
    """Further figures that it gives."""

    def run(self, folder: Path, span: Span, frontend: Path | None = None) -> tuple[Figures, list[str]]:
        """Measure on a stand of its own; also which peers are missing."""
        with ExitStack() as stack:
            page = None
            if self.origin == "page":
                page = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
                lay_out(page, frontend, RECORD)
            stand = stack.enter_context(Stand(folder, self.origin, self.peers, page))
            return self.measure(stand, span), stand.missing


def requests(ask: Ask, connections: int, rate: float, limit: int = 32) -> Callable[[Stand, Span], Figures]:
    """Saturated for CPU and throughput, then at ``rate`` a second for the latencies."""

    def measure(stand: Stand, span: Span) -> Figures:
        turns: dict[str, list[Seen]] = {name: [] for name in stand.peers}
        costs: dict[str, list[float]] = {name: [] for name in stand.peers}
        for turn in range(span.rounds + 1):
            for name, peer in stand.peers.items():
                seen, cost = _charged(peer, lambda port: load.busy(port, ask, connections, span.seconds))
                if turn:  # the first turn warms up
                    turns[name].append(seen)
                    costs[name].append(cost)
        found = {}
        for name, peer in stand.peers.items():
            even = load.offered(peer.port, ask, rate, span.seconds * 2, limit)
            rates = [seen.count / seen.seconds for seen in turns[name]]
            even.failed += sum(seen.failed for seen in turns[name])
            found[name] = _figures(statistics.median(costs[name]), statistics.median(rates), even)
        return found

    return measure


def single(run: Callable[[int, Span], Seen], *, rounds: int = 0) -> Callable[[Stand, Span], Figures]:
    """One load that gives everything at once; ``rounds`` overrides the usual number of turns."""

    def measure(stand: Stand, span: Span) -> Figures:
        costs: dict[str, list[float]] = {name: [] for name in stand.peers}
        all_seen = {name: Seen() for name in stand.peers}
        for turn in range((rounds or span.rounds) + 1):
            for name, peer in stand.peers.items():
                seen, cost = _charged(peer, lambda port: run(port, span))
                if turn:
                    costs[name].append(cost)
                    total = all_seen[name]
                    total.count += seen.count
                    total.seconds += seen.seconds
                    total.latencies += seen.latencies
                    total.failed += seen.failed
        return {
            name: _figures(statistics.median(costs[name]), seen.count / seen.seconds, seen)
            for name, seen in all_seen.items()
        }

    return measure


def page_load(stand: Stand, span: Span) -> Figures:
    """A browser with an empty cache before peers that have seen the page; the very first one apart, as ``first``."""
    targets = [target for _, method, target in json.loads(RECORD.read_text(encoding="utf-8")) if method == "GET"]
    runs: dict[str, list[tuple[Seen, float, float]]] = {name: [] for name in stand.peers}
    for _ in range(span.rounds + 1):
        for name, peer in stand.peers.items():
            before = stand.origin.cpu()
            seen, cost = _charged(peer, lambda port: load.page(port, targets))
            runs[name].append((seen, cost, (stand.origin.cpu() - before) / len(targets) * 1e6))
    found = {}
    for name, (first, *later) in runs.items():
        took = [seen.seconds for seen, _, _ in later]
        found[name] = {
            "cpu": statistics.median(cost for _, cost, _ in later),
            "rate": len(targets) / statistics.median(took),
            "seconds": statistics.median(took),
            "MB": later[-1][0].bytes / 1e6,
            "origin cpu": statistics.median(cost for _, _, cost in later),
            "first seconds": first[0].seconds,
            "first MB": first[0].bytes / 1e6,
        }
    return found


def _charged(peer: Peer, run: Callable[[int], Seen]) -> tuple[Seen, float]:
    """What was seen, and the peer's CPU for each in microseconds."""
    before = peer.cpu()
    seen = run(peer.port)
    return seen, (peer.cpu() - before) / max(1, seen.count) * 1e6


def _figures(cpu: float, rate: float, seen: Seen) -> dict[str, float]:
    figures = {"cpu": cpu, "rate": rate, "p50": seen.late(0.5), "p99": seen.late(0.99)}
    return figures | {"failed": seen.failed} if seen.failed else figures


def ratio(figures: Figures, name: str = "gateway") -> float | None:
    """The gateway's CPU over nginx's, without the journal; ``name`` may be ``compiled``."""
    ours, nginx = figures.get(name), figures.get("nginx")
    return ours["cpu"] / nginx["cpu"] if ours and nginx and nginx["cpu"] else None


SMALL: Final = Ask("/small")
PAGE_FIGURES: Final = ("seconds", "MB", "origin cpu", "first seconds", "first MB")

ROWS: Final = (
    Row("small GET", "files", requests(SMALL, 16, 1000), (*PEERS, JOURNALED)),
    Row("small GET, changing heads", "files", requests(Ask("/small", varied=True), 16, 1000), PEERS),
    Row("POST /prompt 20 KB", "routes", requests(Ask("/prompt", "POST", PROMPT), 16, 50), (*PEERS, JOURNALED)),
    Row("2 MB download", "files", requests(Ask("/big"), 4, 50)),
    Row("100 MB upload", "routes", single(lambda port, span: load.upload(port, HUNDRED_MB, 1)), unit="upload"),
    Row(
        "WebSocket, 100 B messages", "routes",
        single(lambda port, span: load.listening(port, 100, 500, 8, span.seconds)), unit="message",
    ),
    Row(
        "WebSocket, 200 KB messages", "routes",
        single(lambda port, span: load.listening(port, 200_000, 25, 8, span.seconds)), unit="message",
    ),
    Row(
        "1,000 connections", "files",
        single(lambda port, span: load.thinking(port, SMALL, 1000, 1.0, 2 + span.seconds), rounds=1),
        note="each thinks for a second between requests",
    ),
    Row("page load, cold browser", "page", page_load, own=PAGE_FIGURES, note="471 requests over 6 connections"),
    Row("connection per request", "files", requests(Ask("/small", close=True), 16, 300)),
)
