"""The soak takes two minutes of the clock and little else: it runs beside the other tests and is judged last."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

JUDGED = "test_two_minutes_of_everything_at_once_leak_nothing"
MINUTES, WORKERS, ROUNDS = 2, 5, 3


@dataclass(frozen=True)
class Soak:
    """The running ``python -m bench.soak``, and the file in which it tells what it found."""

    process: "subprocess.Popen[str]"
    found: Path


SOAK: pytest.StashKey[Soak] = pytest.StashKey()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever waits for the soak is the last."""
    items.sort(key=lambda item: item.name == JUDGED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start it, if it will be judged."""
    if session.config.option.collectonly or not any(item.name == JUDGED for item in session.items):
        return
    found = Path(tempfile.mkdtemp(prefix="comfy-gateway-soak-")) / "found.json"
    command = [sys.executable, "-m", "bench.soak", "--minutes", str(MINUTES), "--rounds", str(ROUNDS)]
    process = subprocess.Popen(
        [*command, "--workers", str(WORKERS), "--json", str(found)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=session.config.rootpath,
    )
    session.config.stash[SOAK] = Soak(process, found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of it stays, also when the tests were broken off."""
    soak = session.config.stash.get(SOAK, None)
    if soak is None:
        return
    if soak.process.poll() is None:
        soak.process.send_signal(signal.SIGINT)
        soak.process.communicate(timeout=60)
    soak.found.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        soak.found.parent.rmdir()
