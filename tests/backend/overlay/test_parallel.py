"""The whole overlay on a folder shaped like ComfyUI: one process, three lanes, real sockets."""

import asyncio
import json
import threading
import types
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from backend.contract import EXIT_DEVICE_FAULT, EXIT_OK, GPU_HEADER
from backend.overlay import parallel
from backend.overlay.patch import Misfit
from tests.doubles.checkout import LIMIT, Client, Started

ORDER = ["execution_start", "execution_cached", "executing", "executed", "execution_success", "executing"]


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    """One process for all tests of this file."""
    started = Started("--gpus", "3")
    try:
        yield started.ready()["url"]
    finally:
        started.stop()


@pytest.fixture
async def session(backend: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(backend) as found:
        yield found


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("gpu", [0, 1, 2])
async def test_the_header_chooses_the_lane(session: aiohttp.ClientSession, prefix: str, gpu: int) -> None:
    """A job goes to the named GPU's queue, and the answers carry its number, with and without /api."""
    headers = {GPU_HEADER: str(gpu)}
    gate = uuid.uuid4().hex
    prompt = {"1": {"class_type": "Wait", "inputs": {"gate": gate}}}
    async with session.post(f"{prefix}/prompt", json={"prompt": prompt}, headers=headers) as response:
        said = await response.json()
    async with session.get(f"{prefix}/queue", headers=headers) as response:
        queue = await response.json()
    async with session.get(f"{prefix}/queue/all") as response:
        queues = (await response.json())["queues"]
    async with Client(session, (gpu + 1) % 3) as other:
        opened = await other.submit(("Open", {"gate": gate}))
        await other.entry(opened)
        await other.entry(said["prompt_id"])
    assert said["gpu_id"] == queue["gpu_id"] == gpu
    ids = [item[1] for kind in ("queue_running", "queue_pending") for item in queue[kind]]
    assert ids == [said["prompt_id"]]
    lengths = [entry["running_count"] + entry["pending_count"] for entry in queues]
    assert lengths == [int(lane == gpu) for lane in range(3)]


@pytest.mark.parametrize("value", ["3", "-1", "x", "0,1", ""])
@pytest.mark.parametrize("call", [("GET", "/queue"), ("POST", "/api/prompt"), ("GET", "/ws"), ("GET", "/nothing")])
async def test_a_wrong_header_is_never_gpu_0(session: aiohttp.ClientSession, value: str, call: tuple[str, str]) -> None:
    """Malformed or out of range is 400 in ComfyUI's shape, on every route."""
    async with session.request(*call, headers={GPU_HEADER: value}) as response:
        assert response.status == 400
        assert set(await response.json()) == {"error", "node_errors"}


async def test_each_client_hears_its_own_jobs_only(session: aiohttp.ClientSession) -> None:
    """Nine jobs on three GPUs at once: every event of a job at the client that submitted it, in ComfyUI's order."""
    clients = [Client(session, gpu) for gpu in range(3)]
    for client in clients:
        await client.__aenter__()
    jobs = [(client, await client.submit(("Noise", {"seed": 1}))) for client in clients for _ in range(3)]
    for client, job in jobs:
        await client.until(lambda heard=client.heard, job=job: heard(job)[-2:] == ["execution_success", "executing"])
    for client, job in jobs:
        kinds = [kind for kind in client.heard(job) if kind != "progress_state"]
        assert kinds == ORDER
        assert not any(other.heard(job) for other in clients if other is not client)
    for client in clients:
        await client.close()


async def test_the_front_door_hears_its_jobs_from_every_gpu(session: aiohttp.ClientSession) -> None:
    """A client without a GPU gets its own events from all lanes, and a status that is never 0 while its job waits."""
    async with Client(session, None) as observer, Client(session, 1) as other:
        gate = uuid.uuid4().hex
        held = await other.submit(("Wait", {"gate": gate}))
        await other.until(lambda: other.heard(held))
        waiting = await observer.submit(("Noise", {"seed": 1}), gpu=1)
        here = await observer.submit(("Noise", {"seed": 1}), gpu=2)
        await observer.until(lambda: "execution_success" in observer.heard(here))
        from_here = [event["data"]["status"]["exec_info"]["queue_remaining"] for event in observer.events[1:]
                     if event["type"] == "status"]
        await observer.submit(("Open", {"gate": gate}), gpu=0)
        await observer.until(lambda: "execution_success" in observer.heard(waiting))
    assert from_here
    assert min(from_here) >= 1
    assert not observer.heard(held)


async def test_a_status_counts_its_own_gpu(session: aiohttp.ClientSession) -> None:
    """A client is told the length of its lane's queue, and nothing when another lane's changes."""
    async with Client(session, 0) as idle, Client(session, 2) as busy:
        gate = uuid.uuid4().hex
        held = await busy.submit(("Wait", {"gate": gate}))
        await busy.until(lambda: busy.events[-1]["data"].get("node") == "0")
        before = len(idle.events)
        await busy.submit(("Noise", {"seed": 1}))
        await busy.until(lambda: any(
            event["type"] == "status" and event["data"]["status"]["exec_info"]["queue_remaining"] == 2
            for event in busy.events
        ))
        assert len(idle.events) == before
        await idle.submit(("Open", {"gate": gate}))
        await busy.entry(held)


async def test_one_client_id_on_two_gpus_is_two_clients(session: aiohttp.ClientSession) -> None:
    """A browser tab keeps its id when it goes from port to port: each socket hears its own GPU, and closing one
    leaves the other alone."""
    async with Client(session, 0) as first, Client(session, 1, first.client_id) as second:
        one, two = await first.submit(("Noise", {"seed": 1})), await second.submit(("Noise", {"seed": 1}))
        await first.until(lambda: "execution_success" in first.heard(one))
        await second.until(lambda: "execution_success" in second.heard(two))
        assert not first.heard(two)
        assert not second.heard(one)


async def test_an_old_socket_takes_nothing_with_it(session: aiohttp.ClientSession) -> None:
    """When the same client connected anew on the same GPU, the end of its old socket does not make it deaf."""
    async with Client(session, 0) as old, Client(session, 0, old.client_id) as new:
        await old.close()
        job = await new.submit(("Noise", {"seed": 1}))
        await new.until(lambda: "execution_success" in new.heard(job))


@pytest.mark.parametrize("gpu", [1, None])
async def test_who_reconnects_is_told_the_current_node(session: aiohttp.ClientSession, gpu: int | None) -> None:
    """Also at the front door, where ComfyUI itself cannot know the lane."""
    gate = uuid.uuid4().hex
    async with Client(session, 1) as first:
        job = await first.submit(("Wait", {"gate": gate}))
        await first.until(lambda: "executing" in first.heard(job))
    async with Client(session, gpu, first.client_id) as again:
        await again.until(lambda: [event for event in again.events if event["type"] == "executing"])
        assert again.events[0]["type"] == "status"
        assert again.events[1]["data"]["node"] == "0"
        await again.submit(("Open", {"gate": gate}), gpu=0)
        await again.entry(job)


async def test_history_is_one_and_clearing_is_per_gpu(session: aiohttp.ClientSession) -> None:
    """Every port reads every job; what a port clears or deletes are its own GPU's entries."""
    one, two = Client(session, 1), Client(session, 2)
    mine, other = await one.submit(("Noise", {"seed": 1})), await two.submit(("Noise", {"seed": 1}))
    await two.entry(mine)
    await one.entry(other)
    await one.post("/history", {"delete": [other]})
    assert other in await one.get("/history")
    await one.post("/history", {"clear": True})
    found = await two.get("/history")
    assert other in found
    assert mine not in found
    await Client(session, None).post("/history", {"delete": [other]})
    assert other not in await two.get("/history")


async def test_queue_commands_stay_on_their_gpu(session: aiohttp.ClientSession) -> None:
    """Clearing and deleting reach the port's lane only; without a GPU they reach all."""
    gate = uuid.uuid4().hex
    one, two, everywhere = Client(session, 1), Client(session, 2), Client(session, None)
    held = await one.submit(("Wait", {"gate": gate}))
    waiting = [await one.submit(("Noise", {"seed": seed})) for seed in range(3)]
    await two.post("/queue", {"delete": waiting[:1]})
    await two.post("/queue", {"clear": True})
    assert len((await one.get("/queue"))["queue_pending"]) == 3
    await one.post("/queue", {"delete": waiting[:1]})
    await everywhere.post("/queue", {"delete": waiting[1:2]})
    assert [item[1] for item in (await one.get("/queue"))["queue_pending"]] == waiting[2:]
    assert [item[1] for item in (await everywhere.get("/queue"))["queue_running"]] == [held]
    await everywhere.post("/queue", {"clear": True})
    assert (await one.get("/prompt"))["exec_info"]["queue_remaining"] == 1
    await two.submit(("Open", {"gate": gate}))
    await one.entry(held)


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_an_interrupt_stops_its_own_job_and_no_other(session: aiohttp.ClientSession, victim: int) -> None:
    """Aimed by id it finds the job on any lane, from any port; without an id it means the port's lane."""
    gates = [uuid.uuid4().hex for _ in range(3)]
    clients = [Client(session, gpu) for gpu in range(3)]
    jobs = [await client.submit(("Wait", {"gate": gate})) for client, gate in zip(clients, gates, strict=True)]
    while (await clients[0].get("/queue/all"))["total_running"] < 3:
        await asyncio.sleep(0.01)
    await clients[(victim + 1) % 3].post("/interrupt", {"prompt_id": jobs[victim]})
    assert (await clients[0].entry(jobs[victim]))["status"]["messages"][-1][0] == "execution_interrupted"
    await clients[0].post("/interrupt", {"prompt_id": jobs[victim]})
    plain = (victim + 1) % 3
    await clients[plain].post("/interrupt")
    assert (await clients[0].entry(jobs[plain]))["status"]["messages"][-1][0] == "execution_interrupted"
    last = (victim + 2) % 3
    assert (await clients[0].get("/queue/all"))["total_running"] == 1
    await clients[victim].submit(("Open", {"gate": gates[last]}))
    assert (await clients[0].entry(jobs[last]))["status"]["status_str"] == "success"


@pytest.mark.parametrize("kind", ["error", "exit", "odd"])
async def test_nothing_kills_a_worker(session: aiohttp.ClientSession, kind: str) -> None:
    """Whatever a node raises, its job ends with an error, its client hears of it, and the next job runs."""
    async with Client(session, 1) as client:
        broken, fine = await client.submit(("Fail", {"kind": kind})), await client.submit(("Noise", {"seed": 1}))
        assert (await client.entry(broken))["status"]["status_str"] == "error"
        assert (await client.entry(fine))["status"]["status_str"] == "success"
        await client.until(lambda: client.heard(broken)[-1:] == ["executing"])
        assert "execution_error" in client.heard(broken)


@pytest.mark.parametrize("extra", [5, True])
async def test_extra_data_of_a_wrong_kind_ends_its_job_with_an_error(
    session: aiohttp.ClientSession, extra: object
) -> None:
    """The executor and ComfyUI's own ending both fail at it; the job ends all the same, and the next one runs."""
    client = Client(session, 1)
    async with session.post("/prompt", headers=client.headers, json={
        "prompt": {"1": {"class_type": "Noise", "inputs": {"seed": 1}}}, "extra_data": extra,
    }) as response:
        assert response.status == 200
        entry = await client.entry((await response.json())["prompt_id"])
    assert entry["status"]["status_str"] == "error"
    assert entry["prompt"][3] == {}
    after = await client.entry(await client.submit(("Noise", {"seed": 1})))
    assert after["status"]["status_str"] == "success"
    async with session.get("/metrics") as response:
        assert 'comfy_backend_jobs_running{gpu="1"} 0.0' in await response.text()


async def test_a_result_that_json_cannot_hold_is_told_as_text(session: aiohttp.ClientSession) -> None:
    """One such result neither stops events nor makes the history unreadable."""
    async with Client(session, 2) as client:
        job = await client.submit(("Unsendable", {}))
        await client.until(lambda: "execution_success" in client.heard(job))
        assert "executed" in client.heard(job)
        assert "object" in json.dumps(await client.entry(job))
        assert job in await client.get("/history")


async def test_out_of_memory_is_tried_again_unheard(session: aiohttp.ClientSession) -> None:
    """The first failure reaches neither client nor history; a second one does; both are counted."""
    async with Client(session, 1) as client:
        saved = await client.submit(("Oom", {"times": 1, "tag": uuid.uuid4().hex}))
        lost = await client.submit(("Oom", {"times": 2, "tag": uuid.uuid4().hex}))
        assert (await client.entry(saved))["status"]["status_str"] == "success"
        assert (await client.entry(lost))["status"]["status_str"] == "error"
        assert "execution_error" not in client.heard(saved)
        async with session.get("/metrics") as response:
            numbers = await response.text()
        assert 'comfy_backend_oom_total{gpu="1",recovered="true"} 1.0' in numbers
        assert 'comfy_backend_oom_total{gpu="1",recovered="false"} 1.0' in numbers


async def test_seeds_prefixes_and_files_are_each_jobs_own(session: aiohttp.ClientSession, tmp_path: object) -> None:
    """While three lanes seed, expand and save at once, each gets what it would get alone."""
    clients = [Client(session, gpu) for gpu in range(3)]
    save = ("Save", {"folder": str(tmp_path)})
    jobs = [
        await client.submit(("Noise", {"seed": seed, "pause": 0.02}), ("Prefix", {}), save, save)
        for seed in range(4) for client in clients
    ]
    entries = [await clients[0].entry(job) for job in jobs]
    outputs = [{node: found["value"][0] for node, found in entry["outputs"].items()} for entry in entries]
    noise = [tuple(output["0"]) for output in outputs]
    assert noise == [noise[index - index % 3] for index in range(len(noise))]
    assert len(set(noise)) == 4
    assert {output["1"] for output in outputs} == {"1.0.0."}
    numbers = [output[node] for output in outputs for node in "23"]
    assert len(set(numbers)) == len(numbers)


async def test_system_stats_name_the_gpus(session: aiohttp.ClientSession) -> None:
    """``devices[0]`` is the port's GPU; without one all lanes are listed."""
    assert [device["gpu_id"] for device in (await Client(session, 2).get("/system_stats"))["devices"]] == [2]
    assert [device["gpu_id"] for device in (await Client(session, None).get("/system_stats"))["devices"]] == [0, 1, 2]


async def test_metrics_and_lengths_of_all_queues(session: aiohttp.ClientSession) -> None:
    """The seeds' short form of the queues, and node seconds by class from the execution itself."""
    assert set((await Client(session, None).get("/debug/queues"))["queues"][0]) == {"gpu_id", "queued", "running"}
    client = Client(session, 0)
    await client.entry(await client.submit(("Noise", {"seed": 1})))
    async with session.get("/api/metrics") as response:
        assert 'comfy_backend_node_seconds_count{class="Noise",gpu="0"}' in await response.text()


async def test_a_device_fault_ends_the_process_after_its_job_was_told() -> None:
    """The client hears the error first; then the process leaves with the code that asks for a new one."""
    started = Started("--gpus", "2")
    try:
        async with aiohttp.ClientSession(started.ready()["url"]) as session, Client(session, 1) as client:
            job = await client.submit(("Fail", {"kind": "fault"}))
            await client.until(lambda: "execution_error" in client.heard(job))
        assert started.ended() == EXIT_DEVICE_FAULT
    finally:
        started.stop()


async def test_a_lane_whose_worker_is_gone_says_so_and_the_process_leaves_when_the_others_are_done() -> None:
    """Its jobs are refused with the reason, the numbers show it, another lane's job still ends well."""
    started = Started("--gpus", "2")
    try:
        async with aiohttp.ClientSession(started.ready()["url"]) as session, Client(session, 0) as well:
            gate = uuid.uuid4().hex
            held = await well.submit(("Wait", {"gate": gate}))
            await well.until(lambda: "executing" in well.heard(held))
            await Client(session, 1).submit(("Desert", {}))

            async def faulted() -> str | None:
                lengths = (await Client(session, None).get("/debug/queues"))["queues"]
                assert "faulted" not in lengths[0]
                return lengths[1].get("faulted")  # type: ignore[no-any-return]

            reason = await eventually(faulted)
            assert reason == "its worker thread has ended (SystemExit)"
            async with session.post("/prompt", json={"prompt": {}}, headers={GPU_HEADER: "1"}) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "5")
                assert (await response.json())["error"]["message"] == f"GPU 1 takes no jobs: {reason}."
            async with session.get("/metrics") as response:
                text = await response.text()
            assert 'comfy_backend_lane_faulted{gpu="1"} 1.0' in text
            assert 'comfy_backend_lane_faulted{gpu="0"} 0.0' in text

            assert started.process.poll() is None  # lane 0 is at a job
            await well.post("/interrupt")
            await well.until(lambda: "execution_interrupted" in well.heard(held))
        assert started.ended() == EXIT_DEVICE_FAULT
    finally:
        started.stop()


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """The first true value of ``what``."""
    deadline = asyncio.get_running_loop().time() + LIMIT
    while not (found := await what()):
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
    return found


async def test_told_to_stop_it_does_not_wait_for_jobs() -> None:
    """SIGTERM ends the process with 0 although every lane is inside a node."""
    started = Started("--gpus", "2")
    try:
        async with aiohttp.ClientSession(started.ready()["url"]) as session:
            clients = [Client(session, gpu) for gpu in range(2)]
            for client in clients:
                await client.submit(("Wait", {"gate": "never"}))
            while (await clients[0].get("/queue/all"))["total_running"] < 2:
                await asyncio.sleep(0.01)
            started.process.terminate()
            assert started.ended() == EXIT_OK
    finally:
        started.stop()


def test_a_misfit_is_named_with_the_way_out() -> None:
    """The first name that does not fit, the version, and what to do instead; optional names stop nothing."""
    wrong = [Misfit("a:b", "not found", required=True), Misfit("c:d", "not found", required=True)]
    said = parallel.refusal("0.3.70", exact=False, allow_unknown=True, misfits=wrong)
    assert said is not None
    assert all(part in said for part in ("0.3.70", "a:b: not found", "1 more", "COMFY_MULTI_GPU_SCHED=0", "0.3.64"))
    optional = [Misfit("a:b", "x", required=False)]
    assert parallel.refusal("0.3.64", exact=True, allow_unknown=False, misfits=optional) is None


def test_an_untried_version_that_fits_needs_a_word() -> None:
    """Where all names fit, the message says which setting starts it."""
    said = parallel.refusal("9.9", exact=False, allow_unknown=False, misfits=[])
    assert said is not None
    assert "allow_unknown" in said
    assert parallel.refusal("9.9", exact=False, allow_unknown=True, misfits=[]) is None


async def test_executors_are_none_of_what_is_never_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there at the start is frozen; each lane's executor is made after that, and before anything has run."""
    calls: list[str] = []

    async def warm_up(*_: object) -> None:
        calls.append("warm-up")

    monkeypatch.setattr(parallel.gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setattr(parallel.warmup, "run", warm_up)
    monkeypatch.setattr(parallel.ready, "say", lambda _: calls.append("ready"))
    there = threading.Event()
    there.set()
    queues = [types.SimpleNamespace(renew=lambda: calls.append("renew")) for _ in range(2)]
    state: Any = types.SimpleNamespace(
        warm={0: there, 1: there}, listening=there, lanes=[0, 1], queues=types.SimpleNamespace(lanes=queues)
    )
    options: Any = types.SimpleNamespace(warmup="workflow.json", warmup_models=())
    line: Any = types.SimpleNamespace(url="http://127.0.0.1:1")
    await parallel._announce(state, line, options)
    assert calls == ["freeze", "renew", "renew", "warm-up", "ready"]
