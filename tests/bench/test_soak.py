"""A short soak: mixed load with faults on both sides leaves nothing behind. Longer ones: ``python -m bench.soak``."""

import json
import subprocess
import sys
from pathlib import Path


def test_twelve_seconds_of_everything_at_once_leak_nothing(tmp_path: Path):
    """Every manner of client and fault of the backend is met; nothing is left, and no answer was wrong."""
    told = tmp_path / "soak.json"
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.2", "--rounds", "2", "--workers", "30"]
    done = subprocess.run([*command, "--json", str(told)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    from bench.soak_load import MANNERS  # noqa: PLC0415 (beside what it is compared with)

    assert set(json.loads(told.read_text(encoding="utf-8"))["done"]) == {manner.__name__ for manner in MANNERS}
