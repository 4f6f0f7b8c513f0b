"""Runs the backend inside another environment's interpreter: ``python /…/backend/bootstrap.py ARGS``.

Only two top-level names are lent to that environment: ``backend``, from where this file lies, and
``prometheus_client``, from the folder that ``COMFY_GATEWAY_LIB`` names where the environment has none of its own.
Nothing else of the gateway's packages can be imported there. Must not import anything of ``backend`` before that.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
LIB_VARIABLE = "COMFY_GATEWAY_LIB"


class LentName(MetaPathFinder):
    """Finds one top-level package in one folder, and nothing else."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or path is not None:
            return None  # submodules are found through their package's own __path__
        return PathFinder.find_spec(fullname, [self.folder], target)


def lend() -> None:
    """Take this file's folder off the import path and lend the two names."""
    # Running a file by path puts its folder first: ``lanes`` or ``process`` would shadow what ComfyUI imports.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != HERE]
    sys.meta_path.insert(0, LentName("backend", str(HERE.parent)))
    lib = os.environ.get(LIB_VARIABLE, "")
    if lib:
        sys.meta_path.append(LentName("prometheus_client", lib))


def main() -> int:
    lend()
    from backend.launch import main as launch  # noqa: PLC0415 (findable only now)

    return launch()


if __name__ == "__main__":
    sys.exit(main())
