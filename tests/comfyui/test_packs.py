"""``serialize`` and ``warmup_workflow``: jobs of one pack take turns over all GPUs; every GPU is warm when ready.

One backend for all of this: its pack ``proof`` is serialized, and its warm-up is a sampling workflow.
"""

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site, start_overlay_site, stop_site
from tests.comfyui.scenarios import run_all
from tests.comfyui.stack import Comfy
from tests.comfyui.wire import Lane, Listener, metrics, outcome, why

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

WARM_SEED = 77
FOREVER = 600.0
"""Seconds of a job that is interrupted long before."""


@pytest.fixture(scope="module")
def serial(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Four lanes without a gateway: what is proved here is the backend's."""
    folder = tmp_path_factory.mktemp("packs")
    warm = folder / "warm.json"
    warm.write_text(json.dumps(workflows.sampled(WARM_SEED, prefix="warm")))
    site = start_overlay_site(comfy, tiny_models, folder, own=["--serialize", "proof", "--warmup", str(warm)])
    site.processes[0].wait_for_line("BACKEND-READY ")
    yield site
    stop_site(site)


def spans(entries: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """When each job ran, in ComfyUI's own milliseconds, by its start."""
    times = [[data["timestamp"] for _, data in entry["status"]["messages"]] for entry in entries]
    return sorted((min(each), max(each)) for each in times)


def overlaps(entries: list[dict[str, Any]]) -> int:
    """How many jobs began while the one before was running."""
    ran = spans(entries)
    return sum(1 for (_, ended), (began, _) in itertools.pairwise(ran) if began < ended)


def test_every_gpu_ran_the_warm_up(serial: Site) -> None:
    """Before the ready line each lane ran it once; nobody finds it in the history, and its nodes are warm."""
    log = serial.processes[0].log.read_text(errors="replace")
    before, _, _ = log.partition("BACKEND-READY ")
    for lane in serial.lanes:
        assert f"[GPU {lane.gpu}] warm-up: success" in before
        assert lane.get("/history") == {}
    assert len(list(serial.folders.output.glob("warm_*.png"))) == len(serial.lanes)
    assert serial.backend
    numbers = metrics(serial.backend)
    for gpu in range(len(serial.lanes)):
        assert numbers[f'comfy_backend_node_seconds_count{{class="KSampler",gpu="{gpu}"}}'] >= 1
    entry = serial.lanes[3].finished(serial.lanes[3].submit(workflows.sampled(WARM_SEED, prefix="warm")))
    cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    assert "5" in cached


def test_jobs_of_a_pack_take_turns(serial: Site, ports: Site) -> None:
    """Eight jobs on four lanes at once never overlap; without ``serialize`` the same jobs do."""
    prompts = [workflows.sleeping(0.2, tag=f"turn {number}") for number in range(8)]
    here = run_all(serial.lanes, prompts)
    there = run_all(ports.lanes, prompts)
    for entry in (*here, *there):
        assert outcome(entry) == "success", why(entry)
    print(f"\n{overlaps(here)} of 8 serialized jobs overlapped, {overlaps(there)} without")
    assert overlaps(here) == 0
    assert overlaps(there) > 0


def test_a_job_without_the_pack_passes_by_and_an_interrupted_one_leaves(serial: Site) -> None:
    """While GPU 0 runs the pack, GPU 2 works, and a job that waits for its turn on GPU 1 ends when it is told to."""
    first, second, third = serial.lanes[:3]
    held = first.submit(workflows.sleeping(FOREVER, steps=10_000, tag="held"))
    with Listener(second) as listener:
        listener_job = waiting(second, listener)
        free = third.submit(workflows.saved(0x123456, "passes"))
        assert outcome(third.finished(free)) == "success"
        assert first.running() == [held]
        second.interrupt(listener_job)
        assert outcome(second.finished(listener_job)) == "interrupted"
        listener.idle_after(listener_job)
    assert first.running() == [held]
    first.interrupt(held)
    assert outcome(first.finished(held)) == "interrupted"
    after = second.finished(second.submit(workflows.sleeping(0.01, tag="after")))
    assert outcome(after) == "success", why(after)


def waiting(lane: Lane, listener: Listener) -> str:
    """A job of the pack that its lane has taken and that waits for its turn."""
    job = lane.submit(workflows.sleeping(0.01, tag="waits"), listener.client)
    taken = threading.Event()
    while lane.running() != [job]:
        taken.wait(0.05)
    assert not lane.history(job)
    return job


def test_a_model_kept_in_a_shared_variable_goes_with_its_pack(serial: Site, ports: Site, plain: Site) -> None:
    """Lanes of one device: serialized, every job gets plain ComfyUI's picture; else the second lane is refused."""
    prompts = [workflows.kept(seed) for seed in range(300, 308)]
    expected = [plain.lanes[0].pictures(entry) for entry in run_all(plain.lanes, prompts)]
    found = run_all(serial.lanes, prompts)
    for entry in found:
        assert outcome(entry) == "success", why(entry)
    right = sum(serial.lanes[0].pictures(entry) == twin for entry, twin in zip(found, expected, strict=True))
    print(f"\n{right} of {len(prompts)} pictures with a kept model are plain ComfyUI's")
    assert right == len(prompts)

    first, second = ports.lanes[:2]
    assert outcome(first.finished(first.submit(workflows.kept(400)))) == "success"
    refused = second.finished(second.submit(workflows.kept(401)))
    assert outcome(refused) == "error"
    assert "GPU 0 has it loaded" in why(refused)
