"""One module per process-wide thing of ComfyUI that must become per lane, per job or shared.

Owns the list of them. Each module builds its patches without touching ComfyUI; targets are looked up when a
``PatchSet`` checks and installs them.
"""

import importlib

from backend.overlay import workers
from backend.overlay.patch import Patch
from backend.overlay.patches import ahead, execution, graph, interrupt, issue, previews, progress, server
from backend.overlay.state import State

BY_LANES = ("randomness", "files", "threads", "models", "switches", "weights")


def all_patches(state: State) -> list[Patch]:
    """Every patch of one start, in the order in which they are installed."""
    found: list[Patch] = []
    for name in BY_LANES:
        # These import torch, which ComfyUI wants to load itself: not before they are needed.
        found += importlib.import_module(f"backend.overlay.patches.{name}").patches(state.lanes)
    found += importlib.import_module("backend.overlay.patches.attention").patches()
    for own in (progress, graph, interrupt, server, execution, ahead, issue, workers):
        found += own.patches(state)
    return found + previews.patches()
