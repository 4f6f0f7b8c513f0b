"""``python -m bench``: the gateway beside nginx, HAProxy and a plain aiohttp proxy, in one run on one machine.

All have the same duties as far as they know them (``bench/peers.py``), stand before the same origin, and take turns, so
that a machine that gets slower gets slower for all. CPU is each process's own time. It measures and prints; it never
fails a build.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

from bench.rows import ROWS, Figures, Row, Span, ratio
from bench.stand import COMPILED

SUFFIX = "-comfy-gateway-bench"


def main() -> int:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=Span.rounds, help="turns of each peer (default 3)")
    parser.add_argument("--seconds", type=float, default=Span.seconds, help="length of one turn (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--only", metavar="ROW", help="only the rows whose name begins so")
    parser.add_argument("--peers", metavar="A,B", help="only these peers, separated by commas")
    parser.add_argument("--frontend", type=Path, metavar="DIR", help="comfyui_frontend_package/static, for the page")
    args = parser.parse_args()
    # So that nothing of it outlives a bench that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    span = Span(args.rounds, args.seconds)
    rows = [row for row in ROWS if row.name.startswith(args.only or "")]
    if not rows:
        parser.error(f"no row begins with {args.only!r}; there are: {', '.join(row.name for row in ROWS)}")
    print(machine(), flush=True)
    told: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory(SUFFIX) as name:
        for number, row in enumerate(rows):
            folder = Path(name) / str(number)
            folder.mkdir()
            chosen = row if not args.peers else with_peers(row, args.peers.split(","))
            figures, missing = chosen.run(folder, span, args.frontend)
            print(table(row, figures, missing), flush=True)
            told[row.name] = {
                "ratio": ratio(figures),
                "compiled ratio": ratio(figures, COMPILED),
                "unit": row.unit,
                "peers": figures,
                "missing": missing,
            }
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def with_peers(row: Row, wanted: list[str]) -> Row:
    """The same row with fewer peers."""
    return Row(row.name, row.origin, row.measure, tuple(name for name in row.peers if name in wanted), row.unit)


def machine() -> str:
    """What it runs on."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    return f"{os.cpu_count()} CPUs {model or platform.machine()}, Python {platform.python_version()}"


def table(row: Row, figures: Figures, missing: list[str]) -> str:
    """One row as it is printed: its ratio first, then a line for each peer."""
    found = ratio(figures)
    says = f"ratio {found:.2f}" if found is not None else "no ratio: nginx is not installed or was not asked for"
    if (compiled := ratio(figures, COMPILED)) is not None:
        says += f", compiled {compiled:.2f}"
    lines = [f"{row.name} … {says}" + (f"   ({row.note})" if row.note else "")]
    for name, each in figures.items():
        text = f"    {name:<16} {each['cpu']:10.1f} µs CPU per {row.unit}  {each['rate']:9.1f}/s"
        if "p50" in each:
            text += f"   p50 {each['p50']:8.2f} ms   p99 {each['p99']:8.2f} ms"
        text += f"   {each['failed']:.0f} failed" if each.get("failed") else ""
        text += "".join(f"   {key} {each[key]:.2f}" for key in row.own if key in each)
        lines.append(text)
    lines += [f"    {name:<16} {'not built (make bench)' if name == COMPILED else 'not installed'}" for name in missing]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
