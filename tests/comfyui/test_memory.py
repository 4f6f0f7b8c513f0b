"""One host copy of the weights behind a server: careless nodes, what lanes say they hold, models loaded ahead."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.conftest import Site, masters, start_overlay_site, stop_site
from tests.comfyui.models import NAMES
from tests.comfyui.stack import Comfy
from tests.comfyui.wire import Lane, metrics, outcome, why
from tests.comfyui.workflows import Prompt, node, sampled

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

COUNTS = ("host_shared", "host_own", "device", "loads", "loads_avoided", "evictions", "copies", "writes", "preloads")


@pytest.fixture
def site(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> Iterator[Site]:
    """Two lanes of a process of their own."""
    found = start_overlay_site(comfy, tiny_models, tmp_path, lanes=2)
    yield found
    stop_site(found)


def careless(seed: int, factor: float = 2.0) -> Prompt:
    prompt = sampled(seed, prefix="memory/careless")
    prompt["9"] = node("CarelessWriteWeights", model=["1", 0], factor=factor)
    prompt["5"]["inputs"]["model"] = ["9", 0]
    return prompt


def run(lane: Lane, prompt: Prompt) -> tuple[list[str], dict[str, Any]]:
    """The hashes of a job's pictures, and its history entry."""
    entry = lane.finished(lane.submit(prompt))
    assert outcome(entry) == "success", why(entry)
    return lane.pictures(entry), entry


def held(lane: Lane) -> dict[str, int]:
    found: list[dict[str, int]] = lane.get("/system_stats")["weights"]
    assert [entry["gpu_id"] for entry in found] == [lane.gpu]
    return found[0]


def cached(entry: dict[str, Any]) -> list[str]:
    return next(list(data["nodes"]) for event, data in entry["status"]["messages"] if event == "execution_cached")


def computed_anew(lane: Lane, prompt: Prompt) -> list[str]:
    """The pictures of a job whose lane has kept nothing; it frees its memory some time after it was told to."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lane.post("/free", {"unload_models": True, "free_memory": True})
        pictures, entry = run(lane, prompt)
        if not cached(entry):
            return pictures
    raise AssertionError("the lane keeps what it was told to forget")


def log_says(site: Site, *words: str) -> bool:
    """Whether one line of the process's log has all of these, within half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in site.processes[0].log.read_text(errors="replace").splitlines():
            if all(word in line for word in words):
                return True
        time.sleep(0.1)
    return False


def test_a_node_that_writes_weights_in_place_harms_nobody_else(site: Site) -> None:
    """The process lives; the other lane's picture has the same bytes before and after; the pack is named, counted,
    and has copies of its own from then on, with which its picture is the same again."""
    one, two = site.lanes
    good, _ = run(two, sampled(5, prefix="memory/good"))
    written, _ = run(one, careless(5))
    assert written != good, "the node did nothing"
    again, entry = run(two, sampled(5, prefix="memory/good"))
    assert again == good
    assert cached(entry) == [], "what the lane made of changed weights is forgotten"
    assert log_says(site, "written in place", "careless", "tiny_sd15_fp16", "on GPU 0")
    assert [held(lane)["writes"] for lane in (one, two)] == [1, 0]
    numbers = metrics(two)
    assert numbers['comfy_backend_weights_writes_total{gpu="0"}'] == 1
    rewritten, _ = run(one, careless(5))
    assert rewritten == written
    _, entry = run(two, sampled(5, prefix="memory/good"))
    assert "5" in cached(entry), "nothing had to be forgotten"
    assert computed_anew(two, sampled(5, prefix="memory/good")) == good
    assert [held(lane)["writes"] for lane in (one, two)] == [1, 0]
    assert held(one)["host_own"] > 0
    assert site.processes[0].process.poll() is None
    found = masters(site)
    assert found is not None
    assert (found["changed"], found["hashed"] > 0) == ([], True)


def test_lanes_say_what_they_hold(site: Site) -> None:
    """The second lane's load is avoided and points at the same bytes; metrics, stats and history agree."""
    one, two = site.lanes
    _, first = run(one, sampled(7, model="fp32"))
    _, second = run(two, sampled(7, model="fp32"))
    assert set(first["weights"]) == set(COUNTS)
    assert (first["weights"]["loads"], first["weights"]["loads_avoided"]) == (1, 0)
    assert (second["weights"]["loads"], second["weights"]["loads_avoided"]) == (0, 1)
    assert first["weights"]["host_shared"] == second["weights"]["host_shared"] > 10_000_000
    assert first["weights"]["device"] == 0, "a lane on the CPU"
    numbers = metrics(two)
    for lane in (one, two):
        labels = f'{{gpu="{lane.gpu}",where="host_shared"}}'
        assert numbers[f"comfy_backend_weights_bytes{labels}"] == held(lane)["host_shared"]
    files = site.backend.get("/debug/weights")["files"] if site.backend else []
    assert [(file["file"], file["mapped"], file["gpus"]) for file in files] == [(NAMES["fp32"], True, [0, 1])]


def test_models_loaded_ahead_are_there_when_a_job_comes(site: Site) -> None:
    """By name and by workflow, on one lane and on all: the job's loaders do not run again, and its picture is the one
    that it is without."""
    one, two = site.lanes
    assert site.backend
    plain, _ = run(two, sampled(9))
    asked = {"models": [{"type": "checkpoints", "name": NAMES["fp32"]}], "gpus": [0]}
    for path in ("/preload", "/api/preload"):
        answer = site.backend.call("POST", path, asked)
        assert answer.status == 200, answer.body
        (told,) = answer.json["preloaded"]
        assert (told["gpu_id"], told["error"]) == (0, None)
        assert told["models"] >= 2
        assert told["weights"]["host_shared"] > 0
    _, entry = run(one, sampled(9, model="fp32"))
    assert "1" in cached(entry)
    assert entry["weights"]["loads"] == 0
    answer = site.backend.call("POST", "/preload", {"workflow": sampled(9, lora=0.7)})
    assert answer.status == 200, answer.body
    assert [told["gpu_id"] for told in answer.json["preloaded"]] == [0, 1]
    assert len(site.backend.get("/history")) == 2, "preloads are no jobs"
    with_lora, entry = run(one, sampled(9, lora=0.7))
    assert {"1", "8"} <= set(cached(entry))
    assert with_lora != plain
    assert run(one, sampled(9))[0] == plain
    refused = site.backend.call("POST", "/preload", {"models": [{"type": "checkpoints", "name": "none"}]})
    assert refused.status == 400
    assert "ckpt_name" in refused.body.decode()
    assert [held(lane)["preloads"] > 0 for lane in (one, two)] == [True, True]
