"""Stand-ins for ComfyUI's modules, taken away again after each test."""

import sys
import types
from collections.abc import Iterator

import pytest

from backend import context
from tests.backend.overlay.doubles import comfy_modules


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """An older ComfyUI's modules, importable by name."""
    found = comfy_modules()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture
def newer_comfy(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    """A newer ComfyUI's modules, with its further memory state."""
    found = comfy_modules(newer=True)
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture(autouse=True)
def nothing_runs() -> Iterator[None]:
    """No job of another test counts as running, and none of this one's is left to the next."""
    context._running.clear()
    yield
    context.work_on(None)
    context._running.clear()
