"""``COMFY_MULTI_GPU_SCHED=0`` is plain ComfyUI: nothing is patched at all."""

from pathlib import Path

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site, arguments, start_overlay_site, start_supervised_site, stop_site
from tests.comfyui.stack import Comfy, Folders
from tests.comfyui.wire import metrics, outcome

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


def test_four_ports_of_one_plain_comfyui(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> None:
    """Each port is the one plain ComfyUI: it answers and runs jobs; the log, the health and the metrics say so."""
    folders = Folders(tmp_path).make()
    started_with = arguments(comfy, folders, tiny_models)
    site = start_supervised_site(comfy, folders, started_with, {"COMFY_MULTI_GPU_SCHED": "0"})
    try:
        jobs = [lane.post("/prompt", {"prompt": workflows.sleeping(0.01, tag=f"port {lane.gpu}")}).json
                for lane in site.lanes]
        assert all("gpu_id" not in job for job in jobs)
        for lane, job in zip(site.lanes, jobs, strict=True):
            assert outcome(lane.finished(job["prompt_id"])) == "success"
        # Whichever port: one history, one device.
        assert {len(lane.get("/history")) for lane in site.lanes} == {len(jobs)}
        assert {lane.get("/system_stats")["devices"][0]["name"] for lane in site.lanes} == {"cpu"}
        assert site.front
        health = site.front.get("/health")
        assert (health["status"], health["healthy_instances"], health["total_instances"]) == ("healthy", 1, 4)
        assert [queue["gpu_id"] for queue in site.front.get("/queue/all")["queues"]] == [0]
        numbers = metrics(site.front)
        assert numbers["comfy_gateway_backend_scrape_ok"] == 0
        assert not [name for name in numbers if name.startswith("comfy_backend_")]
        log = site.processes[0].log.read_text(errors="replace")
        assert "4 ports, but the backend has only 1 lane(s)" in log
        assert "nothing patched: one queue on cpu" in log
    finally:
        stop_site(site)


def test_switched_on(ports: Site) -> None:
    """The same look at the overlay finds its patches: it can tell the difference."""
    entry = ports.lanes[0].finished(ports.lanes[0].submit(REPORT))
    found = entry["outputs"]["1"]
    print(f"\nswitched on: {len(found['foreign'])} functions are ours, from {len(found['modules'])} patch modules")
    assert found["foreign"]
    assert found["modules"]
