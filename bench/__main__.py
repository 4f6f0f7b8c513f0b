"""``python -m bench``: CPU per proxied request of the gateway and of nginx, and their ratio.

Both stand before the same origin with the same duties: header injection, a rate limit that passes everything, kept
alive connections to the backend. They are measured in turns, so that a machine that gets slower gets slower for both.
It measures and prints; it never fails a build.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load import Row, cpu_seconds, run_load
from bench.stand import Stand

ROWS = (
    Row("small GET", "/small", "GET", 16),
    Row("small GET, changing heads", "/small", "GET", 16, varied=True),
    Row("2 MB body", "/big", "GET", 4),
    Row("POST 20 KB", "/sink", "POST", 16, body=20_000),
)

SUFFIX = "-comfy-gateway-bench"


def main() -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--only", metavar="ROW", help="measure only the row with this name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(SUFFIX) as folder, Stand(Path(folder)) as stand:
        if not stand.has_nginx:
            print("nginx is not installed: there is no peer, only the gateway is measured, with an origin in Python")
        figures = {}
        for row in ROWS:
            if args.only in {None, row.name}:
                figures[row.name] = measure(stand, row, args.rounds, args.seconds)
                print(line(row.name, figures[row.name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(stand: Stand, row: Row, rounds: int, seconds: float) -> dict[str, float]:
    """Microseconds of CPU per request of each peer, the median of its turns, and the ratio."""
    costs: dict[str, list[float]] = {name: [] for name in stand.peers}
    speeds: dict[str, list[float]] = {name: [] for name in stand.peers}
    for turn in range(rounds + 1):
        for name, peer in stand.peers.items():
            before = cpu_seconds(peer.pid)
            requests, took = run_load(peer.port, row, seconds if turn else 0.3)
            if turn:  # the first turn warms up
                costs[name].append((cpu_seconds(peer.pid) - before) / requests * 1e6)
                speeds[name].append(requests / took)
    figures = {f"{name} µs": statistics.median(values) for name, values in costs.items()}
    figures |= {f"{name} requests/s": statistics.median(values) for name, values in speeds.items()}
    if "nginx" in costs:
        figures["ratio"] = figures["gateway µs"] / figures["nginx µs"]
    return figures


def line(name: str, figures: dict[str, float]) -> str:
    """One row as it is printed."""
    text = f"{name:<26} gateway {figures['gateway µs']:7.1f} µs ({figures['gateway requests/s']:6.0f}/s)"
    if "ratio" in figures:
        text += f"   nginx {figures['nginx µs']:7.1f} µs ({figures['nginx requests/s']:6.0f}/s)"
        text += f"   ratio {figures['ratio']:.2f}"
    return text


if __name__ == "__main__":
    sys.exit(main())
