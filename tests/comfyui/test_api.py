"""The gateway's own API before a real ComfyUI: pictures, progress with previews, and the newer job routes."""

import http.client
import json
import time
from typing import Any

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site
from tests.comfyui.wire import JOB_LIMIT, Lane

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]


@pytest.fixture
def front(ports: Site) -> Lane:
    """The gateway's front door."""
    if ports.front is None:
        pytest.skip("PROOF_DIRECT is set: these routes are the gateway's")
    return ports.front


def events(front: Lane, job: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of a job's events, to its end."""
    connection = http.client.HTTPConnection(front.host, timeout=JOB_LIMIT)
    connection.request("GET", f"/jobs/{job}/events")
    found, name = [], ""
    for line in connection.getresponse():
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            found.append((name, json.loads(value)))
    connection.close()
    return found


def test_one_call_gives_the_picture(front: Lane) -> None:
    """Submitted, run and fetched in one request, on the GPU that was named."""
    body = {"workflow": workflows.sampled(901, prefix="proof/api"), "gpu": 2}
    answer = front.call("POST", "/jobs?wait=120", body, {"Accept": "image/*"})
    assert answer.status == 200, answer.body[:500]
    assert answer.body.startswith(b"\x89PNG")


def test_progress_and_previews_are_told(front: Lane) -> None:
    """The sampler's steps, nodes done out of all, and a preview, of a job that nobody else listens to."""
    steps: list[float] = []
    for seed in range(910, 930):
        job = front.post("/jobs", {"workflow": workflows.sampled(seed, steps=60)}).json["id"]
        told = events(front, job)
        assert told[-1][0] == "end"
        assert told[-1][1]["state"] == "succeeded"
        progress = [data for name, data in told if name == "progress"]
        steps = [data["value"] for data in progress if data["value"] is not None and data["max"] == 60]
        if steps and any(data["has_preview"] for data in progress):
            break
        time.sleep(1)  # a gateway that has just started may not listen yet
    assert steps
    assert steps == sorted(steps)
    assert {data["nodes_total"] for data in progress} == {7}
    assert any(data["has_preview"] for data in progress)


def test_the_newer_routes_are_there(ports: Site, front: Lane) -> None:
    """``/api/jobs`` on every port, from whichever of the two has them; a job is found on a port that is not its own."""
    job = ports.lanes[1].submit(workflows.sampled(940))
    ports.lanes[1].finished(job)
    for lane in (front, *ports.lanes):
        found = lane.get(f"/api/jobs/{job}")
        assert (found["id"], found["status"], found["outputs_count"]) == (job, "completed", 1)
        assert found["preview_output"]["filename"].endswith(".png")
        listed = lane.get("/api/jobs?status=completed&limit=1000")
        assert job in [each["id"] for each in listed["jobs"]]
        assert set(listed["pagination"]) == {"offset", "limit", "total", "has_more"}
    running = ports.lanes[0].submit(workflows.sleeping(120))
    try:
        deadline = time.monotonic() + JOB_LIMIT
        while front.get(f"/api/jobs/{running}")["status"] != "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        assert ports.lanes[3].post(f"/api/jobs/{running}/cancel").json == {"cancelled": True}
    while front.get(f"/api/jobs/{running}")["status"] != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert front.post(f"/api/jobs/{running}/cancel").json == {"cancelled": False}
