"""What is relied on beyond the patched names."""

import sys
import types

import pytest

from backend.overlay import fingerprints, versions
from tests.doubles.checkout import loaded

MANAGEMENT = types.ModuleType("comfy.model_management")


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ([(MANAGEMENT, "cast_to"), (MANAGEMENT, "free_memory")], "found comfy.model_management:cast_to, comfy"),
        ([(MANAGEMENT, "free_memory")], "expected only comfy.model_management:cast_to, found"),
        ([], "found none"),
        (None, "expected a list"),
        ([MANAGEMENT], "expected a list"),
        ([("comfy.model_management", "cast_to")], "expected a list"),
    ],
)
def test_what_comfyui_puts_back_is_known(listed: object, says: str) -> None:
    """After custom nodes and jobs ComfyUI restores some names: one of ours among them would be undone each time."""
    with loaded():
        found = sys.modules["main"]  # its modules are here
        assert found
        version = versions.known()[0]
        assert not [each for each in fingerprints.check(version) if "hook_breaker" in each.target]
        sys.modules["hook_breaker_ac10a0"].HOOK_BREAK = listed  # type: ignore[attr-defined]
        (misfit,) = [each for each in fingerprints.check(version) if "hook_breaker" in each.target]
        assert misfit.required
        assert says in misfit.problem
