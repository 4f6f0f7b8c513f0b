"""``python -m bench.gil``: how far lanes in one process scale when each must hold the interpreter to issue its work.

A lane's step is ``h`` seconds of issuing small torch operations, which needs the interpreter, and then a wait until
the step's time ``T`` is over, which does not, as a GPU's step is. Prints, per ``h/T``, the throughput of several lanes
over that of one, measured in turns in one run: all issuing as they like, one at a time under the backend's issue lock,
and in processes of their own; beside the ideal ``min(lanes, T/h)``. It measures and judges nothing.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager

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


def steps_done(lanes: int, wait: float, seconds: float, lock: AbstractContextManager[object] | None = None) -> int:
    """Steps that ``lanes`` threads finish together in that time; ``wait`` follows each step's issuing."""
    counts = [0] * lanes
    held = lock or contextlib.nullcontext()
    until = time.perf_counter() + seconds

    def lane(index: int) -> None:
        state = torch.zeros(64)
        with torch.inference_mode():
            while time.perf_counter() < until:
                with held:
                    issue(state)
                time.sleep(wait)
                counts[index] += 1

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


class Processes:
    """As many processes with one lane each, kept for all turns."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "bench.gil", "--child"]
        self._children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for child in self._children:
            self._answer(child)

    def steps_done(self, wait: float, seconds: float) -> int:
        """Steps that all of them finish together."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(f"{wait} {seconds}\n")
            child.stdin.flush()
        return sum(self._answer(child) for child in self._children)

    def close(self) -> None:
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(30)
            assert child.stdout is not None
            child.stdout.close()

    @staticmethod
    def _answer(child: subprocess.Popen[str]) -> int:
        assert child.stdout is not None
        return int(child.stdout.readline())


def child() -> None:
    """A process of ``Processes``: one turn for each line it reads."""
    torch.set_num_threads(1)
    issue_seconds()
    print(0, flush=True)
    for line in sys.stdin:
        wait, seconds = map(float, line.split())
        print(steps_done(1, wait, seconds), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.gil", description=__doc__)
    parser.add_argument("--lanes", type=int, default=4, help="threads beside each other (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child()
        return
    torch.set_num_threads(1)
    held = issue_seconds()
    processes = Processes(chosen.lanes)
    print(f"{OPERATIONS} operations hold the interpreter for {held * 1e3:.2f} ms a step; {chosen.lanes} lanes")
    print(f"{'h/T':>6} {'ideal':>7} {'threads':>9} {'lock':>9} {'processes':>10}")
    for share in SHARES:
        wait = held / share - held
        free, locked, apart = [], [], []
        for _ in range(chosen.rounds):
            alone = max(1, steps_done(1, wait, chosen.seconds))
            free.append(steps_done(chosen.lanes, wait, chosen.seconds) / alone)
            locked.append(steps_done(chosen.lanes, wait, chosen.seconds, threading.Lock()) / alone)
            apart.append(processes.steps_done(wait, chosen.seconds) / alone)
        one, two, three = (statistics.median(each) for each in (free, locked, apart))
        ideal = min(chosen.lanes, 1 / share)
        print(f"{share:>6} {ideal:>7.2f} {one:>9.2f} {two:>9.2f} {three:>10.2f}", flush=True)
    processes.close()


if __name__ == "__main__":
    main()
