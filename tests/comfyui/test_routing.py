"""Every native route means the GPU of its port; without one, reads see everything and submissions go to GPU 0."""

import time
import uuid
from typing import cast

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site
from tests.comfyui.wire import Lane, Listener, outcome

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(180)]

BAD = ("x", "-1", "4", "1.0", "", "0x1", "1,2", "١", "99999999999999999999")
READS = ("/queue", "/history", "/system_stats", "/prompt", "/object_info/SaveImage", "/models", "/api/queue",
         "/api/history", "/embeddings", "/features", "/extensions")
WRITES = ("/prompt", "/queue", "/history", "/interrupt", "/free", "/api/prompt", "/api/interrupt", "/api/free")


def waiting(lane: Lane, count: int) -> list[str]:
    """One long job and ``count`` behind it."""
    return [lane.submit(workflows.sleeping(30, steps=300, tag=uuid.uuid4().hex)) for _ in range(count + 1)]


def stop(lane: Lane, jobs: list[str]) -> None:
    lane.post("/queue", {"clear": True})
    for job in jobs:
        lane.interrupt(job)


def test_answers_carry_the_gpu(ports: Site) -> None:
    """``POST /prompt`` answers ComfyUI's own fields and the port's ``gpu_id``; all GPUs number in one sequence."""
    numbers = []
    for lane in ports.lanes * 2:
        for path in ("/prompt", "/api/prompt"):
            body = {"prompt": workflows.sleeping(0.01, tag=uuid.uuid4().hex)}
            answer = lane.call("POST", path, body, {"X-TARGET-GPU": "3"} if not lane.headers else None).json
            assert answer["gpu_id"] == lane.gpu
            assert set(answer) == {"prompt_id", "number", "node_errors", "gpu_id"}
            numbers.append(answer["number"])
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("value", BAD)
def test_bad_header(ports: Site, value: str) -> None:
    """A malformed or unknown GPU is 400 on every native route of the backend, and never silently GPU 0."""
    assert ports.backend
    headers = {"X-TARGET-GPU": value.encode().decode("latin-1")}
    for path in READS:
        assert ports.backend.call("GET", path, headers=headers).status == 400, path
    for path in WRITES:
        body = {"prompt": workflows.sleeping(0.01)} if path.endswith("prompt") else {}
        assert ports.backend.call("POST", path, body, headers).status == 400, path


def test_another_sites_page_is_refused_by_comfyui(ports: Site) -> None:
    """ComfyUI's own check of the origin comes before what the overlay answers: the job goes on."""
    assert ports.backend
    lane = ports.lanes[1]
    job = lane.submit(workflows.sleeping(2, tag=uuid.uuid4().hex))
    headers = {"Origin": "http://elsewhere.example", "X-TARGET-GPU": "1"}
    for path in WRITES:
        for body in ({}, {"prompt_id": job}):
            assert ports.backend.call("POST", path, body, headers).status == 403, path
    assert outcome(lane.finished(job)) == "success"


def test_no_header_means_gpu_0_for_submissions(ports: Site) -> None:
    """Straight at the backend, a job without a header runs on GPU 0; its result is read without one too."""
    assert ports.backend
    answer = ports.backend.post("/prompt", {"prompt": workflows.sleeping(0.01, tag=uuid.uuid4().hex)}).json
    assert answer["gpu_id"] == 0
    assert outcome(ports.backend.finished(answer["prompt_id"])) == "success"


def test_queue_means_its_lane(ports: Site) -> None:
    """``GET /queue`` and ``POST /queue`` see and touch their own lane; ``/queue/all`` and ``/debug/queues`` see all."""
    assert ports.backend
    first, second = ports.lanes[:2]
    jobs = {lane.gpu: waiting(lane, 2) for lane in (first, second)}
    try:
        with Listener(first) as _:
            for lane in (first, second):
                queue = lane.get("/queue")
                seen = [item[1] for item in (*queue["queue_running"], *queue["queue_pending"])]
                assert sorted(seen) == sorted(jobs[lane.gpu])
                assert lane.get("/prompt")["exec_info"]["queue_remaining"] == 3
            assert ports.lanes[2].get("/queue")["queue_pending"] == []
            everything = ports.backend.get("/queue/all")
            assert [queue["gpu_id"] for queue in everything["queues"]] == [0, 1, 2, 3]
            assert [queue["running_count"] + queue["pending_count"] for queue in everything["queues"]] == [3, 3, 0, 0]
            assert everything["total_running"] + everything["total_pending"] == 6
            debug = ports.backend.get("/debug/queues")["queues"]
            assert [(queue["gpu_id"], queue["queued"] + queue["running"]) for queue in debug] == [
                (0, 3), (1, 3), (2, 0), (3, 0)]
            first.post("/queue", {"delete": [jobs[0][2], jobs[1][2]]})
            assert len(first.get("/queue")["queue_pending"]) == 1
            assert len(second.get("/queue")["queue_pending"]) == 2
            first.post("/queue", {"clear": True})
            assert first.get("/queue")["queue_pending"] == []
            assert len(second.get("/queue")["queue_pending"]) == 2
    finally:
        for lane in (first, second):
            stop(lane, jobs[lane.gpu])


def test_a_lane_tells_which_models_it_has(ports: Site) -> None:
    """By the names that workflows use, once a job or a preload has built one, and no more when all is let go."""
    assert ports.backend
    name, lane = workflows.NAMES["fp16"], ports.lanes[3]

    def told() -> list[str]:
        assert ports.backend
        return cast("list[str]", ports.backend.get("/debug/queues")["queues"][3]["models"])

    def until_told(*, held: bool) -> None:
        deadline = time.monotonic() + 60
        while (name in told()) is not held:
            assert time.monotonic() < deadline, told()
            time.sleep(0.1)

    entry = lane.finished(lane.submit(workflows.sampled(int(time.time()), prefix="told")))
    assert outcome(entry) == "success"
    until_told(held=True)
    assert lane.post("/free", {"unload_models": True, "free_memory": True}).status == 200
    until_told(held=False)
    answer = lane.post("/preload", {"models": [{"type": "checkpoints", "name": name}]})
    assert answer.status == 200, answer.body
    until_told(held=True)


def test_history_is_one_but_cleared_by_lane(ports: Site) -> None:
    """Every job is in every port's history; clear and delete touch only the entries of their own lane."""
    jobs = [lane.submit(workflows.sleeping(0.01, tag=uuid.uuid4().hex)) for lane in ports.lanes]
    for lane, job in zip(ports.lanes, jobs, strict=True):
        lane.finished(job)
    for lane in ports.lanes:
        assert set(jobs) <= set(lane.get("/history"))
        assert all(lane.history(job) for job in jobs)
        assert len(lane.get("/history?max_items=2")) == 2
    ports.lanes[0].post("/history", {"delete": [jobs[0], jobs[1]]})
    assert not ports.lanes[3].history(jobs[0])
    assert ports.lanes[3].history(jobs[1])
    ports.lanes[2].post("/history", {"clear": True})
    left = ports.lanes[0].get("/history")
    assert jobs[2] not in left
    assert {jobs[1], jobs[3]} <= set(left)


def test_system_stats_names_the_gpu(ports: Site) -> None:
    """``devices[0]`` is the port's GPU; besides ComfyUI's own there is only what the lane holds."""
    for lane in ports.lanes:
        stats = lane.get("/system_stats")
        assert set(stats) == {"system", "devices", "weights"}
        assert stats["devices"], lane
        print(lane.gpu, stats["devices"])


def test_validation_errors_are_comfyuis(ports: Site, plain: Site) -> None:
    """What ComfyUI refuses, every port refuses with the same status and the same JSON."""
    prompts = [{}, {"1": {"class_type": "Nothing", "inputs": {}}}, {"1": {"inputs": {}}},
               {"1": workflows.node("EmptyImage", width=-1, height="x")},
               {"1": workflows.node("EmptyImage", width=8, height=8, batch_size=1, color=0)},
               {**workflows.saved(1, "x"), "2": workflows.node("SaveImage", images=["9", 0], filename_prefix="x")}]
    expected = [plain.lanes[0].post("/prompt", {"prompt": prompt}) for prompt in prompts]
    for lane in ports.lanes:
        for prompt, alone in zip(prompts, expected, strict=True):
            answer = lane.post("/prompt", {"prompt": prompt})
            assert answer.status == alone.status == 400
            assert answer.json == alone.json
