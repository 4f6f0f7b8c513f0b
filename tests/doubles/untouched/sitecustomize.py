"""Remembers the objects behind names as each module's own import leaves them, and tells which are others later.

Python loads a module of this name at its start, before anything else is imported; this one is on the path of processes
that a test watches. ``UNTOUCHED_NAMES`` is a JSON list of ``module:path``, as patches name their targets. On SIGUSR2
the comparison is written to the file that ``UNTOUCHED_REPORT`` names. Knows nothing of patches.
"""

import functools
import json
import os
import signal
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ABSENT = "no such name"
NAMES: list[str] = json.loads(os.environ.get("UNTOUCHED_NAMES", "[]"))
MODULES = {name.partition(":")[0] for name in NAMES}
recorded: dict[str, Any] = {}
"""The objects themselves, so that no other can come to have the identity of one of them."""


def found(module: ModuleType, path: str) -> Any:
    """What stands behind ``path``, as it is stored: a ``classmethod`` stays one."""
    owner: Any = module
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    if isinstance(owner, type):
        return next((vars(base)[name] for base in owner.__mro__ if name in vars(base)), ABSENT)
    return getattr(owner, name, ABSENT)


def record(module_name: str) -> None:
    """Remember this module's names, now."""
    for name in NAMES:
        if name.partition(":")[0] == module_name:
            recorded[name] = found(sys.modules[module_name], name.partition(":")[2])


class Finder(MetaPathFinder):
    """Lets the others find, and looks at each of the modules when its own loader is done with it."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in MODULES:
            return None
        for other in list(sys.meta_path):
            spec = None if other is self else other.find_spec(fullname, path, target)
            if spec is not None:
                loader: Any = spec.loader
                loader.exec_module = functools.partial(self.exec_module, loader.exec_module)
                return spec
        return None

    def exec_module(self, original: Any, module: ModuleType) -> None:
        original(module)
        record(module.__name__)


def of_the_script(path: str) -> bool:
    """Whether this name of ``main.py`` is its own, where that runs as the script and so is imported by nobody."""
    now = found(sys.modules["__main__"], path)
    if isinstance(now, ModuleType):
        return now is sys.modules[path]
    code, made_in = getattr(now, "__code__", None), getattr(now, "__globals__", None)
    return made_in is vars(sys.modules["__main__"]) and Path(code.co_filename).name == "main.py"  # type: ignore[union-attr]


def of_the_package(module: str, now: Any) -> bool:
    """Whether the code of this function lies in its module's package: torch's compiler wraps some of torch's own."""
    package, code = sys.modules[module.partition(".")[0]], getattr(now, "__code__", None)
    homes = [Path(home) for home in getattr(package, "__path__", [])]
    return code is not None and any(Path(code.co_filename).is_relative_to(home) for home in homes)


def verdicts() -> dict[str, str]:
    """Of each name: ``same``, ``other``, ``own``: replaced by its own package, ``absent``: there is none."""
    told = {}
    for name in NAMES:
        module, _, path = name.partition(":")
        if name not in recorded:
            own = module == "main" and vars(sys.modules["__main__"]).get("start_comfyui") is not None
            told[name] = "absent" if not own else "same" if of_the_script(path) else "other"
            continue
        now = found(sys.modules[module], path)
        if now is recorded[name]:
            told[name] = "absent" if now is ABSENT else "same"
        else:
            told[name] = "own" if of_the_package(module, now) else "other"
    return told


def report(*_: Any) -> None:
    """Write the comparison; the file is there when it is whole."""
    file = Path(os.environ["UNTOUCHED_REPORT"])
    part = file.with_suffix(".part")
    part.write_text(json.dumps(verdicts()), encoding="utf-8")
    part.rename(file)


def hidden() -> ModuleType | None:
    """Run the module of this name that the environment has, and that this one hides."""
    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environments_own = hidden()
if NAMES:
    for ready in sorted(MODULES & set(sys.modules)):
        record(ready)
    sys.meta_path.insert(0, Finder())
    signal.signal(signal.SIGUSR2, report)
