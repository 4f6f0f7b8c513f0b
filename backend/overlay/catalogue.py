"""The list of everything the overlay replaces, as the page ``docs/patches.md``.

Run as a module it prints the page; a test compares the two. Owns the page's form only.
"""

import sys
from collections.abc import Iterable

from backend.lanes import Lane
from backend.overlay import versions
from backend.overlay.patch import Patch
from backend.overlay.patches import all_patches
from backend.overlay.state import State

HEAD = """# What the overlay replaces in ComfyUI and torch

Written by `python -m backend.overlay.catalogue > docs/patches.md`; a test keeps it so.

No file of the checkout is changed. Each name below is looked up in the running process, checked (is it there, are its
parameters those it was written against), and replaced; if a required one does not fit, nothing is replaced and the
backend does not start. `COMFY_MULTI_GPU_SCHED=0` replaces nothing. An optional one that does not fit is left out, and
the log says so.

Known versions: {known}. Where a name exists in some of them only, it is replaced where it exists.
"""


def page() -> str:
    """The whole page."""
    known = versions.known()
    lanes = [Lane(0, "cpu"), Lane(1, "cpu")]
    parts = [HEAD.format(known=", ".join(version.number for version in known))]
    rows = {row for version in known for row in _rows(all_patches(State(lanes, version)))}
    ordered = sorted(rows)
    for title, wanted in (("ComfyUI", False), ("torch, numpy and Python", True)):
        parts.append(f"\n## {title}\n\n| Name | Why | |\n|---|---|---|\n")
        parts += [f"| `{target}` | {why} | {need} |\n" for target, why, need in ordered if _library(target) is wanted]
    parts.append("\n## Arguments the overlay adds\n\n")
    for version in known:
        parts += [f"- {version.number}: `{word}`: {why}\n" for word, why in version.adds]
    return "".join(parts)


def _rows(patches: Iterable[Patch]) -> Iterable[tuple[str, str, str]]:
    for patch in patches:
        module = patch.target.partition(":")[0]
        # Which functions these modules have differs with their version.
        target = f"{module}:*" if module in {"numpy.random", "random"} else patch.target
        yield target, patch.why, "required" if patch.required else "optional"


def _library(target: str) -> bool:
    libraries = {"torch", "numpy", "random", "threading", "concurrent", "multiprocessing", "asyncio", "PIL"}
    return target.partition(":")[0].partition(".")[0] in libraries


if __name__ == "__main__":
    sys.stdout.write(page())
