"""A lane outlives whatever its jobs do: any exception, memory that runs out, three times over, and a broken device."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site, arguments, start_supervised_site, stop_site
from tests.comfyui.stack import Comfy, Folders
from tests.comfyui.wire import Lane, Listener, metrics, outcome, why

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

KINDS = ("error", "system_exit", "keyboard", "generator_exit", "odd", "unprintable", "unsendable", "recursion",
         "stop_iteration", "cancelled")


def sampled_then(seed: int, kind: str, **inputs: object) -> dict[str, object]:
    """A sampling workflow, so that its model stays in use, and one more node after it."""
    return {**workflows.sampled(seed, prefix="models"), "9": workflows.node(kind, after=["5", 0], **inputs)}


def models(lane: Lane, seed: int) -> int:
    """How many models are loaded on a lane after the workflow of ``seed``: the UNet, and the VAE once it has run."""
    entry = lane.finished(lane.submit(sampled_then(seed, "ProofDeviceReport", tag="")))
    assert outcome(entry) == "success", why(entry)
    return int(entry["outputs"]["9"]["text"][0].rpartition("models=")[2])


@pytest.mark.parametrize("kind", KINDS)
def test_worker_never_dies(ports: Site, kind: str) -> None:
    """Whatever a node raises on every lane at once, each job ends with its client told, and the next one runs."""
    for lane in ports.lanes:
        with Listener(lane) as listener:
            job = lane.submit({"1": workflows.node("ProofRaise", kind=kind)}, listener.client)
            entry = lane.finished(job, 30)
            if kind != "unsendable":  # what cannot be sent is lost with its event, not with its job
                assert outcome(entry) != "success"
            listener.idle_after(job, 30)
            after = lane.submit(workflows.sleeping(0.01, tag=uuid.uuid4().hex), listener.client)
            assert outcome(lane.finished(after, 30)) == "success"
            assert lane.running() == []
        assert lane.call("GET", "/history").status == 200


@pytest.mark.parametrize("extra", [5, True])
def test_extra_data_of_a_wrong_kind(ports: Site, extra: object) -> None:
    """Where ComfyUI takes it, its executor and its own ending fail at it: the job ends, nothing is left running."""
    assert ports.backend
    lane = ports.lanes[2]
    body = {"prompt": workflows.sleeping(0.01, tag=uuid.uuid4().hex), "extra_data": extra}
    answer = ports.backend.call("POST", "/prompt", body, {"X-TARGET-GPU": "2"})
    assert answer.status in {200, 500}  # newer versions fail at it before the job is queued
    if answer.status == 200:
        assert outcome(lane.finished(answer.json["prompt_id"], 30)) == "error"
    assert outcome(lane.finished(lane.submit(workflows.sleeping(0.01, tag=uuid.uuid4().hex)), 30)) == "success"
    assert lane.running() == []
    assert metrics(ports.backend)['comfy_backend_jobs_running{gpu="2"}'] == 0


def oom(lane: Lane, times: int, listener: Listener | None = None) -> dict[str, object]:
    """A job that runs out of memory ``times`` times."""
    prompt = {"1": workflows.node("ProofRaiseOOM", times=times, tag=uuid.uuid4().hex)}
    return lane.finished(lane.submit(prompt, listener.client if listener else ""))


def test_oom_is_retried_once(ports: Site) -> None:
    """One OOM: the job is run again and succeeds, its client hears of no error, and it is counted on its lane."""
    assert ports.backend
    before = metrics(ports.backend)
    with Listener(ports.lanes[1]) as listener:
        entry = oom(ports.lanes[1], 1, listener)
        assert outcome(entry) == "success", why(entry)
        assert entry["outputs"]["1"]["text"] == ["runs=2"]
        assert not listener.of("execution_error")
    after = metrics(ports.backend)
    grown = {name: value - before.get(name, 0) for name, value in after.items() if "comfy_backend_oom_total" in name}
    print(f"\nOOM counters moved: { {name: value for name, value in grown.items() if value} }")
    assert grown['comfy_backend_oom_total{gpu="1",recovered="true"}'] == 1
    assert sum(grown.values()) == 1


def test_oom_twice_is_an_error(ports: Site) -> None:
    """Two OOMs: one retry, then ComfyUI's own error, told once."""
    with Listener(ports.lanes[2]) as listener:
        entry = oom(ports.lanes[2], 2, listener)
        assert outcome(entry) == "error"
        listener.wait(lambda event: event.kind == "execution_error", 10)
        assert len(listener.of("execution_error")) == 1
    assert outcome(oom(ports.lanes[2], 0)) == "success"


def test_oom_frees_its_own_lane(ports: Site) -> None:
    """An OOM unloads the models of its lane and of no other."""
    seed, lanes = int(time.time()), ports.lanes[:2]
    before = [models(lane, seed) and models(lane, seed) for lane in lanes]
    prompt = sampled_then(seed, "ProofRaiseOOM", times=1, tag=uuid.uuid4().hex)
    assert outcome(lanes[0].finished(lanes[0].submit(prompt))) == "success"
    after = [models(lane, seed) for lane in lanes]
    print(f"\nmodels on GPU 0 and 1: {before}, after an OOM on GPU 0: {after}")
    assert before == [2, 2]
    assert after == [0, before[1]]


def test_three_failures_rebuild_the_executor(ports: Site) -> None:
    """After three jobs in a row that ran out of memory for good, the lane starts with an empty executor and works."""
    lane, other = ports.lanes[3], ports.lanes[2]
    prompt = workflows.sampled(99, prefix="rebuild")
    for each in (lane, other):
        each.finished(each.submit(prompt))
        assert len(cached(each, prompt)) == len(prompt)
    for _ in range(3):
        assert outcome(oom(lane, 1000)) == "error"
    assert cached(lane, prompt) == []
    assert len(cached(other, prompt)) == len(prompt)
    assert "rebuilt" in "".join(running.log.read_text(errors="replace") for running in ports.processes)


def cached(lane: Lane, prompt: dict[str, object]) -> list[str]:
    """Nodes of a run of ``prompt`` that did not have to run."""
    entry = lane.finished(lane.submit(prompt))
    assert outcome(entry) == "success", why(entry)
    return next(list(data["nodes"]) for kind, data in entry["status"]["messages"] if kind == "execution_cached")


def test_free_means_its_lane(ports: Site) -> None:
    """``/free`` unloads the models of its port's GPU only, and ten of them in a row kill no worker."""
    seed = int(time.time()) + 1
    before = [models(lane, seed) and models(lane, seed) for lane in ports.lanes]
    for _ in range(10):
        assert ports.lanes[2].post("/free", {"unload_models": True}).status == 200
    ports.lanes[2].finished(ports.lanes[2].submit(sampled_then(seed, "ProofDeviceReport", tag="")))
    after = [models(lane, seed) for lane in ports.lanes]
    print(f"\nmodels on the four GPUs: {before}, after /free on GPU 2: {after}")
    assert before == [2, 2, 2, 2]
    assert after == [*before[:2], 0, before[3]]


@pytest.fixture
def supervised(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> Iterator[Site]:
    """``comfy-gateway up --comfyui DIR``: the gateway starts and watches the backend."""
    folders = Folders(tmp_path).make()
    site = start_supervised_site(comfy, folders, arguments(comfy, folders, tiny_models))
    yield site
    stop_site(site)


def test_a_lost_worker_is_told_and_replaced(supervised: Site, tmp_path: Path) -> None:
    """A lane without its thread: its port answers 503 with the reason, the others work; then a new process has all."""
    well, broken, front = supervised.lanes[0], supervised.lanes[1], supervised.front
    assert front
    held = well.submit(workflows.sleeping(600, steps=10_000, tag="held"))
    last = broken.submit({"1": workflows.node("ProofDesert", marker=str(tmp_path / "marker"))})
    deadline = time.monotonic() + 60
    while (health := front.get("/health"))["status"] != "degraded":
        assert time.monotonic() < deadline, health
        time.sleep(0.05)
    reason = "GPU 1 takes no jobs: its worker thread has ended (SystemExit)."
    assert (health["healthy_instances"], health["reason"]) == (3, reason)
    for answer in (broken.post("/prompt", {"prompt": workflows.sleeping(0.01)}), broken.call("GET", "/system_stats")):
        assert answer.status == 503
        assert reason in json.dumps(answer.json)
    assert metrics(front)['comfy_backend_lane_faulted{gpu="1"}'] == 1
    assert well.running() == [held]
    well.interrupt(held)
    # The process leaves when the held job is over; the journal gives the lost one to its successor.
    deadline = time.monotonic() + 120
    while outcome_of(broken, last) != "success":
        assert time.monotonic() < deadline, "the broken process was not replaced"
        time.sleep(0.2)
    assert outcome_of(well, held) == "interrupted"
    assert front.get("/health")["status"] == "healthy"


def outcome_of(lane: Lane, job: str) -> str:
    """How a job ended, if it has and its lane answers."""
    answer = lane.call("GET", f"/history/{job}")
    return outcome(answer.json[job]) if answer.status == 200 and answer.json else ""


def test_device_fault_replaces_the_process(supervised: Site) -> None:
    """A CUDA fault in a job marks its lane; the supervisor replaces the process and the next jobs run everywhere."""
    lane = supervised.lanes[1]
    first = supervised.lanes[0].finished(supervised.lanes[0].submit(workflows.sleeping(0.01, tag="before")))
    assert outcome(first) == "success"
    lane.submit({"1": workflows.node("ProofRaise", kind="device_fault")})
    deadline = time.monotonic() + 120
    while (answer := lane.call("GET", "/history")).status == 200 and answer.json:  # the new process has no history
        assert time.monotonic() < deadline, "the broken process was not replaced"
        time.sleep(0.2)
    supervised.processes[0].wait_for(f"http://{lane.host}/system_stats")
    for each in supervised.lanes:
        entry = each.finished(each.submit(workflows.sleeping(0.01, tag="after")))
        assert outcome(entry) == "success", why(entry)


@pytest.fixture
def apart(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> Iterator[Site]:
    """The same with a process for each of two GPUs."""
    folders = Folders(tmp_path).make()
    started_with = arguments(comfy, folders, tiny_models)
    site = start_supervised_site(comfy, folders, started_with, lanes=2, mode="per-gpu")
    yield site
    stop_site(site)


def test_device_fault_of_one_process_leaves_the_others_at_work(apart: Site) -> None:
    """With one process for each GPU a CUDA fault ends its own alone: what another one runs goes on to its end."""
    well, broken = apart.lanes
    before = set(apart.processes[0].children())
    held = well.submit(workflows.sleeping(600, steps=10_000, tag="held"))
    deadline = time.monotonic() + 60
    while well.running() != [held]:
        assert time.monotonic() < deadline, "the job does not start"
        time.sleep(0.1)
    lost = broken.submit({"1": workflows.node("ProofRaise", kind="device_fault")})
    deadline = time.monotonic() + 180
    while not outcome_of(broken, lost) or len(set(apart.processes[0].children()) - before) != 1:
        assert time.monotonic() < deadline, "the broken process was not replaced"
        time.sleep(0.2)
    assert outcome_of(broken, lost) == "error"
    apart.processes[0].wait_for(f"http://{broken.host}/system_stats")
    entry = broken.finished(broken.submit(workflows.sleeping(0.01, tag="after")))
    assert outcome(entry) == "success", why(entry)
    assert well.running() == [held]
    assert len(before & set(apart.processes[0].children())) == 1
    well.interrupt(held)
    assert outcome(well.finished(held)) == "interrupted"
