"""``python -m bench.gpu``: throughput of 1, 2 and 4 lanes by weight of the model, beside plain ComfyUI and processes.

usage: COMFYUI_DIR=/path/to/ComfyUI [COMFYUI_PYTHON=…] python -m bench.gpu [--lanes 1,2,4] [--weights light,heavy]

For each weight class: plain ComfyUI on one GPU, the overlay with so many lanes, and so many plain processes with a GPU
each, one after the other in one run, with models of random weights that are written first. Without COMFYUI_DIR the
embedded engine stands in. ``--dry`` runs all of it on the CPU with a tiny model, to see that it runs; its figures mean
nothing. It measures and judges nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_stands import TINY, WEIGHTS, Comfys, Engines, Site, Weight, cards
from tests.comfyui import stack
from tests.comfyui.wire import outcome

NOT_RUN = "not run: no CUDA device. `python -m bench.gpu --dry` runs it on the CPU, to see that it runs."


@dataclass(frozen=True)
class Row:
    """One way of running one weight class."""

    weight: str
    way: str
    gpus: int
    rate: float
    """Steps a second, of all GPUs together."""
    issuing: dict[str, Any] | None = None
    """What the lanes said of themselves."""


def rate(site: Site, stand: Engines, weight: Weight, jobs: int) -> float:
    """Steps a second of jobs that wait in every lane's queue, when each lane has its model loaded."""
    first = [(lane, lane.submit(stand.prompt(weight, 1))) for lane in site.lanes]
    for lane, job in first:
        _succeeded(lane.finished(job))
    began = time.perf_counter()
    seeds = range(100, 100 + jobs)
    submitted = [(lane, lane.submit(stand.prompt(weight, seed))) for seed in seeds for lane in site.lanes]
    for lane, job in submitted:
        _succeeded(lane.finished(job))
    return len(submitted) * weight.steps / (time.perf_counter() - began)


def _succeeded(entry: dict[str, Any]) -> None:
    if outcome(entry) != "success":
        raise RuntimeError(f"a job failed: {entry['status']}")


def measure(stand: Engines, weight: Weight, lanes: Sequence[int], jobs: int) -> list[Row]:
    """One plain process, then lanes, then processes."""
    stand.prepare(weight)
    rows = []
    several = [count for count in lanes if count > 1]
    ways = [("plain", 1), *(("lanes", count) for count in lanes), *(("processes", count) for count in several)]
    for way, count in ways:
        site = stand.lanes(count) if way == "lanes" else stand.processes(count)
        try:
            found = rate(site, stand, weight, jobs)
            issuing = site.lanes[0].get("/debug/queues")["issuing"] if way == "lanes" else None
        finally:
            site.stop()
        rows.append(Row(weight.name, way, count, found, issuing))
        print(f"  {weight.name}, {way} {count}: {found:.2f} steps/s", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """One line for each row, over the plain process of its class."""
    lines = ["| model | | GPUs | steps/s | over plain | h/T | verdict |", "|---|---|---|---|---|---|---|"]
    plain = {row.weight: row.rate for row in rows if row.way == "plain"}
    for row in rows:
        ratios = [lane["ratio"] for lane in row.issuing["lanes"] if lane["ratio"] is not None] if row.issuing else []
        share = f"{sum(ratios) / len(ratios):.3f}" if ratios else ""
        verdict = row.issuing["verdict"] if row.issuing else ""
        lines.append(f"| {row.weight} | {row.way} | {row.gpus} | {row.rate:.2f} | {row.rate / plain[row.weight]:.2f} | "
                     f"{share} | {verdict} |")
    return lines


def head(stand: Engines, found: dict[str, Any], most: int, dry: bool) -> list[str]:
    """What was measured on."""
    if dry:
        return [f"DRY RUN on the CPU, {stand.name}: that it runs is all that this says."]
    lines = [f"{stand.name}, torch {found['torch']}, {found['count']} x {found['name']}"]
    if found["count"] < most:
        lines.append(f"{most} lanes and {most} processes share {found['count']} card(s)")
    return [*lines, f"asking for free memory: {found['micros']:.0f} µs"]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--lanes", default="1,2,4", help="numbers of lanes (default 1,2,4)")
    parser.add_argument("--weights", default=",".join(each.name for each in WEIGHTS), help="weight classes")
    parser.add_argument("--jobs", type=int, default=6, help="jobs for each lane (default 6)")
    parser.add_argument("--models", type=Path, default=None, help="folder that keeps the models between runs")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a tiny model")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 2 when there is nothing to measure on."""
    chosen = arguments(argv)
    counts = [int(each) for each in chosen.lanes.split(",")]
    comfy = stack.named_comfy()
    found = {"count": 0} if chosen.dry else cards(comfy.python if comfy else sys.executable)
    if not chosen.dry and not found["count"]:
        print(NOT_RUN)
        return 2
    weights = [TINY] if chosen.dry else [each for each in WEIGHTS if each.name in chosen.weights.split(",")]
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as name:
        folder = Path(name)
        models = chosen.models or folder / "models"
        stand = Comfys(folder, found["count"], comfy, models) if comfy else Engines(folder, found["count"])
        rows = [row for weight in weights for row in measure(stand, weight, counts, chosen.jobs)]
    print("\n".join([*head(stand, found, max(counts), chosen.dry), *table(rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
