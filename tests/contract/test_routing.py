"""``X-TARGET-GPU`` chooses the lane on every route; without it, GPU 0 for submissions and everything for reads."""

import asyncio

import pytest

from tests.contract.client import Client, endless, picture, sleeper
from tests.contract.conftest import GPUS

GETS = (
    "/prompt", "/queue", "/queue/all", "/debug/queues", "/history", "/history/none", "/object_info",
    "/object_info/SaveImage", "/system_stats", "/embeddings", "/models", "/models/checkpoints", "/features", "/metrics",
)  # fmt: skip
BAD_HEADERS = ("4", "99999999999", "-1", "+1", "1.0", "x", "", "0,1", "0x1", "٣", "1 2")


async def test_each_gpu_takes_its_own_jobs(client: Client):
    """A job submitted for a GPU is answered with its number and stands in its queue and no other."""
    for gpu in range(GPUS):
        status, answer = await client.post("/prompt", {"prompt": endless()}, gpu)
        assert status == 200
        assert answer["gpu_id"] == gpu
        assert set(answer) >= {"prompt_id", "number", "node_errors"}
        await client.running(answer["prompt_id"])
        for other in range(GPUS):
            queue = await client.get("/queue", other)
            ids = [item[1] for item in queue["queue_running"] + queue["queue_pending"]]
            assert (answer["prompt_id"] in ids) == (other == gpu)
            assert queue["gpu_id"] == other
        await client.idle()


async def test_without_a_gpu_a_job_goes_to_the_first(client: Client):
    """Direct calls without the header mean GPU 0."""
    client.directly("the front door takes the least busy GPU")
    _, answer = await client.post("/prompt", {"prompt": picture()})
    assert answer["gpu_id"] == 0


async def test_four_jobs_overlap_in_time(client: Client):
    """Every lane works at the same time, and the queue of all says so."""
    ids = [await client.submit(endless(), gpu) for gpu in range(GPUS)]
    for each in ids:
        await client.running(each)
    waiting = await client.submit(picture(), 2)
    found = await client.get("/queue/all")
    assert [queue["gpu_id"] for queue in found["queues"]] == list(range(GPUS))
    assert [queue["running_count"] for queue in found["queues"]] == [1] * GPUS
    assert [queue["pending_count"] for queue in found["queues"]] == [0, 0, 1, 0]
    assert [queue["queue_running"][0][1] for queue in found["queues"]] == ids
    assert found["queues"][2]["queue_pending"][0][1] == waiting
    assert (found["total_running"], found["total_pending"]) == (GPUS, 1)
    if not client.behind:
        short = await client.get("/queue/all?ids=1")
        assert [each[1:] for queue in short["queues"] for each in queue["queue_running"]] == [[each] for each in ids]
        assert [each[1:] for each in short["queues"][2]["queue_pending"]] == [[waiting]]
    debug = await client.get("/debug/queues")
    assert debug["queues"][2].items() >= {"gpu_id": 2, "queued": 1, "running": 1}.items()
    assert [lane["gpu_id"] for lane in debug["issuing"]["lanes"]] == list(range(GPUS))
    assert debug["issuing"]["verdict"] in {"unknown", "cpu", "fine", "close", "gil-bound"}
    counts = [(await client.get("/prompt", gpu))["exec_info"]["queue_remaining"] for gpu in (*range(GPUS), None)]
    assert counts == [1, 1, 2, 1, GPUS + 1]


async def test_queue_entries_have_comfyuis_five_fields(client: Client):
    """Clients find the id at index 1 and the prompt at index 2."""
    prompt = endless()
    prompt_id = await client.submit(prompt, 1, client_id="me", extra_data={"note": 1})
    await client.running(prompt_id)
    merged = await client.get("/queue")
    assert "gpu_id" not in merged
    number, found, shown, extra, outputs = merged["queue_running"][0][:5]
    assert isinstance(number, (int, float))
    assert (found, shown, outputs) == (prompt_id, prompt, ["2"])
    assert extra["client_id"] == "me"
    assert extra["note"] == 1


@pytest.mark.parametrize("path", GETS)
async def test_every_route_answers_under_api_too(client: Client, path: str):
    """The frontend asks under /api; both spellings are one route."""
    for prefix in ("", "/api"):
        async with client.session.get(client.at(1) + prefix + path, headers=client.headers(1)) as answer:
            assert answer.status == 200, prefix


async def test_a_submission_under_api_is_one(client: Client):
    """POST /api/prompt is POST /prompt."""
    status, answer = await client.post("/api/prompt", {"prompt": picture()}, 3)
    assert (status, answer["gpu_id"]) == (200, 3)
    await client.done(answer["prompt_id"])


@pytest.mark.parametrize("value", BAD_HEADERS)
@pytest.mark.parametrize(("method", "path"), [("GET", "/queue"), ("POST", "/api/prompt"), ("POST", "/interrupt")])
async def test_a_bad_header_is_refused(client: Client, method: str, path: str, value: str):
    """Anything but one plain number of a GPU that is there is 400 in ComfyUI's shape, never silently GPU 0."""
    client.directly("it takes such headers off")
    headers = [("X-TARGET-GPU", value.encode().decode("latin-1"))]
    async with client.session.request(method, client.url + path, headers=headers, json={}) as answer:
        assert answer.status == 400
        body = await answer.json()
    assert set(body["error"]) == {"type", "message", "details", "extra_info"}
    assert body["node_errors"] == {}


async def test_two_headers_are_refused(client: Client):
    """A client that smuggles a second header does not choose the lane."""
    client.directly("it takes such headers off")
    headers = [("X-TARGET-GPU", "1"), ("X-TARGET-GPU", "2")]
    async with client.session.get(f"{client.url}/queue", headers=headers) as answer:
        assert answer.status == 400


async def test_clearing_a_queue_touches_that_gpu_alone(client: Client):
    """POST /queue clear and delete mean the lane; without a header, every lane."""
    for gpu in (0, 1):
        await client.running(await client.submit(endless(), gpu))
    waiting = {gpu: [await client.submit(picture(), gpu) for _ in range(3)] for gpu in (0, 1)}

    async def pending(gpu: int) -> list[str]:
        return [item[1] for item in (await client.get("/queue", gpu))["queue_pending"]]

    await client.post("/queue", {"delete": [waiting[0][1], waiting[1][1], "unknown"]}, 1)
    assert await pending(0) == waiting[0]
    assert await pending(1) == [waiting[1][0], waiting[1][2]]
    await client.post("/queue", {"clear": True}, 0)
    assert await pending(0) == []
    assert await pending(1) == [waiting[1][0], waiting[1][2]]
    await client.post("/queue", {"delete": [waiting[1][0]]})
    assert await pending(1) == [waiting[1][2]]
    await client.post("/queue", {"clear": True})
    assert await pending(1) == []


async def test_history_is_one_everywhere(client: Client):
    """A job is found on every port, whichever lane ran it; clear and delete remove that lane's entries alone."""
    ids = [await client.submit(picture(), gpu) for gpu in range(GPUS)]
    for each in ids:
        await client.done(each)
    for gpu in (*range(GPUS), None):
        assert set(ids) <= set(await client.get("/history", gpu))
        assert await client.get(f"/history/{ids[3]}", gpu)
    await client.post("/history", {"delete": ids[:2]}, 1)
    found = await client.get("/history")
    assert ids[0] in found
    assert ids[1] not in found
    await client.post("/history", {"clear": True}, 2)
    found = await client.get("/history", 2)
    assert (ids[0] in found, ids[2] in found, ids[3] in found) == (True, False, True)
    await client.post("/history", {"clear": True})
    assert await client.get("/history") == {}


async def test_history_pages(client: Client):
    """max_items alone gives the newest, with offset a page from the oldest; order is that of the ends."""
    await client.post("/history", {"clear": True})
    ids = []
    for _ in range(4):
        ids.append(await client.submit(picture(), 1))
        await client.done(ids[-1])
    assert list(await client.get("/history")) == ids
    assert list(await client.get("/history?max_items=2")) == ids[2:]
    assert list(await client.get("/history?max_items=2&offset=1")) == ids[1:3]


async def test_a_waiting_job_is_not_in_the_history(client: Client):
    """GET /history/{id} is empty until the job has ended, and then complete."""
    prompt = sleeper(0.3)
    prompt_id = await client.submit(prompt, 1, extra_data={"extra_pnginfo": {"workflow": {"a": 1}}})
    assert await client.get(f"/history/{prompt_id}") == {}
    entry = await client.history(prompt_id)
    assert set(entry) >= {"prompt", "outputs", "status", "meta"}
    assert entry["prompt"][1] == prompt_id
    assert entry["outputs"]["2"]["images"][0]["type"] == "output"
    assert entry["status"]["completed"] is True
    kinds = [message[0] for message in entry["status"]["messages"]]
    assert kinds == ["execution_start", "execution_cached", "execution_success"]
    assert entry["meta"]["2"]["node_id"] == "2"


async def test_system_stats_name_the_gpus_device(client: Client):
    """Clients read devices[0]: on a GPU's port that is its own, without a GPU all are listed."""
    for gpu in range(GPUS):
        found = await client.get("/system_stats", gpu)
        assert len(found["devices"]) == 1
        assert set(found["devices"][0]) >= {"name", "type", "index", "vram_total", "vram_free"}
        assert found["system"]["ram_total"] > 0
        assert [entry["gpu_id"] for entry in found["weights"]] == [gpu]
    found = await client.get("/system_stats")
    assert len(found["devices"]) == GPUS
    assert [entry["gpu_id"] for entry in found["weights"]] == list(range(GPUS))
    assert set(found["weights"][0]) == {"gpu_id", *HELD}


HELD = (
    "host_shared", "host_own", "device", "loads", "loads_avoided", "evictions", "copies", "writes", "preloads",
)  # fmt: skip


async def test_a_jobs_record_says_what_its_lane_holds(client: Client):
    """The history has a key of our own with bytes held and what this job's loads were."""
    entry = await client.done(await client.submit(picture(), 1))
    assert set(entry["weights"]) == set(HELD)
    assert entry["weights"]["loads"] == 0, "no model in this job"


async def test_free_makes_one_lane_forget(client: Client):
    """POST /free with free_memory empties that lane's kept outputs; another lane answers from its own."""
    prompt = picture()

    async def cached(gpu: int) -> list[str]:
        entry = await client.done(await client.submit(prompt, gpu))
        found: list[str] = entry["status"]["messages"][1][1]["nodes"]
        return found

    for gpu in (0, 1):
        assert await cached(gpu) == []
        assert set(await cached(gpu)) == {"1", "2"}
    status, _ = await client.post("/free", {"unload_models": True, "free_memory": True}, 1)
    assert status == 200
    async with asyncio.timeout(20):
        while await cached(1):  # the worker frees when it comes to it
            await client.post("/free", {"unload_models": True, "free_memory": True}, 1)
    assert set(await cached(0)) == {"1", "2"}


async def test_numbers_order_the_queue(client: Client):
    """Lower numbers first, front before all, equal numbers in the order they came."""
    await client.running(await client.submit(endless(), 2))
    late = await client.submit(picture(), 2, number=1e9)
    first, second = [await client.submit(picture(), 2) for _ in range(2)]
    front = await client.submit(picture(), 2, front=True)
    queue = await client.get("/queue", 2)
    pending = sorted(queue["queue_pending"], key=lambda item: item[0])
    assert [item[1] for item in pending] == [front, first, second, late]
