"""Which names of the patch table hold another object than their module's import left there, in a process of its own."""

import json
import os
import signal
from pathlib import Path

from backend.lanes import Lane
from backend.overlay import versions
from backend.overlay.patches import all_patches
from backend.overlay.state import State
from tests.doubles.wait import wait_until

BY_TORCH = frozenset({"torch:manual_seed"})
"""What torch's compiler wraps when it is first loaded, whoever loads it."""
UNTOUCHED = Path(__file__).resolve().parent / "untouched"


def patched_names() -> list[str]:
    """Every name that any version's patches replace."""
    lanes = [Lane(0, "cpu"), Lane(1, "cpu")]
    return sorted({patch.target for version in versions.known() for patch in all_patches(State(lanes, version))})


def watched(folder: Path) -> dict[str, str]:
    """The environment of a process that is to be looked at; its report goes to ``folder``."""
    path = os.pathsep.join(filter(None, [str(UNTOUCHED), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "UNTOUCHED_NAMES": json.dumps(patched_names()),
            "UNTOUCHED_REPORT": str(folder / "identities.json")}


def look(pid: int, folder: Path) -> dict[str, list[str]]:
    """Names by verdict, each under one.

    ``same`` and ``other`` object, ``own``: another that the module's own package put there, ``absent``: no such name.
    """
    report = folder / "identities.json"
    report.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR2)
    wait_until(report.exists, 60, "a report on identities")
    told: dict[str, str] = json.loads(report.read_text(encoding="utf-8"))
    return {verdict: sorted(name for name, said in told.items() if said == verdict)
            for verdict in ("same", "other", "own", "absent")}
