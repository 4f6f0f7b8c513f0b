"""``python -m bench.gil``: how far lanes in one process scale when each must hold the interpreter to issue its work.

A lane's step is ``h`` seconds of issuing small torch operations, which needs the interpreter, and then a wait until
the step's time ``T`` is over, which does not, as a GPU's step is. Prints, per ``h/T``, the throughput of several lanes
over that of one, measured in turns in one run, beside the ideal ``min(lanes, T/h)``. It measures and judges nothing.
"""

import argparse
import statistics
import threading
import time

import torch

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
OPERATIONS = 400
"""Small operations a step: as many as a few transformer blocks issue."""


def issue(state: torch.Tensor) -> None:
    """One step's work for the interpreter: many operations, each too small to be worth its call."""
    for _ in range(OPERATIONS // 2):
        state = torch.add(state, 1.0)
        state = torch.mul(state, 0.5)


def issue_seconds() -> float:
    """What one step's issuing takes when nobody else is there: the median of many."""
    state = torch.zeros(64)
    took = []
    for _ in range(50):
        began = time.perf_counter()
        issue(state)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def steps_done(lanes: int, wait: float, seconds: float) -> int:
    """Steps that ``lanes`` threads finish together in that time; ``wait`` follows each step's issuing."""
    counts = [0] * lanes
    until = time.perf_counter() + seconds

    def lane(index: int) -> None:
        state = torch.zeros(64)
        with torch.inference_mode():
            while time.perf_counter() < until:
                issue(state)
                time.sleep(wait)
                counts[index] += 1

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.gil", description=__doc__)
    parser.add_argument("--lanes", type=int, default=4, help="threads beside each other (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    held = issue_seconds()
    print(f"{OPERATIONS} operations hold the interpreter for {held * 1e3:.2f} ms a step; {chosen.lanes} lanes")
    print(f"{'h/T':>6} {'ideal':>7} {'measured':>9}")
    for share in SHARES:
        wait = held / share - held
        ratios = []
        for _ in range(chosen.rounds):
            alone = steps_done(1, wait, chosen.seconds)
            ratios.append(steps_done(chosen.lanes, wait, chosen.seconds) / max(1, alone))
        print(f"{share:>6} {min(chosen.lanes, 1 / share):>7.2f} {statistics.median(ratios):>9.2f}")


if __name__ == "__main__":
    main()
