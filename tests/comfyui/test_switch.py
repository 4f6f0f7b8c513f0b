"""``COMFY_MULTI_GPU_SCHED=0`` is plain ComfyUI: nothing is patched at all."""

from pathlib import Path

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site, start_overlay_site, stop_site
from tests.comfyui.stack import Comfy
from tests.comfyui.wire import outcome

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

REPORT = {"1": workflows.node("ProofPatched", tag="")}


def test_switched_off(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> None:
    """Started the same way but switched off, no function of ComfyUI or torch is ours, no patch is even loaded."""
    site = start_overlay_site(comfy, tiny_models, tmp_path, env={"COMFY_MULTI_GPU_SCHED": "0"})
    try:
        lane = site.lanes[0]
        entry = lane.finished(lane.submit(REPORT))
        assert outcome(entry) == "success"
        found = entry["outputs"]["1"]
        print(f"\nswitched off: foreign functions {found['foreign']}, patch modules {found['modules']}")
        assert found["foreign"] == []
        assert found["modules"] == []
        assert lane.call("GET", "/queue/all").status == 404
        assert set(lane.post("/prompt", {"prompt": workflows.sleeping(0.01, tag="x")}).json) == {
            "prompt_id", "number", "node_errors"}
    finally:
        stop_site(site)


def test_switched_on(ports: Site) -> None:
    """The same look at the overlay finds its patches: it can tell the difference."""
    entry = ports.lanes[0].finished(ports.lanes[0].submit(REPORT))
    found = entry["outputs"]["1"]
    print(f"\nswitched on: {len(found['foreign'])} functions are ours, from {len(found['modules'])} patch modules")
    assert found["foreign"]
    assert found["modules"]
