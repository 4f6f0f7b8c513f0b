"""The self-test finds whatever two lanes share, and names it; the fingerprints find what changed its shape."""

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backend.overlay import fingerprints, selftest, versions
from backend.overlay.patch import Patch, PatchSet
from backend.overlay.patches import all_patches
from backend.overlay.state import State
from tests.doubles.checkout import loaded, make_state

TELLS = {
    "server:PromptServer.client_id": "client: client_id is shared",
    "server:PromptServer.last_node_id": "client: last_node_id is shared",
    "server:PromptServer.last_prompt_id": "client: ",
    "server:PromptServer.prompt_queue": "queue: ",
    "comfy_execution.progress:get_progress_state": "registry: ",
    "comfy.model_management:throw_exception_if_processing_interrupted": "interrupt: ",
    "torch:randn": "seed: ",
    "comfy_execution.graph_utils:GraphBuilder.alloc_prefix": "prefix: ",
    "folder_paths:get_save_image_path": "save path: ",
}


@pytest.fixture(scope="module")
def main() -> Iterator[Any]:
    with loaded() as found:
        yield found


def started(main: Any, patches: list[Patch], state: State) -> list[str]:
    """What the self-test says of a server made with these patches; everything is taken back."""
    held = PatchSet(patches)
    held.install()
    loop = asyncio.new_event_loop()
    try:
        sys.modules["server"].PromptServer(loop)
        return selftest.run(state)
    finally:
        held.remove()
        loop.close()


@pytest.mark.parametrize("lanes", [1, 4])
def test_the_overlay_passes_in_well_under_two_seconds(main: Any, lanes: int) -> None:
    """Also with one lane, against code that has none."""
    state = make_state(lanes)
    patches = all_patches(state)
    began = time.monotonic()
    assert started(main, patches, state) == []
    assert time.monotonic() - began < 20, "far from two seconds even for a busy machine"


@pytest.mark.parametrize("left_out", TELLS)
def test_each_thing_that_is_shared_is_named(main: Any, left_out: str) -> None:
    """Without one of the patches, the self-test says what is not kept apart."""
    state = make_state(2)
    patches = all_patches(state)
    fewer = [patch for patch in patches if patch.target != left_out]
    assert len(fewer) < len(patches)
    if left_out == "server:PromptServer.prompt_queue":
        # Nothing works without queues; a server that has one of its own is what a rename would look like.
        state.adopt_queue(sys.modules["execution"].PromptQueue(None), None)
    assert any(problem.startswith(TELLS[left_out]) for problem in started(main, fewer, state))


def test_the_folder_fits_every_expectation(main: Any) -> None:
    """What is relied on without being patched."""
    assert fingerprints.check(versions.known()[0]) == []


@pytest.mark.parametrize(
    ("target", "replacement", "says"),
    [
        ("server:PromptServer.get_queue_info", lambda self: {}, "no longer uses"),
        ("server:PromptServer.send_json", len, "its source cannot be read"),
        ("execution:PromptQueue.put", lambda self, item, extra: None, "expected parameters (self, item)"),
        ("execution:PromptQueue.ExecutionStatus", dict, "expected"),
    ],
)
def test_a_changed_shape_is_named(main: Any, target: str, replacement: Any, says: str) -> None:
    """The first misfit of a newer ComfyUI says which name and what about it."""
    change = Patch(target, lambda _: replacement, "a newer version")
    change.install()
    try:
        found = fingerprints.check(versions.known()[0])
    finally:
        change.remove()
    assert [misfit.target for misfit in found] == [target]
    assert says in str(found[0])


def test_a_version_asks_for_its_own_names(main: Any) -> None:
    """What only newer ones have is missing here."""
    missing = [misfit.target for misfit in fingerprints.check(versions.choose("0.33.0")[0])]
    assert "comfy_execution.jobs:cancel_job" in missing
