"""kill -9 of ComfyUI, of the gateway, and of both: whatever was taken ends under its own id, on its own GPU."""

import contextlib
import http.client
import json
import os
import signal
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comfyui import stack, workflows
from tests.comfyui.conftest import Site, arguments, start_supervised_site, stop_site
from tests.comfyui.stack import START_LIMIT, Comfy, Folders
from tests.comfyui.wire import ENDS, JOB_LIMIT, Lane, Listener, outcome, why

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(540)]

RUNNING, PENDING = 1, 5
"""Jobs of each lane at the moment of the kill."""
AWAY = (OSError, urllib.error.URLError, http.client.HTTPException)
"""What a client meets while the gateway is away."""


@pytest.fixture(scope="module")
def killed(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """``comfy-gateway up --comfyui DIR``, of which every test here ends a process."""
    folders = Folders(tmp_path_factory.mktemp("kills")).make()
    site = start_supervised_site(comfy, folders, arguments(comfy, folders, tiny_models))
    pid = backend(site)
    yield site
    with contextlib.suppress(OSError):
        pid = backend(site)
    stop_site(site)
    until(lambda: not alive(pid), 60, "ComfyUI ends with its gateway")


def backend(site: Site) -> int:
    """The process id of ComfyUI, as the gateway notes it for the one that comes after it."""
    return int(json.loads((site.folders.root / "journal/backend.json").read_text())["pid"])


def alive(pid: int) -> bool:
    """Whether this process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def until(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for it, also while nobody answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except AWAY:
            pass
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def has_ended(lane: Lane, job: str) -> bool:
    """Whether the history has it; while ComfyUI goes (502) or is away (503) nobody knows."""
    answer = lane.call("GET", f"/history/{job}")
    assert answer.status in {200, 502, 503}, answer.body
    return answer.status == 200 and job in answer.json


def loaded(site: Site, name: str, clients: list[str]) -> dict[str, Lane]:
    """One running and five pending jobs on each lane, by id; the running ones take their time."""
    jobs: dict[str, Lane] = {}
    for lane, client in zip(site.lanes, clients, strict=True):
        first = lane.submit(workflows.sleeping(20.0, tag=f"{name}-{lane.gpu}"), client)
        jobs[first] = lane
        for number in range(PENDING):
            own = str(uuid.uuid4())
            job = lane.submit(workflows.sleeping(0.05, tag=f"{name}-{number}"), client, prompt_id=own)
            assert job == own
            jobs[job] = lane
    for job, lane in list(jobs.items())[:: RUNNING + PENDING]:
        until(lambda job=job, lane=lane: lane.running() == [job], 60, f"{job} runs on GPU {lane.gpu}")
        assert len(lane.get("/queue")["queue_pending"]) == PENDING
    assert len(jobs) == len(site.lanes) * (RUNNING + PENDING)
    return jobs


def all_succeed(site: Site, jobs: dict[str, Lane]) -> list[int]:
    """Every job is in the history of its own port as a success; how often each was put into a queue."""
    for job, lane in jobs.items():
        until(lambda job=job, lane=lane: has_ended(lane, job), JOB_LIMIT + START_LIMIT, f"{job} on GPU {lane.gpu}")
        entry = lane.history(job)
        assert outcome(entry) == "success", why(entry)
        assert entry["prompt"][1] == job
    assert site.front
    front = site.front
    until(lambda: {front.get(f"/jobs/{job}")["state"] for job in jobs} == {"succeeded"}, 60, "the journal has them")
    found = {job: front.get(f"/jobs/{job}") for job in jobs}
    assert {job: each["gpu"] for job, each in found.items()} == {job: lane.gpu for job, lane in jobs.items()}
    return [each["attempts"] for each in found.values()]


def started_again(site: Site, comfy: Comfy, tiny_models: Path) -> None:
    """The gateway by the same command once more."""
    assert site.front
    assert site.backend
    front, own = (int(lane.host.rpartition(":")[2]) for lane in (site.front, site.backend))
    ports = [int(lane.host.rpartition(":")[2]) for lane in site.lanes]
    with_arguments = arguments(comfy, site.folders, tiny_models)
    site.processes[0] = stack.start_supervised(comfy, site.folders, front, ports, own, with_arguments)
    site.processes[0].wait_for(f"http://{site.lanes[0].host}/system_stats")


def test_a_killed_comfyui_loses_no_job(killed: Site) -> None:
    """It comes back with all of them; a socket that stayed open hears the end of each, and the gateway is the same."""
    listeners = [Listener(lane) for lane in killed.lanes]
    jobs = loaded(killed, "backend", [each.client for each in listeners])
    before = backend(killed)
    os.kill(before, signal.SIGKILL)
    attempts = all_succeed(killed, jobs)
    # What was put back once more stands for each of them: nothing had ended when it was killed.
    assert attempts == [2] * len(jobs)
    assert backend(killed) != before
    for listener in listeners:
        mine = {job for job, lane in jobs.items() if lane is listener.lane}
        for job in mine:
            assert listener.ended(job).kind == "execution_success"
        ends = [event.data["prompt_id"] for event in listener.events if event.kind in ENDS]
        assert sorted(ends) == sorted(mine)
        listener.close()
    print(f"\nComfyUI killed: {len(jobs)} jobs, all recovered, each put into a queue {attempts[0]} times")


def test_a_killed_gateway_finds_comfyui_and_its_jobs_again(killed: Site, comfy: Comfy, tiny_models: Path) -> None:
    """The next one takes the running ComfyUI over: no job is run twice."""
    jobs = loaded(killed, "gateway", [f"kills-{lane.gpu}" for lane in killed.lanes])
    before = backend(killed)
    killed.processes[0].process.kill()
    killed.processes[0].process.wait()
    started_again(killed, comfy, tiny_models)
    attempts = all_succeed(killed, jobs)
    # How often a job was put into a queue is written down a moment after its client has its answer.
    assert max(attempts) == 1
    assert backend(killed) == before
    print(f"\ngateway killed: {len(jobs)} jobs, all ended, none run twice")


def test_both_killed_the_journal_is_enough(killed: Site, comfy: Comfy, tiny_models: Path) -> None:
    """Nobody remembers anything but the journal, and every job ends all the same."""
    jobs = loaded(killed, "both", [f"kills-{lane.gpu}" for lane in killed.lanes])
    before = backend(killed)
    # The gateway first: it would start another ComfyUI at once.
    killed.processes[0].process.kill()
    os.kill(before, signal.SIGKILL)
    killed.processes[0].process.wait()
    started_again(killed, comfy, tiny_models)
    attempts = all_succeed(killed, jobs)
    assert set(attempts) <= {1, 2}
    assert backend(killed) != before
    print(f"\nboth killed: {len(jobs)} jobs, all recovered")
