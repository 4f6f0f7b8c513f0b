"""``python -m bench.schedule``: the gateway's scheduler against what else one could do, on the same arrivals.

Four GPUs, one half as fast as the others; three checkpoints, of which a GPU holds one; durations with a long tail. The
scheduler is the object that the gateway uses. ``--journal FOLDER`` replays what a gateway has seen instead.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.arrivals import World, generated, recorded
from bench.replay import LeastConn, Ours, Policy, PollAndPick, Replay, Result, RoundRobin

POLICIES: dict[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "least_conn": LeastConn,
    "poll-and-pick": PollAndPick,
    "gateway": Ours,
    "gateway, speeds unknown": lambda: Ours(told=False),
}
REGIMES = (("busy: 90 % of what the GPUs can do", 0.9), ("overloaded: 120 %", 1.2), ("all at once", 1000.0))


def table(worlds: Sequence[World]) -> dict[str, list[Result]]:
    """Every policy on every world."""
    return {name: [Replay(world, made()).run() for world in worlds] for name, made in POLICIES.items()}


def ahead(rows: dict[str, list[Result]], ours: str = "gateway") -> tuple[int, int]:
    """On how many worlds ``ours`` has the least mean wait, and the fewest loads, of all but its own kind."""
    others = [results for name, results in rows.items() if not name.startswith("gateway")]
    pairs = list(enumerate(rows[ours]))
    waits = sum(all(result.mean < other[at].mean for other in others) for at, result in pairs)
    loads = sum(all(result.loads < other[at].loads for other in others) for at, result in pairs)
    return waits, loads


def show(name: str, worlds: Sequence[World]) -> None:
    """One table: means over the worlds, and in brackets the least and the most."""
    rows = table(worlds)
    bounds = [world.lower_bound() for world in worlds]
    print(f"\n{name}: {len(worlds)} run(s) of {len(worlds[0].jobs)} jobs, lower bound {_spread(bounds, 0)} s")
    print(f"{'':24} {'makespan / bound':>20} {'mean wait, s':>18} {'p95 wait, s':>18} {'model loads':>14}")
    for policy, results in rows.items():
        ratios = [result.makespan / bound for result, bound in zip(results, bounds, strict=True)]
        print(
            f"{policy:24} {_spread(ratios, 2):>20} {_spread([each.mean for each in results], 0):>18} "
            f"{_spread([each.p95 for each in results], 0):>18} {_spread([each.loads for each in results], 0):>14}"
        )
    waits, loads = ahead(rows)
    print(f"gateway ahead of all three: mean wait in {waits}, model loads in {loads} of {len(worlds)} run(s)")
    errors = [error for result in rows["gateway"] for error in result.eta_errors]
    print(f"gateway's expected end, as a job came, was off by {statistics.median(errors):.0f} s in the median")


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else mean


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.schedule", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="generated runs of each kind (default 10)")
    parser.add_argument("--jobs", type=int, default=400, help="jobs in each (default 400)")
    parser.add_argument("--journal", type=Path, metavar="FOLDER", help="replay the arrivals of this journal")
    args = parser.parse_args()
    if args.journal:
        show(f"recorded in {args.journal}", [recorded(args.journal)])
        return
    for name, busy in REGIMES:
        show(name, [generated(seed, args.jobs, busy) for seed in range(1, args.seeds + 1)])


if __name__ == "__main__":
    main()
