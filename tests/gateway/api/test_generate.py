"""The scheduler's routes, in the shapes that its clients know."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.generate import gpu_named
from tests.doubles.http_client import Got
from tests.doubles.jobs_house import house
from tests.doubles.wait import until

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


def value(got: Got) -> Any:
    return json.loads(got.body)


async def test_generate_says_where_the_job_is(tmp_path: Path):
    """The id, the GPU and its address at once."""
    async with house(tmp_path) as here:
        found = value(await here.post("/generate", {"workflow": GRAPH}, gpu=None))
        assert set(found) == {"prompt_id", "assigned_gpu", "assigned_instance", "message", "error"}
        record = here.record(found["prompt_id"])
        assert (record.client_id, record.gpu, found["error"]) == ("api", found["assigned_gpu"], None)
        assert found["assigned_instance"] == f"http://gate:8181/gpu{record.gpu}"


async def test_generate_waits_for_the_end(tmp_path: Path):
    """Done, or failed with why, or TIMEOUT while it goes on."""
    async with house(tmp_path) as here, asyncio.TaskGroup() as tasks:
        body = {"workflow": GRAPH, "wait_for_completion": True}
        asked = [tasks.create_task(here.post("/generate", body, gpu=None), name="asked") for _ in range(2)]
        await until(lambda: len(here.comfy.pending) == 2)
        good, bad = (each["prompt_id"] for each in here.comfy.pending)
        here.comfy.finish(good)
        here.comfy.finish(bad, "error", "execution_error", exception_message="no", exception_type="E")
        answers = {each["prompt_id"]: each for each in [value(await each) for each in asked]}
        assert (answers[good]["error"], answers[bad]["error"]) == (None, "no")
        late = value(await here.post("/generate", {**body, "timeout": 0.05}, gpu=None))
        assert late["error"] == "TIMEOUT"
        assert here.states()[late["prompt_id"]] == "queued"


async def test_without_a_backend_generate_says_so(tmp_path: Path):
    """503 with detail.error and detail.message."""
    async with house(tmp_path) as here:
        here.fleet.members[0].backend_down("it died", 3)
        got = await here.post("/generate", {"workflow": GRAPH}, gpu=None)
        assert (got.status, got.all("retry-after")) == (503, [b"3"])
        assert set(value(got)["detail"]) == {"error", "message"}
        assert "it died" in value(got)["detail"]["message"]


async def test_status_looks_at_every_gpu(tmp_path: Path):
    """By address: how much runs and waits; the sums; and why, when nothing can be said."""
    async with house(tmp_path) as here:
        await here.submit("a")
        here.comfy.start()
        await here.submit("b")
        found = value(await here.get("/status", None))
        assert found["success"] is True
        instance = found["data"]["instances"]["http://gate:8181/gpu0"]
        shown = {name: instance[name] for name in ("gpu_id", "running", "pending", "total", "healthy", "last_error")}
        assert shown == {
            "gpu_id": 0, "running": 1, "pending": 1, "total": 2, "healthy": True, "last_error": None
        }  # fmt: skip
        assert instance["last_update"] > 0
        assert found["data"]["summary"] == {
            "total_instances": 4, "healthy_instances": 1, "total_running": 1, "total_pending": 1, "total_load": 2,
            "waiting_in_line": 0, "line_paused": False,
        }  # fmt: skip
        here.fleet.members[0].backend_down("it died", 3)
        found = value(await here.get("/status", None))["data"]
        assert found["summary"]["healthy_instances"] == 0
        assert "it died" in found["instances"]["http://gate:8181/gpu0"]["last_error"]


async def test_what_waits_at_the_front_door_counts(tmp_path: Path):
    """It is pending, though no GPU's yet; and who submitted it is told where it will be said which."""
    async with house(tmp_path) as here:
        await here.post("/admin/line/pause", b"", gpu=None)
        found = value(await here.post("/generate", {"workflow": GRAPH}, gpu=None))
        assert (found["assigned_gpu"], found["assigned_instance"], found["error"]) == (None, None, None)
        assert f"/jobs/{found['prompt_id']}" in found["message"]
        summary = value(await here.get("/status", None))["data"]["summary"]
        told = [summary[name] for name in ("total_pending", "total_load", "waiting_in_line", "line_paused")]
        assert told == [1, 1, 1, True]
        await here.post("/admin/line/resume", b"", gpu=None)
        await until(lambda: here.record(found["prompt_id"]).gpu is not None)
        summary = value(await here.get("/status", None))["data"]["summary"]
        assert (summary["waiting_in_line"], summary["line_paused"]) == (0, False)


async def test_instances_tell_how_fast_they_are_said_to_be(tmp_path: Path):
    """The weight of each one's backend."""
    async with house(tmp_path) as here:
        here.fleet.members[0].weight = 0.5
        assert {each["weight"] for each in value(await here.get("/instances", None))["instances"]} == {0.5}


async def test_instances_and_their_queues(tmp_path: Path):
    """Every name of a GPU means it; others, and queues that cannot be had, are 404."""
    async with house(tmp_path) as here:
        await here.submit("a")
        listed = value(await here.get("/instances", None))["instances"]
        assert [each["gpu_id"] for each in listed] == [0, 1, 2, 3]
        assert set(listed[0]) == {"url", "gpu_id", "weight"}
        port = here.server.ports[1]
        addresses = [listed[0]["url"], f"http://127.0.0.1:{port}", f"localhost:{port}", "http%3A%2F%2Fx%2Fgpu0"]
        for name in ("0", "gpu0", *addresses):
            found = value(await here.get(f"/queue/{name}", None))
            assert (found["gpu_id"], found["queue_pending"][0][1], found["queue_running"]) == (0, "a", [])
        assert [each["gpu_id"] for each in value(await here.get("/gpu1/queue/all", None))["queues"]] == [0]
        assert (await here.get("/queue/9", None)).status == 404
        assert (await here.get("/queue/http://elsewhere:1", None)).status == 404
        here.fleet.members[0].backend_down("it died", 3)
        assert (await here.get("/queue/0", None)).status == 404


async def test_debug_queues_is_there_whatever_the_backend_has(tmp_path: Path):
    """Counted here where the backend has no such route."""
    async with house(tmp_path) as here:
        await here.submit("a")
        found = value(await here.get("/debug/queues", None))
        assert found == {"queues": [{"gpu_id": 0, "queued": 1, "running": 0}]}


async def test_the_test_workflow_is_a_job(tmp_path: Path):
    """With a checkpoint of the client's, of the backend's, or the usual one."""
    async with house(tmp_path) as here:
        got = await here.post("/test/workflow", b"", gpu=None)
        assert got.status == 200
        assert here.comfy.pending[0]["prompt"]["1"]["inputs"]["ckpt_name"] == "v1-5-pruned-emaonly.safetensors"
        await here.post("/test/workflow", {"checkpoint": "mine"}, gpu=None)
        assert here.comfy.pending[1]["prompt"]["1"]["inputs"]["ckpt_name"] == "mine"


@pytest.mark.parametrize(
    "body", [{}, {"workflow": 1}, {"workflow": GRAPH, "timeout": -1}, {"workflow": GRAPH, "wait_for_completion": 1}]
)
async def test_bad_input_is_refused(tmp_path: Path, body: Any):
    """400, and nothing has been submitted."""
    async with house(tmp_path) as here:
        assert (await here.post("/generate", body, gpu=None)).status == 400
        assert here.states() == {}


def test_names_of_gpus():
    """A number, gpuN, an address with the prefix, or a port's."""
    ports = [8181, 8182]
    known = {"0": 0, "gpu1": 1, "http://h/gpu1/": 1, "h:8182": 1, "http://h:8181/x": 0}
    assert {name: gpu_named(name, ports) for name in known} == known
    assert [gpu_named(name, ports) for name in ("", "gpu", "http://[", "h:99999", "http://h:1")] == [None] * 5
