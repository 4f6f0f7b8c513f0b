"""``python -m bench.soak --minutes N``: mixed load with faults on both sides, and a look at what is left of it.

Requests, uploads, bridges, clients that leave, stall and talk nonsense; a backend that resets, stalls, breaks off and
answers early. Between rounds the load pauses, and the gateway's process is looked at: open files, tasks, what it holds
for anybody, memory. It ends with 1 when any of that grows, or when any answer was not what it must be.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.bridges import end, module, private
from bench.files import allow_files
from bench.soak_load import Load
from bench.stand import free_port, wait_for

LATE = 0.01
"""Share of answers that may be late: the machine does other things, too."""
MORE_FILES = 4
MORE_OBJECTS = 20
"""A connection or two may just be going; one that stays for each that left in haste is a hundred after a minute."""
MORE_MEMORY = 8 * 2**20
"""Bytes by which the last look may be above the first: caches that fill, the heap's own holes."""
SETTLE = 60.0


@dataclass(frozen=True)
class Look:
    """The gateway's process while nobody asks anything of it."""

    files: int
    tasks: int
    held: int
    """Clients, requests, bridges and connections to the backend."""
    objects: int
    """Objects of the gateway's own classes."""
    memory: int


class Watched:
    """The gateway under load, as a process that tells about itself when it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def look(self) -> Look:
        """Ask it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        files = len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))
        return Look(files, told["tasks"], told["held"], told["objects"], private(self._process.pid))

    def settled(self) -> Look:
        """Look until nothing is held for anybody any more, or for as long as anything may take to end."""
        deadline = time.monotonic() + SETTLE
        while (look := self.look()).held and time.monotonic() < deadline:
            time.sleep(0.2)
        return look


def main() -> int:
    """Load, look, print; 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--workers", type=int, default=40, help="clients at once (default 40)")
    parser.add_argument("--rounds", type=int, default=6, help="looks at the process, after a warm-up (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="for the order of what they do (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, too")
    args = parser.parse_args()
    allow_files()
    with started() as (watched, port):
        load = Load(port, args.workers, args.seed)
        looks: list[Look] = []
        for turn in range(args.rounds + 1):
            asyncio.run(load.run(args.minutes * 60 / (args.rounds + 1)))
            look = watched.settled()
            if turn:  # the first round warms up
                looks.append(look)
                print(f"{turn}: {load.done.total():7} done  {line(look)}", flush=True)
    faults = judge(looks, load)
    for fault in faults:
        print("WRONG:", fault)
    if args.json:
        told = {"minutes": args.minutes, "done": load.done, "looks": [asdict(look) for look in looks], "faults": faults}
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("leaks nothing" if not faults else f"{len(faults)} fault(s)")
    return bool(faults)


def line(look: Look) -> str:
    """A look as it is printed."""
    counts = f"files {look.files}  tasks {look.tasks}  held {look.held}  objects {look.objects}"
    return f"{counts}  memory {look.memory / 2**20:.1f} MiB"


def judge(looks: list[Look], load: Load) -> list[str]:
    """Everything that must not be."""
    first, last = looks[0], looks[-1]
    faults = [f"{count} x {what}" for what, count in load.wrong.most_common()]
    if load.late > LATE * load.done.total():
        faults.append(f"{load.late} of {load.done.total()} answers were late")
    if any(look.held for look in looks):
        faults.append("something is held for clients that have left")
    if last.files > first.files + MORE_FILES:
        faults.append(f"open files grew from {first.files} to {last.files}")
    if last.tasks > first.tasks:
        faults.append(f"tasks grew from {first.tasks} to {last.tasks}")
    if last.objects > first.objects + MORE_OBJECTS:
        faults.append(f"objects of the gateway grew from {first.objects} to {last.objects}")
    if last.memory > first.memory + MORE_MEMORY:
        faults.append(f"memory grew from {first.memory} to {last.memory} bytes")
    return faults


@contextlib.contextmanager
def started() -> Iterator[tuple[Watched, int]]:
    """The gateway before the backend of faults: how to look at it, and its port."""
    origin, port = free_port(), free_port()
    backend = module("bench.soak_backend", origin)
    try:
        gateway = module("bench.soak_gateway", port, f"http://127.0.0.1:{origin}")
        try:
            wait_for(origin)
            wait_for(port)
            yield Watched(gateway), port
        finally:
            end(gateway)
    finally:
        end(backend)


if __name__ == "__main__":
    sys.exit(main())
