"""``COMFY_MULTI_GPU_SCHED=0`` is plain ComfyUI: nothing is patched at all."""

from pathlib import Path

import pytest

from backend.overlay import versions
from tests.comfyui import workflows
from tests.comfyui.conftest import arguments, start_overlay_site, start_supervised_site, stop_site
from tests.comfyui.stack import Comfy, Folders
from tests.comfyui.wire import metrics, outcome
from tests.doubles import identities

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

REPORT = {"1": workflows.node("ProofPatched", tag="")}


def test_switched_off(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> None:
    """Started the same way but switched off, every name of the patch table is the object it was, no patch is loaded."""
    env = {"COMFY_MULTI_GPU_SCHED": "0", **identities.watched(tmp_path)}
    site = start_overlay_site(comfy, tiny_models, tmp_path, env=env)
    try:
        lane = site.lanes[0]
        entry = lane.finished(lane.submit(REPORT))
        assert outcome(entry) == "success"
        found = entry["outputs"]["1"]
        print(f"\nswitched off: foreign functions {found['foreign']}, patch modules {found['modules']}")
        assert found["foreign"] == []
        assert found["modules"] == []
        held = identities.look(site.processes[0].process.pid, tmp_path)
        print(f"switched off: {len(held['same'])} names of the table the same, {len(held['other'])} others, "
              f"{len(held['absent'])} not in this version")
        assert held["other"] == []
        assert set(held["own"]) <= identities.BY_TORCH
        assert len(held["same"]) > 100
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


def test_switched_on(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> None:
    """The same look at the overlay finds every patch: it can tell the difference."""
    site = start_overlay_site(comfy, tiny_models, tmp_path, env=identities.watched(tmp_path))
    try:
        found = site.lanes[0].finished(site.lanes[0].submit(REPORT))["outputs"]["1"]
        held = identities.look(site.processes[0].process.pid, tmp_path)
    finally:
        stop_site(site)
    print(f"\nswitched on: {len(held['other'])} names of the table are other objects, {len(held['same'])} the same, "
          f"{len(held['absent'])} not in this version")
    assert held["same"] == []
    assert set(held["own"]) <= identities.BY_TORCH
    assert len(held["other"]) > 100
    print(f"\nswitched on: {len(found['foreign'])} functions are ours, from {len(found['modules'])} patch modules")
    assert found["foreign"]
    assert found["modules"]


def test_the_code_counts_more_than_an_unknown_number(comfy: Comfy) -> None:
    """Whatever number this code says, it is started with the arguments that it needs."""
    unknown, exact = versions.choose("0.20.0", comfy.folder)
    assert not exact
    own = versions.choose(comfy.version)[0]
    assert unknown.adds == (own.adds if own in versions.later(versions.choose("0.8.0")[0]) else ())
