"""What every test may rely on: free ports, a clock that obeys, and the product as a process."""

import collections
import contextlib
import random
import re
import socket
import sys
from collections.abc import Callable, Sequence

import pytest

LOCAL = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost|0\.0\.0\.0|::|")


def stay_here(event: str, arguments: tuple[object, ...]) -> None:
    """No test may reach beyond this machine: connecting anywhere else raises, whoever tries."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if not LOCAL.fullmatch(host):
            raise RuntimeError(f"a test wants to connect to {host}")


sys.addaudithook(stay_here)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for which reason: nobody reads a page of single lines."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} skipped: {reason}", yellow=True)


class FakeClock:
    """Time that passes only when told to, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    """A clock at 1000 s."""
    return FakeClock()


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """Gives as many different loopback ports as asked for, all free a moment ago.

    Below the range from which the system serves outgoing connections, so that none of those takes one meanwhile.
    """
    return pick_ports


def pick_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def pick_run(count: int, taken: Sequence[int] = ()) -> int:
    """The first of so many ports in a row, all free a moment ago and none of them taken."""
    while True:
        (first,) = pick_ports(1)
        run = range(first, first + count)
        if not set(run) & set(taken) and all(map(_is_free, run)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
